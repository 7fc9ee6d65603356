//! What a device can do at best, measured: the denominators of every report.

use crate::{Extent, Kernel, KernelOptions, Kernels, LaunchSpec, ProductsChoice};
use bytemuck::{Pod, Zeroable};
use refrain_device::{
    DeviceError, DeviceMemory, Event, FunctionId, GemmOperands, GemmShape, GemmType, Launch, Runtime, Stream,
};
use std::sync::Arc;
use std::time::Instant;

/// What was measured on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Bytes/s that a kernel reads from device memory.
    pub read_bandwidth: f64,
    /// Bytes/s, read and written together, of a copy within the device.
    pub copy_bandwidth: f64,
    /// FLOP/s of a large BF16 product by the vendor's library; `None` without one.
    pub bf16_flops: Option<f64>,
    /// Host seconds to enqueue a kernel.
    pub launch_seconds: f64,
    /// Device seconds from one empty kernel to the next.
    pub kernel_seconds: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ReadArgs {
    from: u64,
    out: u64,
    count: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NothingArgs {
    unused: u64,
}

/// Memory that [`measure`] takes where there is enough: far more than any cache.
pub const MEASURED_BYTES: usize = 2 << 30;

const THREADS: u32 = 256;

/// Edge of the square product: large enough that the library is at its best.
const EDGE: usize = 8192;

/// Measures a device with kernels from these places; products only where the library's may be used. Takes about a
/// second, and `bytes` of memory or what is free of it.
///
/// # Errors
/// [`DeviceError`], also when there is too little free memory for a meaningful size.
pub fn measure(
    runtime: &Arc<dyn Runtime>,
    bytes: usize,
    kernels: KernelOptions,
    products: ProductsChoice,
) -> Result<Measured, DeviceError> {
    let bytes = bytes.min(runtime.memory()?.free / 2) / 512 * 512;
    let bench = Bench {
        memory: DeviceMemory::new(runtime, bytes, "measuring the device")?,
        stream: Stream::new(runtime)?,
        kernels: Kernels::with(runtime.clone(), kernels),
        runtime: runtime.clone(),
    };
    let base = bench.memory.base();
    bench.fill_with_random_numbers()?;

    // The last 256 bytes take the result that is never written.
    let count = (bytes - 256) / 16;
    let arguments = ReadArgs { from: base.0, out: base.offset(bytes - 256).0, count: count as u64 };
    let [read, nothing] = measure_kernels();
    let read = LaunchSpec::new(read, Extent::Fixed(runtime.info().processors * 8), &arguments);
    let function = bench.kernels.get(&read.kernel)?.function;
    let read_seconds = bench.median(3, || bench.launch(&read, function))?;

    let half = bytes / 2;
    // SAFETY: both halves are in the range.
    let copy = || unsafe { runtime.copy_on_device(bench.stream.id(), base, base.offset(half), half) };
    let copy_seconds = bench.median(3, copy)?;

    let nothing = LaunchSpec::new(nothing, Extent::Fixed(1), &NothingArgs { unused: 0 });
    let function = bench.kernels.get(&nothing.kernel)?.function;
    let kernel_seconds = bench.median(LAUNCHES, || bench.launch(&nothing, function))?;
    let begin = Instant::now();
    for _ in 0..LAUNCHES {
        bench.launch(&nothing, function)?;
    }
    let launch_seconds = begin.elapsed().as_secs_f64() / LAUNCHES as f64;
    bench.stream.synchronize()?;

    Ok(Measured {
        read_bandwidth: (count * 16) as f64 / read_seconds,
        copy_bandwidth: 2.0 * half as f64 / copy_seconds,
        bf16_flops: if products == ProductsChoice::Own { None } else { bench.product()? },
        launch_seconds,
        kernel_seconds,
    })
}

/// The kernels that [`measure`] launches, for packs made ahead: one that reads, one that does nothing.
pub fn measure_kernels() -> [Kernel; 2] {
    [Kernel::new("measure.cu", "read_all", THREADS), Kernel::new("measure.cu", "nothing", 32)]
}

/// Launches of a chain: few enough that the queue takes them all.
const LAUNCHES: usize = 500;

struct Bench {
    runtime: Arc<dyn Runtime>,
    memory: DeviceMemory,
    stream: Stream,
    kernels: Kernels,
}

impl Bench {
    /// Fills the memory with small BF16 numbers: devices are faster on constants than on data.
    fn fill_with_random_numbers(&self) -> Result<(), DeviceError> {
        let mut state = 1u32;
        let word = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Sign and mantissa at random, exponents that give 2^-6 .. 2^-5.
            state.rotate_left(11) & 0x807f_807f | 0x3c80_3c80
        };
        let words: Vec<u32> = (0..4 << 20).map(word).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let mut done = 0;
        while done < self.memory.bytes() {
            let size = bytes.len().min(self.memory.bytes() - done);
            let to = self.memory.base().offset(done);
            // SAFETY: the range is reserved; the source lives until the stream has passed.
            unsafe { self.runtime.copy_to_device(self.stream.id(), to, bytes.as_ptr(), size)? };
            done += size;
        }
        self.stream.synchronize()
    }

    fn launch(&self, spec: &LaunchSpec, function: FunctionId) -> Result<(), DeviceError> {
        let grid = spec.grid.map(|extent| match extent {
            Extent::Fixed(blocks) => blocks,
            Extent::Each { .. } => unreachable!("nothing here depends on a step"),
        });
        let launch = Launch {
            function,
            name: spec.kernel.entry,
            grid,
            threads: spec.kernel.threads,
            shared_bytes: 0,
            overlap: true,
        };
        // SAFETY: the arguments name ranges of `memory`.
        unsafe { self.runtime.launch(self.stream.id(), &launch, &spec.arguments) }
    }

    /// Device seconds of one call of `work`: the median of five runs of `repetitions` calls, after one.
    fn median(&self, repetitions: usize, work: impl Fn() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
        let (begin, end) = (Event::new(&self.runtime)?, Event::new(&self.runtime)?);
        work()?;
        let mut seconds = Vec::new();
        for _ in 0..5 {
            self.runtime.record(begin.id(), self.stream.id())?;
            for _ in 0..repetitions {
                work()?;
            }
            self.runtime.record(end.id(), self.stream.id())?;
            self.runtime.synchronize_event(end.id())?;
            seconds.push(self.runtime.elapsed(begin.id(), end.id())?.as_secs_f64() / repetitions as f64);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[2].max(1e-12))
    }

    /// FLOP/s of a square product, where there is a library that has it, and room.
    fn product(&self) -> Result<Option<f64>, DeviceError> {
        const WORKSPACE: usize = 32 << 20;
        let matrix = EDGE * EDGE * 2;
        let gemm = match self.runtime.gemm() {
            Ok(gemm) if self.memory.bytes() >= 3 * matrix + WORKSPACE => gemm,
            _ => return Ok(None),
        };
        let at = |index: usize| self.memory.base().offset(index * matrix);
        let shape = GemmShape {
            m: EDGE,
            n: EDGE,
            k: EDGE,
            x_stride: EDGE,
            out_stride: EDGE,
            input: GemmType::Bf16,
            output: GemmType::Bf16,
        };
        let operands =
            GemmOperands { x: at(0), weight: at(1), out: at(2), workspace: at(3), workspace_bytes: WORKSPACE };
        // SAFETY: four ranges of `memory`.
        let product = || unsafe { gemm.run(self.stream.id(), &shape, &operands) };
        match gemm.prepare(&shape, WORKSPACE).and_then(|()| self.median(3, product)) {
            Ok(seconds) => Ok(Some(2.0 * (EDGE as f64).powi(3) / seconds)),
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => {
                tracing::warn!("products are not measured: {error}");
                Ok(None)
            }
        }
    }
}
