use super::*;
use crate::kernels::testing::{Matrix, Random, assert_close, sigmoid};
use crate::simd::SimdLevel;

type Kernel = unsafe fn(SimdLevel, &Pairwise, Range<usize>);

#[test]
fn pairwise_kernels_agree_with_double_precision() {
    type Reference = fn(f64, f64) -> f64;
    let kernels: [(Kernel, Reference); 3] =
        [(sigmoid_gate, |a, b| a * sigmoid(b)), (silu_mul, |a, b| a * sigmoid(a) * b), (add, |a, b| a + b)];
    let mut random = Random(1);
    for level in SimdLevel::available() {
        for (index, (kernel, reference)) in kernels.iter().enumerate() {
            for width in [1, 15, 16, 17, 40, 333] {
                let mut a = Matrix::random(4, width, 100.0, &mut random);
                let mut b = Matrix::random(4, width, 100.0, &mut random);
                let mut out = Matrix::new(4, width);
                let args = Pairwise { a: a.view(), b: b.view(), width, out: out.view() };
                // SAFETY: the level is available, the rows have `width` floats.
                unsafe { kernel(level, &args, 1..3) };
                let bits = out.bits();
                assert!(out.row(0).iter().chain(out.row(3)).all(|&y| y == 0.0));
                for row in 1..3 {
                    let (a, b) = (a.row64(row), b.row64(row));
                    let expected: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| reference(a, b)).collect();
                    assert_close(out.row(row), &expected, 1e-6, &format!("kernel {index} {level:?} width {width}"));
                }
                // SAFETY: as above.
                unsafe { kernel(level, &Pairwise { out: args.a, ..args }, 1..3) };
                assert_eq!(a.part(1, 2).bits(), bits[width..3 * width], "in place");
            }
        }
    }
}

#[test]
fn gates_follow_pytorch() {
    let heads = 5;
    let mut random = Random(2);
    let mut a = Matrix::from_fn(40, heads, |row, head| (row as f32 - 20.0) * 3.0 + head as f32 * 0.1);
    let mut b = Matrix::random(40, heads, 30.0, &mut random);
    let (mut beta, mut decay) = (Matrix::new(40, heads), Matrix::new(40, heads));
    let (a_log, dt_bias) = (random.floats(heads, 3.0), random.floats(heads, 2.0));
    let args =
        GdnGates { a: a.view(), b: b.view(), a_log: &a_log, dt_bias: &dt_bias, beta: beta.view(), decay: decay.view() };
    // SAFETY: the rows have `heads` floats.
    unsafe { gdn_gates(&args, 0..40) };
    for row in 0..40 {
        let expected: Vec<f64> = b.row64(row).iter().map(|&b| sigmoid(b)).collect();
        assert_close(beta.row(row), &expected, 1e-6, "beta");
        for head in 0..heads {
            let x = f64::from(a.row(row)[head] + dt_bias[head]);
            let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
            let expected = -f64::from(a_log[head]).exp() * softplus;
            let actual = f64::from(decay.row(row)[head]);
            assert!((actual - expected).abs() <= 1e-6 * expected.abs(), "decay({x}) = {actual}, not {expected}");
        }
    }
}

#[test]
fn rows_are_gathered() {
    let mut random = Random(3);
    let mut x = Matrix::random(6, 7, 1.0, &mut random);
    let mut out = Matrix::new(3, 7);
    // SAFETY: the indices are rows of `x`.
    unsafe { gather_rows(x.view(), &[5, 0, 2], 7, out.view(), 0..3) };
    out.bits();
    assert_eq!([out.row(0), out.row(1), out.row(2)], [x.row(5), x.row(0), x.row(2)]);
}
