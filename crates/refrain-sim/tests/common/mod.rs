//! Kernels as text, run on simulated devices.
#![allow(dead_code)] // each test file uses its part

use refrain_device::{
    DeviceError, DeviceMemory, DevicePtr, FunctionId, KernelSource, Launch, ModuleId, Runtime, Stream,
};
use refrain_sim::{Order, SimOptions, SimRuntime};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A device with a stream.
pub struct Sim {
    pub sim: Arc<SimRuntime>,
    pub runtime: Arc<dyn Runtime>,
    pub stream: Stream,
}

/// A loaded kernel file with one kernel.
pub struct Kernel {
    pub name: &'static str,
    pub module: ModuleId,
    pub function: FunctionId,
}

/// The text of a kernel file with its dialect.
pub fn source(text: &str) -> KernelSource {
    let header = |name: &str| {
        let path = refrain_testkit::workspace_root().join("kernels").join(name);
        (name.to_owned(), std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    KernelSource {
        name: "test.cu".to_owned(),
        text: format!("#include \"kx.h\"\n{text}"),
        headers: vec![header("kx.h"), header("kx_sim.h"), header("kx_fp8.h")],
        defines: Vec::new(),
    }
}

/// Every width and order.
pub fn all_options() -> Vec<SimOptions> {
    let orders = [Order::Forward, Order::Reverse, Order::Shuffled(1), Order::Shuffled(2)];
    let options = |wave| orders.map(|order| SimOptions { wave, order, ..SimOptions::default() });
    [options(32), options(64)].concat()
}

impl Sim {
    /// `None` where there is no C++ compiler: the test is to return, why is said.
    pub fn new(options: SimOptions) -> Option<Sim> {
        let sim = SimRuntime::new(options);
        if let Err(why) = sim.compiler() {
            refrain_testkit::skip("a test of the simulated GPU", &why.to_string());
            return None;
        }
        let runtime: Arc<dyn Runtime> = sim.clone();
        let stream = Stream::new(&runtime).unwrap();
        Some(Sim { sim, runtime, stream })
    }

    pub fn kernel(&self, name: &'static str, text: &str) -> Kernel {
        self.kernel_with(name, text, 64 << 10)
    }

    pub fn kernel_with(&self, name: &'static str, text: &str, shared_bytes: u32) -> Kernel {
        let module = self.sim.load_module(&self.image(text)).unwrap_or_else(|error| panic!("{error}"));
        Kernel { name, module, function: self.sim.function(module, name, shared_bytes).unwrap() }
    }

    /// The compiled text; each is compiled once by a test process.
    fn image(&self, text: &str) -> Vec<u8> {
        static IMAGES: Mutex<BTreeMap<(String, String), Vec<u8>>> = Mutex::new(BTreeMap::new());
        let key = (self.sim.info().arch.clone(), text.to_owned());
        if let Some(image) = IMAGES.lock().unwrap().get(&key) {
            return image.clone();
        }
        let image = self.sim.compiler().unwrap().compile(&source(text), &self.sim.info().arch);
        let image = image.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(image.log, "", "the kernel gives warnings");
        IMAGES.lock().unwrap().insert(key, image.image.clone());
        image.image
    }

    pub fn launch(&self, kernel: &Kernel, grid: u32, threads: u32, arguments: &[u64]) -> Result<(), DeviceError> {
        self.launch_with(kernel, [grid, 1, 1], threads, 0, arguments)
    }

    pub fn launch_with(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        arguments: &[u64],
    ) -> Result<(), DeviceError> {
        let function = kernel.function;
        let launch = Launch { function, name: kernel.name, grid, threads, shared_bytes, overlap: false };
        let bytes: Vec<u8> = arguments.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // SAFETY: tests pass what their kernels take.
        unsafe { self.sim.launch(self.stream.id(), &launch, &bytes) }
    }

    pub fn room<T>(&self, count: usize) -> DeviceMemory {
        DeviceMemory::new(&self.runtime, count * size_of::<T>(), "test").unwrap()
    }

    pub fn upload<T: Copy>(&self, values: &[T]) -> DeviceMemory {
        let memory = self.room::<T>(values.len());
        self.write(memory.base(), values);
        memory
    }

    pub fn write<T: Copy>(&self, to: DevicePtr, values: &[T]) {
        let bytes = size_of_val(values);
        // SAFETY: the values exist until the copy, which is done at once.
        unsafe { self.sim.copy_to_device(self.stream.id(), to, values.as_ptr().cast(), bytes) }.unwrap();
    }

    pub fn read<T: Copy + Default>(&self, memory: &DeviceMemory) -> Vec<T> {
        let mut values = vec![T::default(); memory.bytes() / size_of::<T>()];
        let (to, bytes) = (values.as_mut_ptr().cast(), memory.bytes());
        // SAFETY: as long as the memory, and plain numbers.
        unsafe { self.sim.copy_to_host(self.stream.id(), to, memory.base(), bytes) }.unwrap();
        values
    }
}

/// Repeatable numbers in -1 .. 1.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub fn float(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }
}
