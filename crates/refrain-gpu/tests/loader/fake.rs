//! A runtime that can load modules and nothing else, and a compiler whose images are the text of what it was given.

use refrain_device::{
    CompiledKernel, Compiler, DeviceError, DevicePtr, EventId, FunctionId, Gemm, GraphId, KernelResources,
    KernelSource, Launch, MemInfo, ModuleId, Runtime, RuntimeInfo, StreamId,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Counts what it compiles; the constant `WRONG` does not compile.
pub struct FakeCompiler {
    pub version: &'static str,
    pub compiled: AtomicUsize,
}

impl Compiler for FakeCompiler {
    fn describe(&self) -> String {
        self.version.to_owned()
    }

    fn compile(&self, source: &KernelSource, arch: &str) -> Result<CompiledKernel, DeviceError> {
        self.compiled.fetch_add(1, Ordering::Relaxed);
        // Long enough that a second thread would come meanwhile.
        std::thread::sleep(Duration::from_millis(2));
        if source.defines.iter().any(|(name, _)| name == "WRONG") {
            let (kernel, arch, compiler) = (source.name.clone(), arch.to_owned(), self.version.to_owned());
            let log = format!("{kernel}(7): error: WRONG is wrong");
            return Err(DeviceError::Compile { kernel, arch, compiler, log });
        }
        let image = format!("{} {:?} for {arch} by {}", source.name, source.defines, self.version);
        Ok(CompiledKernel { image: image.into_bytes(), log: String::new() })
    }
}

/// What it was asked for, in order.
#[derive(Default)]
pub struct Asked {
    pub images: Vec<Vec<u8>>,
    pub functions: Vec<(ModuleId, String, u32)>,
}

pub struct FakeRuntime {
    pub info: RuntimeInfo,
    pub compiler: Option<FakeCompiler>,
    pub asked: Mutex<Asked>,
    /// Images that contain this are refused.
    pub refused: Option<&'static str>,
}

impl FakeRuntime {
    pub fn new(arch: &str, compiler: Option<&'static str>) -> FakeRuntime {
        let info = RuntimeInfo {
            kind: "fake",
            index: 0,
            name: "Fake".to_owned(),
            arch: arch.to_owned(),
            driver: "1".to_owned(),
            wave: 32,
            processors: 1,
            shared_bytes: 1 << 16,
            mma: false,
            overlap: false,
        };
        let compiler = compiler.map(|version| FakeCompiler { version, compiled: AtomicUsize::new(0) });
        FakeRuntime { info, compiler, asked: Mutex::default(), refused: None }
    }

    pub fn shared(self) -> Arc<FakeRuntime> {
        Arc::new(self)
    }

    pub fn compiled(&self) -> usize {
        self.compiler.as_ref().map_or(0, |compiler| compiler.compiled.load(Ordering::Relaxed))
    }

    fn error(&self, call: &str) -> DeviceError {
        DeviceError::Driver { device: "fake:0".to_owned(), call: call.to_owned(), code: 209, text: "no".to_owned() }
    }
}

impl Runtime for FakeRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn load_module(&self, image: &[u8]) -> Result<ModuleId, DeviceError> {
        if self.refused.is_some_and(|refused| String::from_utf8_lossy(image).contains(refused)) {
            return Err(self.error("load a module"));
        }
        let mut asked = self.asked.lock().unwrap();
        asked.images.push(image.to_vec());
        Ok(ModuleId(asked.images.len() as u64))
    }

    fn function(&self, module: ModuleId, name: &str, shared_bytes: u32) -> Result<FunctionId, DeviceError> {
        let mut asked = self.asked.lock().unwrap();
        asked.functions.push((module, name.to_owned(), shared_bytes));
        Ok(FunctionId(asked.functions.len() as u64))
    }

    fn resources(&self, _: FunctionId) -> Result<KernelResources, DeviceError> {
        Ok(KernelResources::default())
    }

    fn compiler(&self) -> Result<&dyn Compiler, DeviceError> {
        let none = || DeviceError::Unavailable { device: "compiler of fake", why: "it is not installed".to_owned() };
        self.compiler.as_ref().map(|compiler| compiler as &dyn Compiler).ok_or_else(none)
    }

    fn gemm(&self) -> Result<&dyn Gemm, &str> {
        Err("it has none")
    }

    // What has nothing to do with kernels does not work.

    fn memory(&self) -> Result<MemInfo, DeviceError> {
        Err(self.error("memory"))
    }
    fn allocate(&self, _: usize, _: &'static str) -> Result<DevicePtr, DeviceError> {
        Err(self.error("allocate"))
    }
    unsafe fn free(&self, _: DevicePtr) {}
    fn allocate_pinned(&self, _: usize) -> Result<*mut u8, DeviceError> {
        Err(self.error("allocate_pinned"))
    }
    unsafe fn free_pinned(&self, _: *mut u8) {}
    fn create_stream(&self) -> Result<StreamId, DeviceError> {
        Err(self.error("create_stream"))
    }
    fn destroy_stream(&self, _: StreamId) {}
    fn synchronize(&self, _: StreamId) -> Result<(), DeviceError> {
        Err(self.error("synchronize"))
    }
    fn create_event(&self) -> Result<EventId, DeviceError> {
        Err(self.error("create_event"))
    }
    fn destroy_event(&self, _: EventId) {}
    fn record(&self, _: EventId, _: StreamId) -> Result<(), DeviceError> {
        Err(self.error("record"))
    }
    fn wait(&self, _: StreamId, _: EventId) -> Result<(), DeviceError> {
        Err(self.error("wait"))
    }
    fn query(&self, _: EventId) -> Result<bool, DeviceError> {
        Err(self.error("query"))
    }
    fn synchronize_event(&self, _: EventId) -> Result<(), DeviceError> {
        Err(self.error("synchronize_event"))
    }
    fn elapsed(&self, _: EventId, _: EventId) -> Result<Duration, DeviceError> {
        Err(self.error("elapsed"))
    }
    unsafe fn copy_to_device(&self, _: StreamId, _: DevicePtr, _: *const u8, _: usize) -> Result<(), DeviceError> {
        Err(self.error("copy_to_device"))
    }
    unsafe fn copy_to_host(&self, _: StreamId, _: *mut u8, _: DevicePtr, _: usize) -> Result<(), DeviceError> {
        Err(self.error("copy_to_host"))
    }
    unsafe fn copy_on_device(&self, _: StreamId, _: DevicePtr, _: DevicePtr, _: usize) -> Result<(), DeviceError> {
        Err(self.error("copy_on_device"))
    }
    unsafe fn fill(&self, _: StreamId, _: DevicePtr, _: u8, _: usize) -> Result<(), DeviceError> {
        Err(self.error("fill"))
    }
    unsafe fn unload_module(&self, _: ModuleId) {}
    unsafe fn launch(&self, _: StreamId, _: &Launch<'_>, _: &[u8]) -> Result<(), DeviceError> {
        Err(self.error("launch"))
    }
    fn begin_capture(&self, _: StreamId) -> Result<(), DeviceError> {
        Err(self.error("begin_capture"))
    }
    fn end_capture(&self, _: StreamId) -> Result<GraphId, DeviceError> {
        Err(self.error("end_capture"))
    }
    fn graph_nodes(&self, _: GraphId) -> Result<usize, DeviceError> {
        Err(self.error("graph_nodes"))
    }
    fn update_graph(&self, _: GraphId, _: GraphId) -> Result<bool, DeviceError> {
        Err(self.error("update_graph"))
    }
    unsafe fn launch_graph(&self, _: GraphId, _: StreamId) -> Result<(), DeviceError> {
        Err(self.error("launch_graph"))
    }
    fn destroy_graph(&self, _: GraphId) {}
}
