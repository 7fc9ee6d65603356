//! The sampling defaults of a model.

use crate::ModelError;

/// generation_config.json: the defaults that its makers recommend. `do_sample` means nothing here: greedy decoding is
/// `temperature` 0, as in vLLM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Smallest probability, relative to the largest.
    pub min_p: Option<f32>,
    /// How many of the most likely tokens take part.
    pub top_k: Option<u32>,
    /// Factor against tokens that were seen before.
    pub repetition_penalty: Option<f32>,
    /// Longest answer in tokens.
    pub max_new_tokens: Option<u32>,
}

impl GenerationConfig {
    /// Reads the text of a generation_config.json.
    pub fn from_json(_json: &str) -> Result<GenerationConfig, ModelError> {
        todo!()
    }
}
