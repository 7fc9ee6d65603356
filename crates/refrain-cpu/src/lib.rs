//! The CPU backend: runs a program on AVX2, AVX-512 or AMX.
//!
//! Weights are packed once at load (`matrix`), products read them through one driver (`linear`), everything else is
//! in `kernels`; [`CpuBackend`] resolves a program to a list of calls and runs it on a fixed set of threads
//! (`pool`). Results don't depend on the number of threads or on what else is in a step.

mod backend;
mod isa;
mod kernels;
mod layout;
mod linear;
mod load;
mod matrix;
mod memory;
mod pool;
mod simd;
mod threads;

pub use backend::{CpuBackend, CpuOptions, processor_name};
pub use isa::Isa;
pub use layout::{compiled, footprint};
pub use memory::{UsableMemory, usable_memory};
pub use simd::SimdLevel;
pub use threads::default_threads;

/// What the matrix products do with f32 activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Activations stay f32 and weights, of whatever type, are widened: exact products, f32 sums.
    F32,
    /// With BF16 weights, activations are rounded to bf16 at the entry of each product where the processor multiplies
    /// bf16 (AMX, AVX512-BF16); elsewhere as [`Precision::F32`].
    Bf16,
}
