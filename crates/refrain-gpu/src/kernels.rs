//! One file for each group of kernels: the structs of their arguments (the twins of those in `kernels/*.cu`, checked by
//! size when they are launched on the simulated GPU), and functions that give the launches of an op on some operands.

pub mod attention;
pub mod elementwise;
pub mod gdn;
pub mod generated;
pub mod kv_append;
pub mod linear;
pub mod norm;
pub mod qk_norm_rope;
pub mod qk_norm_rope_append;
mod rows;
pub mod sample;
