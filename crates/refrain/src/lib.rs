//! The command line of Refrain, and [`load::load`], which turns a model and flags into a running engine.
#![forbid(unsafe_code)]

pub mod cli;
pub mod load;
pub mod trace;
