//! Everything between a program and a GPU that is the same for all of them: the kernels with the structs of their
//! arguments, what they are compiled from and kept as, the block that tells a step to the device, and the backend that
//! lowers ops to launches. What differs between CUDA, HIP and the simulated GPU lies behind
//! [`refrain_device::Runtime`].

mod backend;
pub mod check;
mod graphs;
mod kernel;
pub mod kernels;
mod layout;
pub mod loader;
mod lower;
mod marks;
mod measure;
mod ops;
mod products;
mod programs;
mod sources;
mod step_block;
mod supported;
mod target;
mod turn;
mod upload;

pub use backend::{GpuBackend, GpuOptions};
pub use graphs::{DEFAULT_GRAPH_MEMORY_BUDGET, GraphOptions, check_sizes, default_decode_sizes, default_prefill_sizes};
pub use kernel::{Count, Extent, Kernel, LaunchSpec, Rows, cache_define, dtype_define};
pub use layout::{code_bytes, footprint};
pub use loader::{KernelOptions, Kernels, LoadedKernel, PrepareReport, kernel_source};
pub use lower::required_kernels;
pub use measure::{MEASURED_BYTES, Measured, measure, measure_kernels};
pub use products::{Products, ProductsChoice};
pub use sources::sources_digest;
pub use step_block::{StepCounts, StepLayout, StepPointers};
pub use supported::check_program;
pub use target::Target;
