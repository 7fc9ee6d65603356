//! Work on the repository that cargo has no command for: kernels compiled on a machine without a GPU, into packs for
//! machines without a compiler, and against a budget of what they may need.
#![forbid(unsafe_code)]

pub mod architectures;
pub mod budget;
pub mod compile;
pub mod models;
pub mod pack;
pub mod variants;
