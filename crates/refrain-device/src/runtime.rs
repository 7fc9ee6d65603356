//! The trait behind which every kind of GPU lies: memory, streams, modules, launches, graphs. Thin on purpose: what
//! runs on it (kernels, their lowering, their cache) is the same for all and lives in `refrain-gpu`.

use crate::DeviceError;
use std::time::Duration;

/// An address in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The address `bytes` further.
    pub fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// A queue of work, executed in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

/// A mark in a stream, with a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(pub u64);

/// Loaded device code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleId(pub u64);

/// A kernel of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionId(pub u64);

/// Work that was recorded from a stream, ready to be launched as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub u64);

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// As the `--device` flag names it: `cuda`, `hip`, `sim`.
    pub kind: &'static str,
    /// Index among the devices of its kind.
    pub index: usize,
    /// Name for people, from the driver.
    pub name: String,
    /// What code must be compiled for: `sm_90a`, `gfx906`, `sim32`, `sim64`.
    pub arch: String,
    /// Driver or runtime version, for cache keys and reports.
    pub driver: String,
    /// Threads of a wave (warp): 32 or 64.
    pub wave: u32,
    /// Multiprocessors or compute units.
    pub processors: u32,
    /// Most bytes of shared memory that one block may have.
    pub shared_bytes: u32,
    /// Whether kernels may use `kx_mma_*` (`KX_MMA`).
    pub mma: bool,
    /// Whether launches may overlap the end of the previous kernel ([`Launch::overlap`]).
    pub overlap: bool,
}

/// Memory of a device as the driver reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemInfo {
    /// Bytes that nobody uses.
    pub free: usize,
    /// All bytes.
    pub total: usize,
}

/// What a compiled kernel needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelResources {
    /// Registers of a thread (vector registers on AMD).
    pub registers: u32,
    /// Static shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Local memory of a thread, bytes: spills and arrays that could not be kept in registers. Should be 0.
    pub local_bytes: u32,
}

/// How a kernel is launched; its arguments are a separate blob.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub function: FunctionId,
    /// Its name, for errors.
    pub name: &'a str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// May start before the previous kernel of the stream has ended (programmatic dependent launch): the kernel itself
    /// waits, by `kx_wait_for_previous`. Ignored where [`RuntimeInfo::overlap`] is false.
    pub overlap: bool,
}

/// Element types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GemmType {
    /// 32-bit floats, full precision (no TF32).
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// `out[m, n] = x[m, k] weight[n, k]^T` with f32 accumulation, all row-major with row strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Rows of `x` and `out`.
    pub m: usize,
    /// Rows of `weight`, columns of `out`.
    pub n: usize,
    /// Columns of `x` and `weight`.
    pub k: usize,
    /// Row stride of `x`.
    pub x_stride: usize,
    /// Row stride of `out`.
    pub out_stride: usize,
    /// Type of `x` and `weight`.
    pub input: GemmType,
    /// Type of `out`: the input's or F32.
    pub output: GemmType,
}

/// The operands of one product.
#[derive(Clone, Copy, Debug)]
pub struct GemmOperands {
    /// `[m, k]`.
    pub x: DevicePtr,
    /// `[n, k]`, rows without gaps.
    pub weight: DevicePtr,
    /// `[m, n]`.
    pub out: DevicePtr,
    /// Scratch memory.
    pub workspace: DevicePtr,
    /// Its size.
    pub workspace_bytes: usize,
}

/// A library of matrix products.
pub trait Gemm: Send + Sync {
    /// Name and version, for reports.
    fn describe(&self) -> String;

    /// Chooses and keeps an algorithm for a shape, so that the first product of this shape in a step doesn't pay.
    ///
    /// # Errors
    /// [`DeviceError`] when the library has none.
    fn prepare(&self, shape: &GemmShape, workspace_bytes: usize) -> Result<(), DeviceError>;

    /// Enqueues a product.
    ///
    /// # Safety
    /// The operands are device memory of the shape's sizes that stays until the stream has passed.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn run(&self, stream: StreamId, shape: &GemmShape, operands: &GemmOperands) -> Result<(), DeviceError>;

    /// Measures the library's best candidates for a shape on these operands and keeps the fastest; `out` and the
    /// scratch memory are overwritten. A library that can't choose keeps what [`Gemm::prepare`] gives. Not during a
    /// capture.
    ///
    /// # Safety
    /// As [`Gemm::run`]; nobody else uses the stream.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn tune(&self, stream: StreamId, shape: &GemmShape, operands: &GemmOperands) -> Result<(), DeviceError> {
        let _ = stream;
        self.prepare(shape, operands.workspace_bytes)
    }
}

/// Source text of one kernel file with what it is compiled with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelSource {
    /// Name of the file, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Files that it may include: name and text.
    pub headers: Vec<(String, String)>,
    /// `-D` name and value.
    pub defines: Vec<(String, String)>,
}

/// Compiled device code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledKernel {
    /// What [`Runtime::load_module`] takes.
    pub image: Vec<u8>,
    /// Warnings and the resource report.
    pub log: String,
}

/// Compiles kernels for a device.
pub trait Compiler: Send + Sync {
    /// Name, version and options: part of the cache's key.
    fn describe(&self) -> String;

    /// Compiles one source.
    ///
    /// # Errors
    /// [`DeviceError::Compile`] with the compiler's messages.
    fn compile(&self, source: &KernelSource, arch: &str) -> Result<CompiledKernel, DeviceError>;
}

/// A GPU, or the simulated one. Handles belong to the runtime that made them and may be used from any thread; work
/// enqueued in one stream runs in order.
///
/// Every method may give a [`DeviceError::Driver`], which names the call, the driver's code and its text, or
/// [`DeviceError::Lost`] when the device can't be used any more.
#[allow(clippy::missing_errors_doc)] // said once, above
pub trait Runtime: Send + Sync {
    /// What the device is.
    fn info(&self) -> &RuntimeInfo;

    /// Memory as the driver reports it now.
    fn memory(&self) -> Result<MemInfo, DeviceError>;

    /// Device memory with undefined contents, aligned to 256 bytes. `what` is for the error. Not during a capture.
    fn allocate(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, DeviceError>;

    /// Gives memory back.
    ///
    /// # Safety
    /// It is from [`Runtime::allocate`] and nothing uses it any more.
    unsafe fn free(&self, memory: DevicePtr);

    /// Host memory that copies can read and write while the CPU goes on.
    fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, DeviceError>;

    /// Gives it back.
    ///
    /// # Safety
    /// It is from [`Runtime::allocate_pinned`] and nothing uses it any more.
    unsafe fn free_pinned(&self, memory: *mut u8);

    /// A new stream.
    fn create_stream(&self) -> Result<StreamId, DeviceError>;

    /// Ends a stream, after its work.
    fn destroy_stream(&self, stream: StreamId);

    /// Waits until all work of the stream is done. Not during a capture.
    fn synchronize(&self, stream: StreamId) -> Result<(), DeviceError>;

    /// A new event.
    fn create_event(&self) -> Result<EventId, DeviceError>;

    /// Ends an event.
    fn destroy_event(&self, event: EventId);

    /// Marks the present end of a stream.
    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError>;

    /// Lets a stream wait for an event of another.
    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), DeviceError>;

    /// Whether the work before an event is done.
    fn query(&self, event: EventId) -> Result<bool, DeviceError>;

    /// Lets the calling thread wait for an event.
    fn synchronize_event(&self, event: EventId) -> Result<(), DeviceError>;

    /// Device time between two recorded events that have passed.
    fn elapsed(&self, from: EventId, to: EventId) -> Result<Duration, DeviceError>;

    /// Enqueues a copy from host memory.
    ///
    /// # Safety
    /// Both ranges exist and stay unchanged until the stream has passed.
    unsafe fn copy_to_device(
        &self,
        stream: StreamId,
        to: DevicePtr,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), DeviceError>;

    /// Enqueues a copy to host memory.
    ///
    /// # Safety
    /// Both ranges exist and nobody uses the target until the stream has passed.
    unsafe fn copy_to_host(
        &self,
        stream: StreamId,
        to: *mut u8,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), DeviceError>;

    /// Enqueues a copy within the device.
    ///
    /// # Safety
    /// Both ranges exist and don't overlap.
    unsafe fn copy_on_device(
        &self,
        stream: StreamId,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<(), DeviceError>;

    /// Enqueues filling a range with a byte.
    ///
    /// # Safety
    /// The range exists.
    unsafe fn fill(&self, stream: StreamId, to: DevicePtr, value: u8, bytes: usize) -> Result<(), DeviceError>;

    /// Loads compiled code. Not during a capture.
    fn load_module(&self, image: &[u8]) -> Result<ModuleId, DeviceError>;

    /// Unloads it.
    ///
    /// # Safety
    /// No function of it is used any more.
    unsafe fn unload_module(&self, module: ModuleId);

    /// Finds a kernel and lets it have up to `shared_bytes` of dynamic shared memory.
    fn function(&self, module: ModuleId, name: &str, shared_bytes: u32) -> Result<FunctionId, DeviceError>;

    /// What a kernel needs.
    fn resources(&self, function: FunctionId) -> Result<KernelResources, DeviceError>;

    /// Enqueues a kernel. `arguments` is its one argument struct, copied before the call returns. An empty grid is an
    /// error of the caller.
    ///
    /// # Safety
    /// The arguments are the struct that the kernel takes, and every address in it is valid until the stream has passed.
    unsafe fn launch(&self, stream: StreamId, launch: &Launch<'_>, arguments: &[u8]) -> Result<(), DeviceError>;

    /// Begins to record what is enqueued in the stream instead of executing it. Until the end of the capture nothing
    /// may be allocated, loaded or waited for. Each capture should have a stream of its own: with some versions of HIP a
    /// second capture of a stream goes wrong.
    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError>;

    /// Ends the recording and makes it launchable. A capture that went wrong is an error, never an empty graph.
    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError>;

    /// Nodes of a graph.
    fn graph_nodes(&self, graph: GraphId) -> Result<usize, DeviceError>;

    /// Replaces what a graph does by another recording of the same shape, which ends with it; false when the driver
    /// can't, and both are as they were.
    fn update_graph(&self, graph: GraphId, from: GraphId) -> Result<bool, DeviceError>;

    /// Enqueues a recorded graph.
    ///
    /// # Safety
    /// Every address in it is still valid.
    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError>;

    /// Ends a graph, once nothing runs it.
    fn destroy_graph(&self, graph: GraphId);

    /// The compiler for this device; `None` when none is installed, and why not.
    fn compiler(&self) -> Result<&dyn Compiler, DeviceError>;

    /// The vendor's matrix products, or why there are none: what was looked for and where, or what is wrong with what was
    /// found. The library is loaded at the first call.
    fn gemm(&self) -> Result<&dyn Gemm, &str>;
}
