//! A model folder as a whole.

use std::sync::Arc;

use crate::{
    ChatTemplate, Checkpoint, GenerationConfig, ModelConfig, ModelError, ModelSource, SpecialTokens, Tokenizer,
};

/// Everything that is known about a model.
#[derive(Debug)]
pub struct Model {
    /// The name it is served under: the folder or repository as the user named it, or `tinytales`.
    pub name: String,
    /// Where it comes from.
    pub source: ModelSource,
    /// Its shape.
    pub config: ModelConfig,
    /// Its sampling defaults.
    pub generation: GenerationConfig,
    /// Its tokenizer; `None`: the folder has no tokenizer.json, and only token ids can be served.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Its chat template; `None`: it has none.
    pub template: Option<Arc<ChatTemplate>>,
    /// The special tokens that a chat template may name.
    pub special_tokens: SpecialTokens,
    /// Its weights, checked against the configuration.
    pub checkpoint: Checkpoint,
}

impl Model {
    /// Reads a model.
    pub fn open(_source: &ModelSource) -> Result<Model, ModelError> {
        todo!()
    }

    /// Every token that ends an answer, from config.json and generation_config.json, sorted.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        let mut ids = [self.config.eos_token_ids.as_slice(), &self.generation.eos_token_ids].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
