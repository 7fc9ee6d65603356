//! What every backend shares: the description of one step, the [`Backend`] trait that executes it, the memory
//! arena, and device errors; and the [`Runtime`] trait behind which every kind of GPU lies. No backend lives here.
//!
//! A backend is given a program and weights when it is loaded (each backend has its own constructor) and from then on
//! sees only [`Step`]s. Everything that changes from step to step is in the step; a backend allocates nothing while it
//! executes one.

mod arena;
mod backend;
mod cell;
mod error;
mod graphs;
mod owned;
mod process;
mod runtime;
mod sampling;
mod step;
mod trace;

pub use arena::Arena;
pub use backend::{Backend, DeviceInfo, Footprint, KernelReport, PoolSizes, StepLimits, StepOutput};
pub use cell::{Cell, Part, Replay, StepShape};
pub use error::DeviceError;
pub use graphs::{GraphMode, GraphReport, RecordedCell, RefusedCell};
pub use owned::{DeviceMemory, Event, Graph, PinnedMemory, Stream};
pub use process::end_process;
pub use runtime::{
    CompiledKernel, Compiler, DevicePtr, EventId, FunctionId, Gemm, GemmOperands, GemmShape, GemmType, GraphId,
    KernelResources, KernelSource, Launch, MemInfo, ModuleId, Runtime, RuntimeInfo, StreamId,
};
pub use sampling::{Adjustment, Chosen, NoToken, RankedToken, RowSampling, SamplingLimits};
pub use step::{BLOCK_TOKENS, Carried, SCAN_CHUNK, Segment, Step};
pub use trace::{HostSpan, Lane, Span, Trace};
