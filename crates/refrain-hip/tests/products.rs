//! Matrix products by a fake rocBLAS.

mod support;

use half::f16;
use refrain_device::{DeviceError, DeviceMemory, GemmOperands, GemmShape, GemmType, Runtime};
use std::sync::Arc;
use support::fake::{Bench, Fake};

/// Whole numbers, which every type and order of sums keeps exactly.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + seed * 3) % 11) as f32 - 5.0).collect()
}

fn bytes(values: &[f32], kind: GemmType) -> Vec<u8> {
    match kind {
        GemmType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
    }
}

/// A machine with rocBLAS, memory for it, and the means to compute one product on it.
struct Products {
    bench: Bench,
    memory: DeviceMemory,
}

const SHAPE: GemmShape =
    GemmShape { m: 5, n: 12, k: 32, x_stride: 40, out_stride: 16, input: GemmType::F16, output: GemmType::F32 };

impl Products {
    fn new(fake: &Fake) -> Products {
        let bench = Bench::new(fake, &[0.0; 256]);
        let shared: Arc<dyn Runtime> = bench.runtime.clone();
        Products { memory: DeviceMemory::new(&shared, 1 << 20, "operands").unwrap(), bench }
    }

    /// Operands of at most 128 KiB each.
    fn operands(&self) -> GemmOperands {
        let at = |place: usize| self.memory.base().offset(place << 18);
        GemmOperands { x: at(0), weight: at(1), out: at(2), workspace: at(3), workspace_bytes: 1 << 16 }
    }

    fn write(&self, shape: &GemmShape, x: &[f32], weight: &[f32]) {
        let (x, weight) = (bytes(x, shape.input), bytes(weight, shape.input));
        let operands = self.operands();
        let runtime = &self.bench.runtime;
        // SAFETY: both fit, and outlive the wait.
        unsafe {
            runtime.copy_to_device(self.bench.stream, operands.x, x.as_ptr(), x.len()).unwrap();
            runtime.copy_to_device(self.bench.stream, operands.weight, weight.as_ptr(), weight.len()).unwrap();
        }
        runtime.synchronize(self.bench.stream).unwrap();
    }

    fn run(&self, shape: &GemmShape) -> Result<(), DeviceError> {
        // SAFETY: the operands are as large as the shape says.
        unsafe { self.bench.runtime.gemm().unwrap().run(self.bench.stream, shape, &self.operands()) }
    }

    /// What lies at the output, `elements` of the shape's output type as bits.
    fn read(&self, shape: &GemmShape, elements: usize) -> Vec<u32> {
        let size = if shape.output == GemmType::F32 { 4 } else { 2 };
        let mut out = vec![0_u8; elements * size];
        let runtime = &self.bench.runtime;
        // SAFETY: it fits, and outlives the wait.
        unsafe { runtime.copy_to_host(self.bench.stream, out.as_mut_ptr(), self.operands().out, out.len()).unwrap() };
        runtime.synchronize(self.bench.stream).unwrap();
        out.chunks_exact(size)
            .map(|bytes| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
            .collect()
    }
}

/// `out[m, n] = x[m, k] weight[n, k]^T` as bits of the output type.
fn expected(shape: &GemmShape, x: &[f32], weight: &[f32]) -> Vec<(usize, u32)> {
    let mut all = Vec::new();
    for row in 0..shape.m {
        for column in 0..shape.n {
            let sum: f32 = (0..shape.k).map(|i| x[row * shape.x_stride + i] * weight[column * shape.k + i]).sum();
            let bits =
                if shape.output == GemmType::F32 { sum.to_bits() } else { u32::from(f16::from_f32(sum).to_bits()) };
            all.push((row * shape.out_stride + column, bits));
        }
    }
    all
}

#[test]
fn products_are_those_of_row_major_matrices_in_every_type() {
    let fake = Fake::new();
    fake.add_rocblas(None);
    let products = Products::new(&fake);
    assert_eq!(products.bench.runtime.gemm().unwrap().describe(), "rocBLAS 2.46.0.fake");
    for (input, output) in
        [(GemmType::F16, GemmType::F32), (GemmType::F16, GemmType::F16), (GemmType::F32, GemmType::F32)]
    {
        let shape = GemmShape { input, output, ..SHAPE };
        let (x, weight) = (numbers(shape.m * shape.x_stride, 1), numbers(shape.n * shape.k, 2));
        products.write(&shape, &x, &weight);
        products.bench.runtime.gemm().unwrap().prepare(&shape, 0).unwrap();
        products.run(&shape).unwrap();
        let got = products.read(&shape, shape.m * shape.out_stride);
        for (place, bits) in expected(&shape, &x, &weight) {
            assert_eq!(got[place], bits, "{input:?} {output:?} at {place}");
        }
    }
}

#[test]
fn a_product_is_recorded_once_it_has_run() {
    let fake = Fake::new();
    fake.add_rocblas(None);
    let products = Products::new(&fake);
    let (x, weight) = (numbers(SHAPE.m * SHAPE.x_stride, 3), numbers(SHAPE.n * SHAPE.k, 4));
    products.write(&SHAPE, &x, &weight);
    products.run(&SHAPE).unwrap();
    let runtime = &products.bench.runtime;
    // In a stream of its own, which rocBLAS has not seen before.
    let stream = runtime.create_stream().unwrap();
    runtime.begin_capture(stream).unwrap();
    // SAFETY: the operands are as large as the shape says.
    unsafe { runtime.gemm().unwrap().run(stream, &SHAPE, &products.operands()) }.unwrap();
    let graph = runtime.end_capture(stream).unwrap();
    runtime.destroy_stream(stream);
    assert_eq!((runtime.graph_nodes(graph).unwrap(), fake.get("illegal_calls")), (1, 0));
    let other = numbers(SHAPE.m * SHAPE.x_stride, 5);
    products.write(&SHAPE, &other, &weight);
    // SAFETY: its addresses are those of `memory`.
    unsafe { runtime.launch_graph(graph, products.bench.stream) }.unwrap();
    let got = products.read(&SHAPE, SHAPE.m * SHAPE.out_stride);
    assert!(expected(&SHAPE, &other, &weight).iter().all(|&(place, bits)| got[place] == bits));
}

#[test]
fn what_rocblas_can_not_do_is_said_before_a_step() {
    let fake = Fake::new();
    fake.add_rocblas(None);
    let products = Products::new(&fake);
    let gemm = products.bench.runtime.gemm().unwrap();
    let bf16 = GemmShape { input: GemmType::Bf16, output: GemmType::Bf16, ..SHAPE };
    for error in [gemm.prepare(&bf16, 1 << 16).unwrap_err(), products.run(&bf16).unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("rocblas_status_not_implemented") && text.contains("Bf16 [5, 12]"), "{text}");
    }
    let deep = GemmShape { k: 1024, x_stride: 1024, ..SHAPE };
    let text = gemm.prepare(&deep, 1000).unwrap_err().to_string();
    assert!(text.contains("needs 65536 bytes of workspace, there are 1000"), "{text}");
    gemm.prepare(&deep, 1 << 16).unwrap();
    products.run(&deep).unwrap();
    let huge = GemmShape { m: 1 << 31, ..SHAPE };
    assert!(matches!(products.run(&huge), Err(DeviceError::InvalidStep { .. })));
    // After an error a query does not stay open.
    gemm.prepare(&SHAPE, 0).unwrap();
}

#[test]
fn a_machine_without_rocblas_has_no_products_and_says_why() {
    let fake = Fake::new();
    let runtime = fake.open();
    let why = runtime.gemm().map(drop).unwrap_err();
    assert!(why.contains("librocblas.so is neither beside"), "{why}");
}

#[test]
fn a_rocblas_of_another_hip_is_refused() {
    let (fake, other) = (Fake::new(), Fake::new());
    fake.add_rocblas(Some(&other.path()));
    let runtime = fake.open();
    let why = runtime.gemm().map(drop).unwrap_err();
    assert!(
        why.contains("is linked with another HIP library") && why.contains(other.path().to_str().unwrap()),
        "{why}"
    );
    let same = Fake::new();
    same.add_rocblas(Some(&same.path()));
    assert!(same.open().gemm().is_ok());
}

#[test]
fn rocblas_gives_its_memory_back() {
    let fake = Fake::new();
    fake.add_rocblas(None);
    let runtime = fake.open();
    assert!(runtime.gemm().is_ok());
    assert_eq!(fake.get("allocations"), 1);
    drop(runtime);
    assert_eq!(fake.get("allocations"), 0);
}
