//! Sampling parameters that a request doesn't name.

use refrain_engine::SamplingParams;
use refrain_model::GenerationConfig;

/// What a request gets for sampling parameters that it leaves out, as vLLM takes them from `generation_config.json`
/// (`--generation-config auto`). The server's options may replace them.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingDefaults {
    /// See [`SamplingParams::temperature`].
    pub temperature: f32,
    /// See [`SamplingParams::top_p`].
    pub top_p: f32,
    /// See [`SamplingParams::top_k`].
    pub top_k: u32,
    /// See [`SamplingParams::min_p`].
    pub min_p: f32,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: f32,
    /// Most tokens that any request may generate (`max_new_tokens`); as in vLLM a limit, not a default.
    pub max_new_tokens: Option<usize>,
}

impl Default for SamplingDefaults {
    /// vLLM's neutral defaults (`--generation-config vllm`).
    fn default() -> Self {
        Self::from(&GenerationConfig::default())
    }
}

impl From<&GenerationConfig> for SamplingDefaults {
    fn from(config: &GenerationConfig) -> Self {
        let neutral = SamplingParams::default();
        Self {
            temperature: config.temperature.unwrap_or(neutral.temperature),
            top_p: config.top_p.unwrap_or(neutral.top_p),
            top_k: config.top_k.unwrap_or(neutral.top_k),
            min_p: config.min_p.unwrap_or(neutral.min_p),
            repetition_penalty: config.repetition_penalty.unwrap_or(neutral.repetition_penalty),
            max_new_tokens: config.max_new_tokens.map(|tokens| tokens as usize),
        }
    }
}

impl SamplingDefaults {
    /// Sampling parameters of a request that names none.
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            ..SamplingParams::default()
        }
    }
}
