//! Everything that is read from a model folder: configuration, weights, tokenizer, chat template.
#![deny(unsafe_code)]

mod checkpoint;
mod config;
mod detokenizer;
mod dtype;
mod embedded;
mod error;
mod files;
mod generation;
mod mapping;
mod model;
mod safetensors;
mod source;
mod template;
#[cfg(test)]
mod test_support;
mod tokenizer;
mod weights;

pub use checkpoint::{Checkpoint, Skipped};
pub use config::{AttentionConfig, GdnConfig, LayerKind, ModelConfig};
pub use detokenizer::Detokenizer;
pub use dtype::Dtype;
pub use error::{ModelError, WeightProblem};
pub use generation::GenerationConfig;
pub use model::Model;
pub use safetensors::{StoredTensor, parse_safetensors_header};
pub use source::{HubAccess, ModelSource, ResolveOptions};
pub use template::{ChatInput, ChatTemplate, SpecialTokens, TemplateError};
pub use tokenizer::Tokenizer;
pub use weights::{TensorView, WeightSource};
