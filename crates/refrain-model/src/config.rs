//! The shape of a model, as config.json gives it.

use crate::{Dtype, ModelError};

/// What a decoder layer mixes tokens with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Gated DeltaNet: a recurrent state of fixed size.
    Gdn,
    /// Softmax attention over the whole context.
    FullAttention,
}

/// The full attention layers.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads, a divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Leading dimensions of a head that are rotated, even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Whether q_proj also gives a gate for the output: each head's rows are `[query, gate]`.
    pub output_gate: bool,
}

/// The Gated DeltaNet layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GdnConfig {
    /// Query and key heads.
    pub num_key_heads: usize,
    /// Value heads, a multiple of `num_key_heads`.
    pub num_value_heads: usize,
    /// Width of a query or key head.
    pub key_head_dim: usize,
    /// Width of a value head.
    pub value_head_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
}

/// A model's shape, checked: no size is zero or absurd, heads divide, products don't overflow.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding and the head. Can be larger than the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// The layers in order.
    pub layers: Vec<LayerKind>,
    /// Heads of the full attention layers.
    pub attention: AttentionConfig,
    /// Heads of the GDN layers; `None` when there are none.
    pub gdn: Option<GdnConfig>,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The type the weights are said to have.
    pub dtype: Option<Dtype>,
    /// The class that Hugging Face transformers would load.
    pub architecture: String,
}

impl ModelConfig {
    /// Reads the text of a config.json.
    pub fn from_json(_json: &str) -> Result<ModelConfig, ModelError> {
        todo!()
    }
}
