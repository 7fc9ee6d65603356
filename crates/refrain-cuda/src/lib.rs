//! NVIDIA GPUs behind [`refrain_device::Runtime`]: the driver API, NVRTC and cuBLASLt, all of them found and loaded at
//! run time. Where there is no CUDA everything builds and starts, and says what is missing when it is asked for.
//!
//! - [`devices`] lists the GPUs, [`CudaRuntime::open`] opens one.
//! - [`NvrtcCompiler`] compiles kernels, also where there is no GPU; [`kernel_resources`] reads its report.
//! - Matrix products ([`refrain_device::Gemm`]) are cuBLASLt's, with an algorithm kept for each shape.
//!
//! The functions of the libraries lie in tables (`bindings`) that are filled when a library is found (`library`).

mod bindings;
mod context;
mod devices;
mod driver;
mod gemm;
mod graphs;
mod image;
mod library;
mod modules;
mod nvrtc;
mod ptxas;
mod runtime;

pub use devices::{DeviceSummary, devices};
pub use library::CudaOptions;
pub use nvrtc::NvrtcCompiler;
pub use ptxas::kernel_resources;
pub use runtime::CudaRuntime;
