//! The CPU backend: runs a program on AVX2, AVX-512 or AMX.

#![allow(dead_code)] // removed once the kernels use it

mod kernels;
mod memory;
mod simd;

pub use memory::{UsableMemory, usable_memory};
pub use simd::SimdLevel;
