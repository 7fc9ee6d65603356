//! AMD and Hygon GPUs behind the runtime trait: HIP, hipRTC and rocBLAS, loaded at run time.
//!
//! Nothing of ROCm or DTK is needed to build or start the program. [`devices`] says which GPUs there are and why one can't
//! be used, [`HipRuntime`] is one of them. [`ClangCompiler`] compiles kernels with any clang, [`CodeObject`] reads what a
//! compiled kernel needs; both work without a device.

mod api;
mod arguments;
mod capture;
mod clang;
mod code_object;
mod compile;
mod context;
mod devices;
mod driver;
mod graphs;
mod hiprtc;
mod library;
mod modules;
mod rocblas;
mod runtime;
mod toolkit;

pub use clang::ClangCompiler;
pub use code_object::{CodeObject, CodeObjectError, KernelMetadata};
pub use devices::{DeviceSummary, devices};
pub use hiprtc::HiprtcCompiler;
pub use runtime::HipRuntime;
pub use toolkit::HipOptions;
