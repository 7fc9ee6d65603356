//! The runtime on a real GPU. Without one the tests say that they skip, and pass; with REFRAIN_TEST_CUDA=1 they fail
//! instead. Kernels are in the binary, so it runs on a machine that has neither the sources nor Rust: it needs the
//! driver, and NVRTC and cuBLASLt where the loader finds them (LD_LIBRARY_PATH) or in /usr/local/cuda*.

mod cost;
mod errors;
mod gemm;
mod graphs;
mod launches;
mod memory;

use refrain_cuda::{CudaOptions, CudaRuntime, NvrtcCompiler, devices, kernel_resources};
use refrain_device::{
    Compiler, DeviceError, DeviceMemory, DevicePtr, FunctionId, KernelSource, Launch, Runtime, Stream, StreamId,
};
use std::io::Write;
use std::sync::{Arc, OnceLock};

/// The first GPU. `None` where there is none: the test that asked is to return, why is said.
fn runtime() -> Option<Arc<dyn Runtime>> {
    static OPENED: OnceLock<Result<Arc<CudaRuntime>, String>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| match devices(&CudaOptions::default()) {
        Ok(_) => Ok(CudaRuntime::open(0, &CudaOptions::default()).unwrap_or_else(|error| panic!("{error}"))),
        Err(error) => {
            // Past the capture of test output. A machine of the continuous integration has no GPU, so nothing fails.
            let _ = writeln!(std::io::stderr(), "\nSKIPPED all tests on a CUDA device: {error}\n");
            Err(error.to_string())
        }
    });
    match opened {
        Ok(runtime) => Some(runtime.clone()),
        Err(why) => {
            assert!(std::env::var_os("REFRAIN_TEST_CUDA").is_none(), "this test needs a GPU: {why}");
            None
        }
    }
}

/// A kernel file of the dialect.
fn source(text: &str, name: &str) -> KernelSource {
    KernelSource {
        name: format!("{name}.cu"),
        text: format!("#include \"kx.h\"\n{text}"),
        headers: vec![
            ("kx.h".to_owned(), include_str!("../../../../kernels/kx.h").to_owned()),
            ("kx_cuda.h".to_owned(), include_str!("../../../../kernels/kx_cuda.h").to_owned()),
        ],
        defines: Vec::new(),
    }
}

/// A kernel file of the dialect, compiled and loaded.
fn kernel(runtime: &Arc<dyn Runtime>, text: &str, name: &str, shared_bytes: u32) -> FunctionId {
    let compiler = runtime.compiler().unwrap_or_else(|error| panic!("{error}"));
    let compiled =
        compiler.compile(&source(text, name), &runtime.info().arch).unwrap_or_else(|error| panic!("{error}"));
    // Modules stay loaded: the process ends soon.
    let module = runtime.load_module(&compiled.image).unwrap_or_else(|error| panic!("{error}"));
    runtime.function(module, name, shared_bytes).unwrap_or_else(|error| panic!("{error}"))
}

/// `out[i] = out[i] * factor + x[i]`; calls that are out of order or missing show in the numbers. The next kernel may
/// start at once, so that nothing but its own wait keeps it from reading too early.
const ACCUMULATE: &str = "
struct AccumulateArgs { const f32* x; f32* out; f32 factor; u32 count; };
KX_KERNEL(accumulate, AccumulateArgs, 256) {
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 i = kx_block_x() * 256 + kx_tid();
    if (i < args.count) args.out[i] = args.out[i] * args.factor + args.x[i];
}";

/// A struct of arguments as C lays it out.
#[derive(Default)]
struct Arguments(Vec<u8>);

impl Arguments {
    fn pointer(mut self, address: DevicePtr) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0.extend(address.0.to_le_bytes());
        self
    }

    fn word(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(self, value: f32) -> Self {
        self.word(value.to_bits())
    }

    /// The blob, as long as C makes a struct that holds a pointer.
    fn blob(mut self) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0
    }
}

/// A launch of `accumulate` over `x` and `out`.
struct Accumulate {
    function: FunctionId,
    count: u32,
    arguments: Vec<u8>,
}

impl Accumulate {
    fn new(function: FunctionId, x: &DeviceMemory, out: &DeviceMemory, factor: f32, count: usize) -> Accumulate {
        let count = count as u32;
        let arguments = Arguments::default().pointer(x.base()).pointer(out.base()).float(factor).word(count).blob();
        Accumulate { function, count, arguments }
    }

    fn enqueue(&self, runtime: &Arc<dyn Runtime>, stream: StreamId, overlap: bool) -> Result<(), DeviceError> {
        let launch = Launch {
            function: self.function,
            name: "accumulate",
            grid: [self.count.div_ceil(256), 1, 1],
            threads: 256,
            shared_bytes: 0,
            overlap,
        };
        // SAFETY: the struct of the kernel; the tests keep the memory until the stream has passed.
        unsafe { runtime.launch(stream, &launch, &self.arguments) }
    }
}

/// Device memory with these contents.
fn upload(runtime: &Arc<dyn Runtime>, stream: &Stream, bytes: &[u8]) -> DeviceMemory {
    let memory = DeviceMemory::new(runtime, bytes.len(), "a test").unwrap();
    // SAFETY: the target is as large, and the copy has passed when the call returns.
    unsafe { runtime.copy_to_device(stream.id(), memory.base(), bytes.as_ptr(), bytes.len()) }.unwrap();
    stream.synchronize().unwrap();
    memory
}

fn upload_f32(runtime: &Arc<dyn Runtime>, stream: &Stream, values: &[f32]) -> DeviceMemory {
    upload(runtime, stream, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

fn download(runtime: &Arc<dyn Runtime>, stream: &Stream, memory: &DeviceMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.bytes()];
    // SAFETY: as in `upload`.
    unsafe { runtime.copy_to_host(stream.id(), bytes.as_mut_ptr(), memory.base(), bytes.len()) }.unwrap();
    stream.synchronize().unwrap();
    bytes
}

fn download_f32(runtime: &Arc<dyn Runtime>, stream: &Stream, memory: &DeviceMemory) -> Vec<f32> {
    let bytes = download(runtime, stream, memory);
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Numbers that are easily told apart.
fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 1000) as f32 * 0.25 - 100.0).collect()
}

/// Where there is no GPU, the kernels of these tests are at least known to compile.
#[test]
fn kernels_of_these_tests_compile() {
    if runtime().is_some() {
        return; // the tests compile them
    }
    let Some(folder) = refrain_testkit::nvrtc_dir() else { return };
    let compiler = NvrtcCompiler::load(&CudaOptions { library_dirs: vec![folder] }).unwrap();
    let kernels = [
        (ACCUMULATE, "accumulate"),
        (launches::MANY, "many"),
        (launches::SHARED, "through_shared"),
        (errors::TRAP, "accumulate"),
    ];
    for (text, name) in kernels {
        for arch in ["sm_80", "sm_90a"] {
            let compiled = compiler.compile(&source(text, name), arch).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(kernel_resources(&compiled.log)[0].0, name);
        }
    }
}
