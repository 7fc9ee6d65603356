//! The runtime trait over HIP: each operation is a call, the error of its code, and a note for captures.

use super::HipRuntime;
use crate::api::{STREAM_NON_BLOCKING, status};
use crate::arguments::Arguments;
use crate::compile;
use crate::graphs;
use crate::modules::handle;
use crate::rocblas::RocBlas;
use refrain_device::{
    Compiler, DeviceError, DevicePtr, EventId, FunctionId, Gemm, GraphId, KernelResources, Launch, MemInfo, ModuleId,
    Runtime, RuntimeInfo, StreamId,
};
use std::io;
use std::ptr::null_mut;
use std::time::Duration;

impl Runtime for HipRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemInfo, DeviceError> {
        let hip = self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the numbers are stored before the call returns.
        let code = unsafe { (hip.hipMemGetInfo)(&raw mut free, &raw mut total) };
        self.context.check(code, || "hipMemGetInfo".to_owned())?;
        Ok(MemInfo { free, total })
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, DeviceError> {
        let hip = self.context.enter()?;
        self.outside_of_captures("hipMalloc")?;
        let mut memory = null_mut();
        // SAFETY: the address is stored before the call returns.
        match unsafe { (hip.hipMalloc)(&raw mut memory, bytes.max(1)) } {
            status::OUT_OF_MEMORY => {
                let left = self.memory().map_or_else(
                    |error| error.to_string(),
                    |memory| format!("{} of {} bytes are free", memory.free, memory.total),
                );
                let source = io::Error::other(format!("{}: hipMalloc: out of memory, {left}", self.context.label));
                Err(DeviceError::OutOfMemory { bytes, what, source })
            }
            code => {
                self.context.check(code, || format!("hipMalloc of {bytes} bytes for {what}"))?;
                Ok(DevicePtr(memory as u64))
            }
        }
    }

    unsafe fn free(&self, memory: DevicePtr) {
        let Ok(hip) = self.context.enter() else { return };
        let memory = handle(memory.0);
        if !self.captures.keep_until_the_end(memory) {
            // SAFETY: from `allocate`, by contract.
            unsafe { (hip.hipFree)(memory) };
        }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, DeviceError> {
        let hip = self.context.enter()?;
        self.outside_of_captures("hipHostMalloc")?;
        let mut memory = null_mut();
        // SAFETY: the address is stored before the call returns.
        match unsafe { (hip.hipHostMalloc)(&raw mut memory, bytes.max(1), 0) } {
            status::OUT_OF_MEMORY => {
                let source = io::Error::other(format!("{}: hipHostMalloc: out of memory", self.context.label));
                Err(DeviceError::OutOfMemory { bytes, what: "pinned host memory", source })
            }
            code => {
                self.context.check(code, || format!("hipHostMalloc of {bytes} bytes"))?;
                Ok(memory.cast())
            }
        }
    }

    unsafe fn free_pinned(&self, memory: *mut u8) {
        if let Ok(hip) = self.context.enter() {
            // SAFETY: from `allocate_pinned`, by contract.
            unsafe { (hip.hipHostFree)(memory.cast()) };
        }
    }

    fn create_stream(&self) -> Result<StreamId, DeviceError> {
        let hip = self.context.enter()?;
        let mut stream = null_mut();
        // SAFETY: the handle is stored before the call returns.
        let code = unsafe { (hip.hipStreamCreateWithFlags)(&raw mut stream, STREAM_NON_BLOCKING) };
        self.context.check(code, || "hipStreamCreateWithFlags".to_owned())?;
        Ok(StreamId(stream as u64))
    }

    fn destroy_stream(&self, stream: StreamId) {
        let Ok(hip) = self.context.enter() else { return };
        if self.captures.records(stream) {
            // Whoever began the capture has given up on it.
            let _ = self.end_capture(stream).map(|graph| self.destroy_graph(graph));
        }
        if let Some(Ok(products)) = self.products.get() {
            products.leave(stream);
        }
        // SAFETY: from `create_stream`, destroyed once; HIP ends its work first.
        unsafe { (hip.hipStreamDestroy)(handle(stream.0)) };
    }

    fn synchronize(&self, stream: StreamId) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        let recorded = self.captures.records(stream);
        self.permit(!recorded, "hipStreamSynchronize", status::CAPTURE_UNSUPPORTED, "while the stream is captured")?;
        // SAFETY: a stream of this runtime.
        let code = unsafe { (hip.hipStreamSynchronize)(handle(stream.0)) };
        self.context.check(code, || format!("hipStreamSynchronize of stream {:#x}", stream.0))
    }

    fn create_event(&self) -> Result<EventId, DeviceError> {
        let hip = self.context.enter()?;
        let mut event = null_mut();
        // SAFETY: the handle is stored before the call returns; 0 is an event with a time.
        let code = unsafe { (hip.hipEventCreateWithFlags)(&raw mut event, 0) };
        self.context.check(code, || "hipEventCreateWithFlags".to_owned())?;
        Ok(EventId(event as u64))
    }

    fn destroy_event(&self, event: EventId) {
        if let Ok(hip) = self.context.enter() {
            // SAFETY: from `create_event`, destroyed once.
            unsafe { (hip.hipEventDestroy)(handle(event.0)) };
        }
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        // SAFETY: an event and a stream of this runtime.
        let code = unsafe { (hip.hipEventRecord)(handle(event.0), handle(stream.0)) };
        self.context.check(code, || "hipEventRecord".to_owned())?;
        self.captures.mark(event, stream);
        Ok(())
    }

    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        // SAFETY: as in `record`; flags must be 0.
        let code = unsafe { (hip.hipStreamWaitEvent)(handle(stream.0), handle(event.0), 0) };
        self.context.check(code, || "hipStreamWaitEvent".to_owned())?;
        self.captures.join(stream, event);
        Ok(())
    }

    fn query(&self, event: EventId) -> Result<bool, DeviceError> {
        let hip = self.context.enter()?;
        let captured = self.captures.has_event(event);
        self.permit(!captured, "hipEventQuery", status::CAPTURED_EVENT, "of an event that was captured")?;
        // SAFETY: an event of this runtime.
        match unsafe { (hip.hipEventQuery)(handle(event.0)) } {
            status::NOT_READY => Ok(false),
            code => self.context.check(code, || "hipEventQuery".to_owned()).map(|()| true),
        }
    }

    fn synchronize_event(&self, event: EventId) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        let captured = self.captures.has_event(event);
        self.permit(!captured, "hipEventSynchronize", status::CAPTURED_EVENT, "of an event that was captured")?;
        // SAFETY: an event of this runtime.
        let code = unsafe { (hip.hipEventSynchronize)(handle(event.0)) };
        self.context.check(code, || "hipEventSynchronize".to_owned())
    }

    fn elapsed(&self, from: EventId, to: EventId) -> Result<Duration, DeviceError> {
        let hip = self.context.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: events of this runtime; the number is stored before the call returns.
        let code = unsafe { (hip.hipEventElapsedTime)(&raw mut milliseconds, handle(from.0), handle(to.0)) };
        self.context.check(code, || "hipEventElapsedTime".to_owned())?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    unsafe fn copy_to_device(
        &self,
        stream: StreamId,
        to: DevicePtr,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        // SAFETY: by contract.
        let code = unsafe { (hip.hipMemcpyHtoDAsync)(handle(to.0), from.cast(), bytes, handle(stream.0)) };
        self.enqueue(stream, code, || format!("hipMemcpyHtoDAsync of {bytes} bytes"))
    }

    unsafe fn copy_to_host(
        &self,
        stream: StreamId,
        to: *mut u8,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        // SAFETY: by contract.
        let code = unsafe { (hip.hipMemcpyDtoHAsync)(to.cast(), handle(from.0), bytes, handle(stream.0)) };
        self.enqueue(stream, code, || format!("hipMemcpyDtoHAsync of {bytes} bytes"))
    }

    unsafe fn copy_on_device(
        &self,
        stream: StreamId,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        // SAFETY: by contract.
        let code = unsafe { (hip.hipMemcpyDtoDAsync)(handle(to.0), handle(from.0), bytes, handle(stream.0)) };
        self.enqueue(stream, code, || format!("hipMemcpyDtoDAsync of {bytes} bytes"))
    }

    unsafe fn fill(&self, stream: StreamId, to: DevicePtr, value: u8, bytes: usize) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        // SAFETY: by contract.
        let code = unsafe { (hip.hipMemsetD8Async)(handle(to.0), value, bytes, handle(stream.0)) };
        self.enqueue(stream, code, || format!("hipMemsetD8Async of {bytes} bytes"))
    }

    fn load_module(&self, image: &[u8]) -> Result<ModuleId, DeviceError> {
        self.outside_of_captures("hipModuleLoadData")?;
        self.modules.load(&self.context, image)
    }

    unsafe fn unload_module(&self, module: ModuleId) {
        self.modules.unload(&self.context, module);
    }

    fn function(&self, module: ModuleId, name: &str, shared_bytes: u32) -> Result<FunctionId, DeviceError> {
        self.modules.function(&self.context, &self.info, (module, name), shared_bytes)
    }

    fn resources(&self, function: FunctionId) -> Result<KernelResources, DeviceError> {
        self.modules.resources(function)
    }

    unsafe fn launch(&self, stream: StreamId, launch: &Launch<'_>, arguments: &[u8]) -> Result<(), DeviceError> {
        let hip = self.context.enter()?;
        self.modules.check(launch, arguments.len(), &self.info)?;
        let Launch { function, name, grid: [x, y, z], threads, shared_bytes, .. } = *launch;
        let arguments = Arguments::new(arguments);
        // SAFETY: a function of this runtime, the arguments it takes by contract; both stay until the call returns.
        let code = unsafe {
            let (function, stream, extra) = (handle(function.0), handle(stream.0), arguments.extra());
            (hip.hipModuleLaunchKernel)(function, x, y, z, threads, 1, 1, shared_bytes, stream, null_mut(), extra)
        };
        let result = self.context.check(code, || {
            let stream = stream.0;
            format!(
                "hipModuleLaunchKernel of {name}, grid [{x}, {y}, {z}], {threads} threads, {shared_bytes} bytes shared, \
                 stream {stream:#x}"
            )
        });
        // A recorded launch may refer to its arguments until the graph ends.
        self.captures.note(stream, 1, Some(arguments), &result);
        result
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError> {
        if let Some(Ok(products)) = self.products.get() {
            self.context.enter()?;
            products.enter(stream)?;
        }
        graphs::begin(&self.context, &self.captures, stream)
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError> {
        self.graphs.end(&self.context, &self.captures, stream)
    }

    fn graph_nodes(&self, graph: GraphId) -> Result<usize, DeviceError> {
        self.graphs.nodes(&self.context, graph)
    }

    fn update_graph(&self, graph: GraphId, from: GraphId) -> Result<bool, DeviceError> {
        self.graphs.update(&self.context, graph, from)
    }

    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError> {
        // SAFETY: by contract.
        unsafe { self.graphs.launch(&self.context, graph, stream) }
    }

    fn destroy_graph(&self, graph: GraphId) {
        self.graphs.destroy(&self.context, graph);
    }

    fn compiler(&self) -> Result<&dyn Compiler, DeviceError> {
        match self.compiler.get_or_init(|| compile::find(&self.context.driver, &self.options)) {
            Ok(compiler) => Ok(compiler.as_ref()),
            Err(why) => Err(compile::no_compiler(why.clone())),
        }
    }

    fn gemm(&self) -> Result<&dyn Gemm, &str> {
        let load = || RocBlas::load(self.context.clone(), self.captures.clone(), &self.options);
        match self.products.get_or_init(load) {
            Ok(products) => Ok(products),
            Err(why) => Err(why),
        }
    }
}
