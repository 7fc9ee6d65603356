//! Everything that is read from a model folder: configuration, weights, tokenizer, chat template.
#![deny(unsafe_code)]

mod dtype;
mod weights;

pub use dtype::Dtype;
pub use weights::{TensorView, WeightSource};
