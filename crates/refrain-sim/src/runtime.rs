//! The runtime trait over the simulated device.

use crate::SimOptions;
use crate::capture::Node;
use crate::compiler::SimCompiler;
use crate::device::{Device, spend};
use crate::driver::{INVALID_HANDLE, INVALID_VALUE};
use crate::module::Loaded;
use refrain_device::{
    Compiler, DeviceError, DevicePtr, EventId, FunctionId, Gemm, GraphId, KernelResources, Launch, MemInfo, ModuleId,
    Runtime, RuntimeInfo, StreamId,
};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// What a simulated device has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimCounters {
    /// Kernels that were launched one by one, outside of captures.
    pub launches: u64,
    /// Graphs that were launched.
    pub graph_launches: u64,
    /// Kernels that ran, launched one by one or in graphs.
    pub kernels: u64,
    /// Copies that were done, in any direction.
    pub copies: u64,
    /// Modules that were loaded.
    pub modules: u64,
    /// Captures that were begun.
    pub captures: u64,
    /// Allocations of device memory that succeeded.
    pub allocations: u64,
    /// Switches between threads of blocks.
    pub switches: u64,
}

/// A simulated GPU.
pub struct SimRuntime {
    info: RuntimeInfo,
    options: SimOptions,
    device: Mutex<Device>,
    compiler: OnceLock<Result<SimCompiler, DeviceError>>,
}

impl SimRuntime {
    /// A device with nothing on it.
    ///
    /// # Panics
    /// Unless the wave is 32 or 64.
    pub fn new(options: SimOptions) -> Arc<SimRuntime> {
        assert!(matches!(options.wave, 32 | 64), "a wave has 32 or 64 threads, not {}", options.wave);
        // As much as an H100, or a gfx906.
        let shared_bytes = if options.wave == 32 { 227 << 10 } else { 64 << 10 };
        let info = RuntimeInfo {
            kind: "sim",
            index: 0,
            name: format!("simulated GPU, waves of {}", options.wave),
            arch: format!("sim{}", options.wave),
            driver: env!("CARGO_PKG_VERSION").to_owned(),
            wave: options.wave,
            processors: options.processors,
            shared_bytes,
            mma: options.wave == 32,
            overlap: true,
        };
        let device = Mutex::new(Device::new(options.clone(), shared_bytes));
        Arc::new(SimRuntime { info, options, device, compiler: OnceLock::new() })
    }

    /// What it has done so far.
    pub fn counters(&self) -> SimCounters {
        self.lock().counters
    }

    /// Lets the allocation after the next `after` ones fail, once.
    pub fn fail_allocation(&self, after: u64) {
        self.lock().allocations_left = Some(after);
    }

    /// Lets the capture after the next `after` ones fail when it ends, once.
    pub fn fail_capture(&self, after: u64) {
        self.lock().captures_left = Some(after);
    }

    /// Lets the device be lost by the kernel after the next `after` ones, in a graph or not.
    pub fn lose_device(&self, after: u64) {
        self.lock().launches_left = Some(after);
    }

    fn lock(&self) -> MutexGuard<'_, Device> {
        // No method leaves the device half changed where it could panic.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device, unless it is lost.
    fn alive(&self, call: &str) -> Result<MutexGuard<'_, Device>, DeviceError> {
        let device = self.lock();
        device.alive(call)?;
        Ok(device)
    }

    /// The device, unless it is lost or a stream records.
    fn settled(&self, call: &str) -> Result<MutexGuard<'_, Device>, DeviceError> {
        let mut device = self.alive(call)?;
        device.streams.forbid_capture(call)?;
        Ok(device)
    }

    /// Records the work or does it.
    unsafe fn enqueue(&self, stream: StreamId, node: Node, call: &str) -> Result<(), DeviceError> {
        let mut device = self.alive(call)?;
        match device.streams.record_node(stream, node, || call.to_owned())? {
            // SAFETY: by the contract of what was enqueued.
            Some(node) => unsafe { device.enqueue(node) },
            None => Ok(()),
        }
    }
}

impl Runtime for SimRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemInfo, DeviceError> {
        let device = self.alive("asking for memory")?;
        Ok(MemInfo { free: device.memory.free_bytes(), total: device.memory.total() })
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, DeviceError> {
        self.lock().allocate(bytes, what)
    }

    unsafe fn free(&self, memory: DevicePtr) {
        let mut device = self.lock();
        // As with a driver, memory that is given back during a capture breaks it and stays.
        if device.streams.forbid_capture("freeing memory").is_ok() {
            let _ = device.catch_up(None);
            let known = device.memory.free(memory.0);
            debug_assert!(known, "{memory:?} was not allocated");
        }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, DeviceError> {
        let call = format!("allocating {bytes} bytes of pinned memory");
        let mut device = self.settled(&call)?;
        let memory = device.pinned.allocate(bytes.max(1), "pinned memory")?;
        memory.map(|memory| memory.0 as *mut u8).ok_or_else(|| INVALID_VALUE.error(call, "more than any host has"))
    }

    unsafe fn free_pinned(&self, memory: *mut u8) {
        let mut device = self.lock();
        if device.streams.forbid_capture("freeing pinned memory").is_ok() {
            let _ = device.catch_up(None);
            let known = device.pinned.free(memory as u64);
            debug_assert!(known, "{memory:?} was not allocated");
        }
    }

    fn create_stream(&self) -> Result<StreamId, DeviceError> {
        Ok(self.alive("making a stream")?.streams.create_stream())
    }

    fn destroy_stream(&self, stream: StreamId) {
        self.lock().streams.destroy_stream(stream);
    }

    fn synchronize(&self, stream: StreamId) -> Result<(), DeviceError> {
        let call = "waiting for a stream";
        let mut device = self.settled(call)?;
        device.streams.records(stream, call)?;
        device.catch_up(None)
    }

    fn create_event(&self) -> Result<EventId, DeviceError> {
        Ok(self.alive("making an event")?.streams.create_event())
    }

    fn destroy_event(&self, event: EventId) {
        self.lock().streams.destroy_event(event);
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError> {
        let call = "recording an event";
        let mut device = self.alive(call)?;
        device.streams.record_event(event, stream)?;
        if device.options.late && !device.streams.records(stream, call)? {
            device.late.mark(event);
        }
        Ok(())
    }

    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), DeviceError> {
        self.alive("waiting for an event")?.streams.wait(stream, event)
    }

    fn query(&self, event: EventId) -> Result<bool, DeviceError> {
        let call = "asking for an event";
        let mut device = self.settled(call)?;
        device.streams.passed(event, call)?;
        Ok(device.late.is_done(event))
    }

    fn synchronize_event(&self, event: EventId) -> Result<(), DeviceError> {
        let call = "waiting for an event on the host";
        let mut device = self.settled(call)?;
        device.streams.passed(event, call)?;
        device.catch_up(Some(event))
    }

    fn elapsed(&self, from: EventId, to: EventId) -> Result<Duration, DeviceError> {
        self.settled("taking the time between two events")?.streams.elapsed(from, to)
    }

    unsafe fn copy_to_device(
        &self,
        stream: StreamId,
        to: DevicePtr,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        // SAFETY: by contract.
        unsafe { self.enqueue(stream, Node::CopyToDevice { to, from, bytes }, "copying to the device") }
    }

    unsafe fn copy_to_host(
        &self,
        stream: StreamId,
        to: *mut u8,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        // SAFETY: by contract.
        unsafe { self.enqueue(stream, Node::CopyToHost { to, from, bytes }, "copying to the host") }
    }

    unsafe fn copy_on_device(
        &self,
        stream: StreamId,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        // SAFETY: by contract.
        unsafe { self.enqueue(stream, Node::CopyOnDevice { to, from, bytes }, "copying on the device") }
    }

    unsafe fn fill(&self, stream: StreamId, to: DevicePtr, value: u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: by contract.
        unsafe { self.enqueue(stream, Node::Fill { to, value, bytes }, "filling memory") }
    }

    fn load_module(&self, image: &[u8]) -> Result<ModuleId, DeviceError> {
        let mut device = self.settled("loading a module")?;
        let loaded = Loaded::new(image, self.info.wave)?;
        let module = ModuleId(device.streams.number());
        device.modules.insert(module, loaded);
        device.counters.modules += 1;
        Ok(module)
    }

    unsafe fn unload_module(&self, module: ModuleId) {
        let mut device = self.lock();
        if device.streams.forbid_capture("unloading a module").is_ok() {
            let _ = device.catch_up(None);
            device.functions.retain(|_, function| function.module != module);
            device.modules.remove(&module);
        }
    }

    fn function(&self, module: ModuleId, name: &str, shared_bytes: u32) -> Result<FunctionId, DeviceError> {
        self.lock().function(module, name, shared_bytes)
    }

    fn resources(&self, function: FunctionId) -> Result<KernelResources, DeviceError> {
        let call = "asking for a kernel's resources";
        let device = self.alive(call)?;
        let function = device.functions.get(&function).ok_or_else(|| INVALID_HANDLE.error(call, "no such function"))?;
        let image = device.modules.get(&function.module).ok_or_else(|| INVALID_HANDLE.error(call, "no such module"))?;
        Ok(KernelResources { registers: 0, shared_bytes: image.shared_bytes(), local_bytes: 0 })
    }

    unsafe fn launch(&self, stream: StreamId, launch: &Launch<'_>, arguments: &[u8]) -> Result<(), DeviceError> {
        let mut device = self.alive(launch.name)?;
        let node = Node::Kernel(device.kernel_node(launch, arguments)?);
        let Some(node) = device.streams.record_node(stream, node, || format!("launch of {}", launch.name))? else {
            return Ok(());
        };
        device.counters.launches += 1;
        spend(self.options.launch_latency);
        // SAFETY: by contract.
        unsafe { device.enqueue(node) }
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError> {
        let mut device = self.alive("beginning a capture")?;
        device.streams.begin_capture(stream)?;
        device.counters.captures += 1;
        Ok(())
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError> {
        self.lock().end_capture(stream)
    }

    fn graph_nodes(&self, graph: GraphId) -> Result<usize, DeviceError> {
        let call = "counting a graph's nodes";
        let device = self.alive(call)?;
        device.graphs.get(&graph).map(|nodes| nodes.len()).ok_or_else(|| INVALID_HANDLE.error(call, "no such graph"))
    }

    fn update_graph(&self, graph: GraphId, from: GraphId) -> Result<bool, DeviceError> {
        let call = "updating a graph";
        let mut device = self.alive(call)?;
        let (Some(old), Some(new)) = (device.graphs.get(&graph), device.graphs.get(&from)) else {
            return Err(INVALID_HANDLE.error(call, "no such graph"));
        };
        if graph == from || old.len() != new.len() || !old.iter().zip(new.iter()).all(|(old, new)| old.same_kind(new)) {
            return Ok(false);
        }
        let nodes = device.graphs.get(&from).expect("found above").clone();
        // Both have as many nodes, so the memory of one is given back.
        device.destroy_graph(from);
        device.graphs.insert(graph, nodes);
        Ok(true)
    }

    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError> {
        let call = "launching a graph";
        let mut device = self.alive(call)?;
        let Some(nodes) = device.graphs.get(&graph).cloned() else {
            return Err(INVALID_HANDLE.error(call, "no such graph"));
        };
        if device.streams.records(stream, call)? {
            for node in nodes.iter().cloned() {
                device.streams.record_node(stream, node, || call.to_owned())?;
            }
            return Ok(());
        }
        device.counters.graph_launches += 1;
        spend(self.options.launch_latency);
        // SAFETY: by contract.
        nodes.iter().cloned().try_for_each(|node| unsafe { device.enqueue(node) })
    }

    fn destroy_graph(&self, graph: GraphId) {
        self.lock().destroy_graph(graph);
    }

    fn compiler(&self) -> Result<&dyn Compiler, DeviceError> {
        let found = self.compiler.get_or_init(|| SimCompiler::find(self.options.compiler.as_deref()));
        match found {
            Ok(compiler) => Ok(compiler),
            Err(DeviceError::Unavailable { device, why }) => Err(DeviceError::Unavailable { device, why: why.clone() }),
            Err(other) => Err(DeviceError::Unavailable { device: "sim", why: other.to_string() }),
        }
    }

    fn gemm(&self) -> Result<&dyn Gemm, &str> {
        Err("there is no library of products for simulated GPUs")
    }
}
