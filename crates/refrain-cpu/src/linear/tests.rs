use super::*;
use crate::matrix::{MatrixSource, pack_panel, packed_bytes};
use crate::simd::SimdLevel;
use half::{bf16, f16};
use proptest::prelude::*;
use refrain_device::Arena;
use refrain_program::{TensorView, WeightPart};

struct Fixture {
    _arena: Arena,
    matrix: Matrix,
    /// The weights as stored, widened: `[outputs][inputs]`.
    weights: Vec<f32>,
}

/// Numbers in `[-1, 1)` that depend on the seed only.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn fixture(dtype: Dtype, stored: Dtype, outputs: usize, inputs: usize) -> Fixture {
    let mut bytes = Vec::new();
    let mut weights = Vec::new();
    for value in noise((outputs * 31 + inputs) as u64, outputs * inputs) {
        let value = match stored {
            Dtype::Bf16 => bf16::from_f32(value).to_f32(),
            Dtype::F16 => f16::from_f32(value).to_f32(),
            Dtype::F32 => value,
        };
        match stored {
            Dtype::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            Dtype::F32 => bytes.extend(value.to_le_bytes()),
        }
        weights.push(match dtype {
            Dtype::Bf16 => bf16::from_f32(value).to_f32(),
            Dtype::F16 => f16::from_f32(value).to_f32(),
            Dtype::F32 => value,
        });
    }
    let part =
        WeightPart { source: "w".into(), source_rows: outputs, start: 0, rows: outputs, run: outputs, stride: outputs };
    let shape = [outputs, inputs];
    let view = TensorView { dtype: stored, shape: &shape, data: &bytes };
    let arena = Arena::new(packed_bytes(dtype, outputs, inputs), "test").unwrap();
    let matrix = Matrix { data: arena.base(), dtype, outputs, inputs };
    let source = MatrixSource { parts: vec![(&part, view)], inputs };
    for panel in 0..matrix.panels() {
        // SAFETY: the arena holds the packed matrix and is ours.
        unsafe { pack_panel(&matrix, &source, panel) };
    }
    Fixture { _arena: arena, matrix, weights }
}

fn multiply(fixture: &Fixture, isa: Isa, precision: Precision, threads: usize, x: &[f32]) -> Vec<f32> {
    let (outputs, inputs) = (fixture.matrix.outputs, fixture.matrix.inputs);
    let rows = x.len() / inputs;
    let mut x = x.to_vec();
    let mut out = vec![f32::NAN; rows * outputs];
    let rounded = Arena::new(workspace_bytes(rows, inputs), "test").unwrap();
    let scratch = Shared(std::ptr::null_mut());
    let workspace = Workspace { rounded: Shared(rounded.base()), scratch, scratch_floats: 0 };
    let around = Around { prologue: None, epilogue: Epilogue::None };
    let product = Product {
        x: Rows { data: x.as_mut_ptr(), stride: inputs },
        matrix: fixture.matrix,
        out: Rows { data: out.as_mut_ptr(), stride: outputs },
        rows,
    };
    let mut pool = Pool::new(threads).unwrap();
    // SAFETY: all views are as large as the product; the instruction set is available.
    unsafe { run(&mut pool, isa, precision, &product, &around, &workspace) };
    out
}

fn exact(fixture: &Fixture, x: &[f32], rounded: bool) -> Vec<f64> {
    let inputs = fixture.matrix.inputs;
    let entry = |x: f32| if rounded { bf16::from_f32(x).to_f64() } else { f64::from(x) };
    x.chunks(inputs)
        .flat_map(|x| {
            fixture.weights.chunks(inputs).map(move |w| x.iter().zip(w).map(|(&x, &w)| entry(x) * f64::from(w)).sum())
        })
        .collect()
}

fn check(dtype: Dtype, stored: Dtype, outputs: usize, inputs: usize, rows: usize) {
    let fixture = fixture(dtype, stored, outputs, inputs);
    let x = noise(7, rows * inputs);
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let rounded = arithmetic(isa, precision, dtype) != Arithmetic::F32;
            let got = multiply(&fixture, isa, precision, 3, &x);
            for (index, (got, exact)) in got.iter().zip(exact(&fixture, &x, rounded)).enumerate() {
                let bound = 1e-6 * (inputs as f64);
                assert!(
                    (f64::from(*got) - exact).abs() <= bound,
                    "{isa} {precision:?} {dtype} {outputs}x{inputs}, element {index}: {got}, not {exact}"
                );
            }
        }
    }
}

#[test]
fn products_match_double_precision_at_any_shape() {
    for (outputs, inputs, rows) in
        [(1, 1, 1), (16, 32, 1), (17, 33, 5), (64, 64, 4), (100, 70, 7), (130, 96, 33), (48, 257, 70)]
    {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            check(dtype, dtype, outputs, inputs, rows);
        }
    }
}

#[test]
fn stored_types_are_converted_when_another_is_asked_for() {
    for stored in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            check(dtype, stored, 35, 21, 3);
        }
    }
}

#[test]
fn a_row_of_the_matrix_reads_back() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let fixture = fixture(dtype, dtype, 37, 19);
        let mut row = vec![0.0; 19];
        for output in 0..37 {
            // SAFETY: the row has 19 floats.
            unsafe { fixture.matrix.read_row(output, row.as_mut_ptr()) };
            assert_eq!(row, fixture.weights[output * 19..][..19]);
        }
    }
}

#[test]
fn rounding_covers_every_level_and_pads_with_zeros() {
    for level in SimdLevel::available() {
        let x = noise(3, 45);
        let mut to = vec![0xffffu16; 64];
        // SAFETY: 45 inputs padded to 64.
        unsafe { round_row(level, x.as_ptr(), to.as_mut_ptr(), 45) };
        let expected: Vec<u16> =
            x.iter().map(|&x| bf16::from_f32(x).to_bits()).chain(std::iter::repeat_n(0, 19)).collect();
        assert_eq!(to, expected, "{level:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Bit for bit the same alone, in a batch, and on any number of threads.
    #[test]
    fn a_row_does_not_depend_on_its_batch(
        outputs in 1usize..150, inputs in 1usize..100, rows in 2usize..80, threads in 1usize..4, pick in 0usize..80,
    ) {
        let pick = pick % rows;
        let x = noise(11, rows * inputs);
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let fixture = fixture(dtype, dtype, outputs, inputs);
            for isa in Isa::available() {
                for precision in [Precision::F32, Precision::Bf16] {
                    let batch = multiply(&fixture, isa, precision, threads, &x);
                    let alone = multiply(&fixture, isa, precision, 1, &x[pick * inputs..][..inputs]);
                    let in_batch = &batch[pick * outputs..][..outputs];
                    prop_assert!(alone.iter().zip(in_batch).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
                }
            }
        }
    }
}
