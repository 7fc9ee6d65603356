//! The operations of the [`Runtime`] trait, one driver call each.

use super::CudaRuntime;
use crate::bindings::driver::{
    CU_MEMHOSTALLOC_PORTABLE, CUevent, CUmodule, CUresult, CUstream, CUstream_flags, CUstreamCaptureMode,
};
use crate::gemm::CublasLt;
use crate::modules;
use crate::nvrtc::{self, NvrtcCompiler};
use refrain_device::{
    Compiler, DeviceError, DevicePtr, EventId, FunctionId, Gemm, GraphId, KernelResources, Launch, MemInfo, ModuleId,
    Runtime, RuntimeInfo, StreamId,
};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::time::Duration;

impl Runtime for CudaRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemInfo, DeviceError> {
        let mut memory = MemInfo { free: 0, total: 0 };
        let cuda = self.enter()?;
        // SAFETY: two numbers are stored.
        let code = unsafe { (cuda.cuMemGetInfo_v2)(&raw mut memory.free, &raw mut memory.total) };
        self.context.check(code, || "cuMemGetInfo_v2".to_owned())?;
        Ok(memory)
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, DeviceError> {
        let mut address = 0;
        let cuda = self.enter()?;
        // SAFETY: the address is stored before the call returns.
        let code = unsafe { (cuda.cuMemAlloc_v2)(&raw mut address, bytes) };
        if code == 0 { Ok(DevicePtr(address)) } else { Err(self.allocation("cuMemAlloc_v2", bytes, what, code)) }
    }

    unsafe fn free(&self, memory: DevicePtr) {
        if let Ok(cuda) = self.enter() {
            // SAFETY: by contract. An error could be told to nobody, here and below; the context's end frees all.
            unsafe { (cuda.cuMemFree_v2)(memory.0) };
        }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, DeviceError> {
        let mut address: *mut c_void = null_mut();
        let cuda = self.enter()?;
        // SAFETY: the address is stored before the call returns.
        let code = unsafe { (cuda.cuMemHostAlloc)(&raw mut address, bytes, CU_MEMHOSTALLOC_PORTABLE) };
        if code != 0 {
            return Err(self.allocation("cuMemHostAlloc", bytes, "pinned host memory", code));
        }
        Ok(address.cast())
    }

    unsafe fn free_pinned(&self, memory: *mut u8) {
        if let Ok(cuda) = self.enter() {
            // SAFETY: by contract.
            unsafe { (cuda.cuMemFreeHost)(memory.cast()) };
        }
    }

    fn create_stream(&self) -> Result<StreamId, DeviceError> {
        let mut stream: CUstream = null_mut();
        let cuda = self.enter()?;
        // Streams of ours don't wait for the default stream, which libraries may use.
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the handle is stored before the call returns.
        let code = unsafe { (cuda.cuStreamCreate)(&raw mut stream, flags) };
        self.context.check(code, || "cuStreamCreate".to_owned())?;
        Ok(StreamId(stream as u64))
    }

    fn destroy_stream(&self, stream: StreamId) {
        if let Ok(cuda) = self.enter() {
            // SAFETY: a stream of this runtime, whose work the driver lets end first.
            unsafe { (cuda.cuStreamDestroy_v2)(stream.0 as CUstream) };
        }
    }

    fn synchronize(&self, stream: StreamId) -> Result<(), DeviceError> {
        let cuda = self.enter()?;
        // SAFETY: a stream of this runtime.
        let code = unsafe { (cuda.cuStreamSynchronize)(stream.0 as CUstream) };
        self.context.check(code, || format!("cuStreamSynchronize of {:#x}", stream.0))
    }

    fn create_event(&self) -> Result<EventId, DeviceError> {
        let mut event: CUevent = null_mut();
        let cuda = self.enter()?;
        // SAFETY: the handle is stored before the call returns. Without flags the event has a time.
        let code = unsafe { (cuda.cuEventCreate)(&raw mut event, 0) };
        self.context.check(code, || "cuEventCreate".to_owned())?;
        Ok(EventId(event as u64))
    }

    fn destroy_event(&self, event: EventId) {
        if let Ok(cuda) = self.enter() {
            // SAFETY: an event of this runtime.
            unsafe { (cuda.cuEventDestroy_v2)(event.0 as CUevent) };
        }
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError> {
        let cuda = self.enter()?;
        // SAFETY: an event and a stream of this runtime.
        let code = unsafe { (cuda.cuEventRecord)(event.0 as CUevent, stream.0 as CUstream) };
        self.context.check(code, || format!("cuEventRecord in stream {:#x}", stream.0))
    }

    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), DeviceError> {
        let cuda = self.enter()?;
        // SAFETY: as in `record`.
        let code = unsafe { (cuda.cuStreamWaitEvent)(stream.0 as CUstream, event.0 as CUevent, 0) };
        self.context.check(code, || format!("cuStreamWaitEvent in stream {:#x}", stream.0))
    }

    fn query(&self, event: EventId) -> Result<bool, DeviceError> {
        const NOT_READY: u32 = CUresult::CUDA_ERROR_NOT_READY as u32;
        let cuda = self.enter()?;
        // SAFETY: an event of this runtime.
        match unsafe { (cuda.cuEventQuery)(event.0 as CUevent) } {
            NOT_READY => Ok(false),
            code => self.context.check(code, || "cuEventQuery".to_owned()).map(|()| true),
        }
    }

    fn synchronize_event(&self, event: EventId) -> Result<(), DeviceError> {
        let cuda = self.enter()?;
        // SAFETY: an event of this runtime.
        let code = unsafe { (cuda.cuEventSynchronize)(event.0 as CUevent) };
        self.context.check(code, || "cuEventSynchronize".to_owned())
    }

    fn elapsed(&self, from: EventId, to: EventId) -> Result<Duration, DeviceError> {
        let mut milliseconds = 0.0;
        let cuda = self.enter()?;
        // SAFETY: events of this runtime; the time is stored before the call returns.
        let code = unsafe { (cuda.cuEventElapsedTime)(&raw mut milliseconds, from.0 as CUevent, to.0 as CUevent) };
        self.context.check(code, || "cuEventElapsedTime".to_owned())?;
        // Of two events in the wrong order the time is negative.
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    unsafe fn copy_to_device(
        &self,
        stream: StreamId,
        to: DevicePtr,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        let cuda = self.enter()?;
        // SAFETY: by contract.
        let code = unsafe { (cuda.cuMemcpyHtoDAsync_v2)(to.0, from.cast(), bytes, stream.0 as CUstream) };
        self.context.check(code, || format!("cuMemcpyHtoDAsync_v2 of {bytes} bytes to {:#x}", to.0))
    }

    unsafe fn copy_to_host(
        &self,
        stream: StreamId,
        to: *mut u8,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        let cuda = self.enter()?;
        // SAFETY: by contract.
        let code = unsafe { (cuda.cuMemcpyDtoHAsync_v2)(to.cast(), from.0, bytes, stream.0 as CUstream) };
        self.context.check(code, || format!("cuMemcpyDtoHAsync_v2 of {bytes} bytes from {:#x}", from.0))
    }

    unsafe fn copy_on_device(
        &self,
        stream: StreamId,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        let cuda = self.enter()?;
        // SAFETY: by contract.
        let code = unsafe { (cuda.cuMemcpyDtoDAsync_v2)(to.0, from.0, bytes, stream.0 as CUstream) };
        self.context.check(code, || format!("cuMemcpyDtoDAsync_v2 of {bytes} bytes from {:#x} to {:#x}", from.0, to.0))
    }

    unsafe fn fill(&self, stream: StreamId, to: DevicePtr, value: u8, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        let cuda = self.enter()?;
        // SAFETY: by contract.
        let code = unsafe { (cuda.cuMemsetD8Async)(to.0, value, bytes, stream.0 as CUstream) };
        self.context.check(code, || format!("cuMemsetD8Async of {bytes} bytes at {:#x}", to.0))
    }

    fn load_module(&self, image: &[u8]) -> Result<ModuleId, DeviceError> {
        self.enter()?;
        modules::load(&self.context, image)
    }

    unsafe fn unload_module(&self, module: ModuleId) {
        if let Ok(cuda) = self.enter() {
            // SAFETY: by contract.
            unsafe { (cuda.cuModuleUnload)(module.0 as CUmodule) };
        }
    }

    fn function(&self, module: ModuleId, name: &str, shared_bytes: u32) -> Result<FunctionId, DeviceError> {
        self.enter()?;
        modules::function(&self.context, module, name, shared_bytes)
    }

    fn resources(&self, function: FunctionId) -> Result<KernelResources, DeviceError> {
        self.enter()?;
        modules::resources(&self.context, function)
    }

    unsafe fn launch(&self, stream: StreamId, launch: &Launch<'_>, arguments: &[u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: by contract, and the context is current.
        unsafe { modules::launch(&self.context, self.info.overlap, stream, launch, arguments) }
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let cuda = self.enter()?;
        // SAFETY: a stream of this runtime.
        let code = unsafe { (cuda.cuStreamBeginCapture_v2)(stream.0 as CUstream, mode) };
        self.context.check(code, || "cuStreamBeginCapture_v2".to_owned())
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError> {
        let mut graph = null_mut();
        let cuda = self.enter()?;
        // SAFETY: as above; the handle is stored before the call returns, null when the capture went wrong.
        let code = unsafe { (cuda.cuStreamEndCapture)(stream.0 as CUstream, &raw mut graph) };
        self.context.check(code, || "cuStreamEndCapture".to_owned())?;
        self.graphs.add(graph)
    }

    fn graph_nodes(&self, graph: GraphId) -> Result<usize, DeviceError> {
        self.graphs.nodes(graph)
    }

    fn update_graph(&self, graph: GraphId, from: GraphId) -> Result<bool, DeviceError> {
        self.enter()?;
        self.graphs.update(graph, from)
    }

    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: by contract.
        unsafe { self.graphs.launch(graph, stream.0 as CUstream) }
    }

    fn destroy_graph(&self, graph: GraphId) {
        if self.enter().is_ok() {
            self.graphs.destroy(graph);
        }
    }

    fn compiler(&self) -> Result<&dyn Compiler, DeviceError> {
        let load = || NvrtcCompiler::load_for(&self.options, Some(self.context.driver.major()));
        match self.compiler.get_or_init(load) {
            Ok(compiler) => Ok(compiler),
            Err(why) => Err(nvrtc::no_compiler(why.clone())),
        }
    }

    fn gemm(&self) -> Result<&dyn Gemm, &str> {
        match self.gemm.get_or_init(|| CublasLt::load(&self.context, &self.options)) {
            Ok(gemm) => Ok(gemm),
            Err(why) => Err(why),
        }
    }
}
