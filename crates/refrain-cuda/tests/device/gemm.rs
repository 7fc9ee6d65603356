//! cuBLASLt against sums in double precision.

use super::{download, runtime, upload};
use half::{bf16, f16};
use refrain_device::{DeviceError, DeviceMemory, Gemm, GemmOperands, GemmShape, GemmType, Runtime, Stream};
use std::sync::Arc;

const WORKSPACE: usize = 32 << 20;

fn encode(kind: GemmType, values: &[f32]) -> Vec<u8> {
    match kind {
        GemmType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        GemmType::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        GemmType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
    }
}

fn decode(kind: GemmType, bytes: &[u8]) -> Vec<f32> {
    let two = |pair: &[u8]| [pair[0], pair[1]];
    match kind {
        GemmType::F32 => bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect(),
        GemmType::Bf16 => bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes(two(pair)).to_f32()).collect(),
        GemmType::F16 => bytes.chunks_exact(2).map(|pair| f16::from_le_bytes(two(pair)).to_f32()).collect(),
    }
}

fn size(kind: GemmType) -> usize {
    if kind == GemmType::F32 { 4 } else { 2 }
}

/// Numbers between -1 and 1 that repeat after long only, as the type holds them.
fn noise(kind: GemmType, count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    decode(kind, &encode(kind, &(0..count).map(|_| next()).collect::<Vec<f32>>()))
}

/// One product: operands on the device, and on the host what is expected.
struct Case {
    shape: GemmShape,
    x: Vec<f32>,
    weight: Vec<f32>,
    memory: [DeviceMemory; 4],
    /// Bytes by which `x` is moved.
    offset: usize,
}

/// What `out` holds before: a product has to overwrite it, and to leave the gaps between rows alone.
const BEFORE: f32 = 77.0;

impl Case {
    fn new(runtime: &Arc<dyn Runtime>, stream: &Stream, shape: GemmShape, offset: usize) -> Case {
        let x = noise(shape.input, shape.m * shape.x_stride, 1);
        let weight = noise(shape.input, shape.n * shape.k, 2);
        let moved = [vec![0; offset], encode(shape.input, &x)].concat();
        let memory = [
            upload(runtime, stream, &moved),
            upload(runtime, stream, &encode(shape.input, &weight)),
            upload(runtime, stream, &encode(shape.output, &vec![BEFORE; shape.m * shape.out_stride])),
            DeviceMemory::new(runtime, WORKSPACE, "a test").unwrap(),
        ];
        Case { shape, x, weight, memory, offset }
    }

    fn operands(&self) -> GemmOperands {
        let [x, weight, out, workspace] = &self.memory;
        GemmOperands {
            x: x.base().offset(self.offset),
            weight: weight.base(),
            out: out.base(),
            workspace: workspace.base(),
            workspace_bytes: WORKSPACE,
        }
    }

    fn run(&self, gemm: &dyn Gemm, stream: &Stream) {
        // SAFETY: memory of the shape's sizes that outlives the stream's work.
        unsafe { gemm.run(stream.id(), &self.shape, &self.operands()) }.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Compares with sums in double precision: the error is within rounding of the sum in f32 and of the result.
    fn check(&self, runtime: &Arc<dyn Runtime>, stream: &Stream) {
        let GemmShape { m, n, k, x_stride, out_stride, output, .. } = self.shape;
        let found = decode(output, &download(runtime, stream, &self.memory[2]));
        // Tensor cores cut what they add off instead of rounding it; TF32 in place of f32 would err by more.
        let adding = if self.shape.input == GemmType::F32 { 4e-7 } else { 2e-6 };
        // Half a unit in the last place of a type with p bits after the point is 2^-(p + 1) of the power of two below the
        // value, and so up to 2^-(p + 1) of a value just above one: bf16 has 7 such bits, f16 has 10.
        let rounding = match output {
            GemmType::F32 => 0.0,
            GemmType::Bf16 => 2f64.powi(-8),
            GemmType::F16 => 2f64.powi(-11),
        };
        for row in 0..m {
            for column in 0..out_stride {
                let value = f64::from(found[row * out_stride + column]);
                if column >= n {
                    assert_eq!(value, f64::from(BEFORE), "{:?}: gap at {row}, {column}", self.shape);
                    continue;
                }
                let x = &self.x[row * x_stride..][..k];
                let weight = &self.weight[column * k..][..k];
                let products = x.iter().zip(weight).map(|(&a, &b)| f64::from(a) * f64::from(b));
                let (sum, magnitude) = products.fold((0.0, 0.0), |(sum, all), p| (sum + p, all + p.abs()));
                let allowed = adding * magnitude + rounding * sum.abs() + 1e-6;
                let error = (value - sum).abs();
                assert!(error <= allowed, "{:?} at {row}, {column}: {value}, {sum}: {error} > {allowed}", self.shape);
            }
        }
    }
}

fn shape(m: usize, n: usize, k: usize, input: GemmType, output: GemmType) -> GemmShape {
    GemmShape { m, n, k, x_stride: k, out_stride: n, input, output }
}

/// The library; a machine for this test has it.
fn gemm(runtime: &Arc<dyn Runtime>) -> &dyn Gemm {
    runtime.gemm().expect("cuBLASLt is where the loader finds it")
}

#[test]
fn products_of_all_types_match_sums_in_double_precision() {
    use GemmType::{Bf16, F16, F32};
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    eprintln!("{}", gemm(&runtime).describe());
    for (input, output) in [(Bf16, Bf16), (Bf16, F32), (F16, F16), (F16, F32), (F32, F32)] {
        for (m, n, k) in
            [(1, 64, 32), (1, 2560, 4096), (3, 96, 2560), (16, 1024, 512), (130, 200, 264), (257, 512, 128)]
        {
            let case = Case::new(&runtime, &stream, shape(m, n, k, input, output), 0);
            gemm(&runtime).prepare(&case.shape, WORKSPACE).unwrap_or_else(|error| panic!("{error}"));
            case.run(gemm(&runtime), &stream);
            case.check(&runtime, &stream);
        }
    }
}

#[test]
fn rows_may_have_gaps_and_addresses_may_be_odd() {
    use GemmType::{Bf16, F32};
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    for (input, output) in [(Bf16, Bf16), (Bf16, F32), (F32, F32)] {
        let gaps = GemmShape { x_stride: 304, out_stride: 136, ..shape(20, 120, 256, input, output) };
        let odd = GemmShape { x_stride: 301, out_stride: 133, ..shape(20, 120, 255, input, output) };
        for (shape, offset) in [(gaps, 0), (gaps, size(input)), (odd, 0), (odd, size(input))] {
            let case = Case::new(&runtime, &stream, shape, offset);
            case.run(gemm(&runtime), &stream);
            case.check(&runtime, &stream);
        }
    }
}

#[test]
fn tuning_keeps_the_result_right_and_is_used() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    for (m, n, k) in [(1, 2560, 9216), (64, 2560, 4096)] {
        let case = Case::new(&runtime, &stream, shape(m, n, k, GemmType::Bf16, GemmType::Bf16), 0);
        // SAFETY: as in `run`.
        unsafe { gemm(&runtime).tune(stream.id(), &case.shape, &case.operands()) }
            .unwrap_or_else(|error| panic!("{error}"));
        case.run(gemm(&runtime), &stream);
        case.check(&runtime, &stream);
    }
}

#[test]
fn a_product_can_be_recorded_and_replayed() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let case = Case::new(&runtime, &stream, shape(48, 320, 192, GemmType::Bf16, GemmType::F32), 0);
    case.run(gemm(&runtime), &stream);
    stream.synchronize().unwrap();
    runtime.begin_capture(stream.id()).unwrap();
    case.run(gemm(&runtime), &stream);
    let graph = runtime.end_capture(stream.id()).unwrap_or_else(|error| panic!("{error}"));
    // SAFETY: inside the memory, which stays.
    unsafe {
        runtime.fill(stream.id(), case.memory[2].base(), 0, case.memory[2].bytes()).unwrap();
        runtime.launch_graph(graph, stream.id()).unwrap();
    }
    case.check(&runtime, &stream);
    runtime.destroy_graph(graph);
}

#[test]
fn what_can_not_be_done_is_an_error_that_names_the_product() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let wrong = GemmShape { x_stride: 8, ..shape(4, 64, 32, GemmType::Bf16, GemmType::Bf16) };
    let error = gemm(&runtime).prepare(&wrong, WORKSPACE).unwrap_err();
    assert!(matches!(error, DeviceError::Driver { .. }), "{error:?}");
    assert!(error.to_string().contains("out[4, 64] Bf16") && error.to_string().contains("rows overlap"), "{error}");
    let case = Case::new(&runtime, &stream, shape(4, 64, 32, GemmType::Bf16, GemmType::Bf16), 0);
    let operands = GemmOperands { workspace: case.memory[3].base().offset(16), ..case.operands() };
    // SAFETY: refused before anything runs.
    let error = unsafe { gemm(&runtime).run(stream.id(), &case.shape, &operands) }.unwrap_err().to_string();
    assert!(error.contains("is not aligned to 256 bytes"), "{error}");
    // Nothing to compute is no error.
    gemm(&runtime).prepare(&shape(0, 64, 32, GemmType::Bf16, GemmType::Bf16), WORKSPACE).unwrap();
}
