//! Everything that is read from a model folder: configuration, weights, tokenizer, chat template.
#![deny(unsafe_code)]

mod checkpoint;
mod config;
mod detokenizer;
mod dtype;
mod error;
mod generation;
mod model;
mod safetensors;
mod source;
mod template;
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
pub use source::{ModelSource, ResolveOptions};
pub use template::{ChatInput, ChatTemplate, SpecialTokens, TemplateError};
pub use tokenizer::Tokenizer;
pub use weights::{TensorView, WeightSource};
