//! The shape of a model, as config.json gives it.
//!
//! Field names and the defaults for absent fields are those of `Qwen3_5TextConfig` in Hugging Face transformers
//! (`models/qwen3_5/configuration_qwen3_5.py`).

pub(crate) mod fields;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;

use self::fields::{Fields, parse_object};
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
    /// Taps of the causal convolution, at least 2.
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
    /// The layers in order, at least one.
    pub layers: Vec<LayerKind>,
    /// Heads of the full attention layers.
    pub attention: AttentionConfig,
    /// Heads of the GDN layers; `None` when there are none.
    pub gdn: Option<GdnConfig>,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end an answer, sorted; each below `vocab_size`.
    pub eos_token_ids: Vec<u32>,
    /// The type the weights are said to have.
    pub dtype: Option<Dtype>,
    /// The class that Hugging Face transformers would load.
    pub architecture: String,
}

/// The architectures that can run, with the `model_type` that stands for each when `architectures` is absent.
const ARCHITECTURES: [(&str, &str); 2] =
    [("Qwen3_5ForConditionalGeneration", "qwen3_5"), ("Qwen3_5ForCausalLM", "qwen3_5_text")];

/// No real model comes near these; below them no product of three sizes overflows 64 bits.
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_LAYERS: usize = 4096;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
const MAX_CONV_KERNEL: usize = 64;
const MAX_POSITIONS: usize = 1 << 30;

impl ModelConfig {
    /// Reads the text of a config.json.
    pub fn from_json(json: &str) -> Result<ModelConfig, ModelError> {
        ModelConfig::from_json_of(json, Path::new("config.json"))
    }

    /// Reads the text of a config.json; `file` is for error messages.
    pub(crate) fn from_json_of(json: &str, file: &Path) -> Result<ModelConfig, ModelError> {
        let map = parse_object(json, file)?;
        let top = Fields::new(file, &map);
        let architecture = architecture(&top)?;
        // The published checkpoints nest the language model; text-only exports don't.
        let nested = top.object("text_config")?;
        if nested.is_none() && architecture == ARCHITECTURES[0].0 {
            return Err(
                top.error("text_config", "is missing: this architecture keeps the language model's sizes there")
            );
        }
        let text = nested.as_ref().unwrap_or(&top);
        refuse_unsupported(&top)?;
        refuse_unsupported(text)?;

        let num_layers = text.size_or("num_hidden_layers", 32, 1..=MAX_LAYERS)?;
        let layers = layers(text, num_layers)?;
        let has_gdn = layers.contains(&LayerKind::Gdn);
        let vocab_size = text.size_or("vocab_size", 248_320, 1..=MAX_VOCAB)?;
        let hidden_size = text.size_or("hidden_size", 4096, 1..=MAX_WIDTH)?;
        // transformers ties by the outer object's flag; the inner one counts where there is no other.
        let tie_word_embeddings = match top.flag("tie_word_embeddings")? {
            Some(tied) => tied,
            None => text.flag("tie_word_embeddings")?.unwrap_or(false),
        };
        let dtype = match dtype(&top)? {
            Some(dtype) => Some(dtype),
            None => dtype(text)?,
        };
        let mut eos_token_ids = top.token_ids("eos_token_id", vocab_size)?;
        eos_token_ids.extend(text.token_ids("eos_token_id", vocab_size)?);
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        Ok(ModelConfig {
            hidden_size,
            intermediate_size: text.size_or("intermediate_size", 12_288, 1..=MAX_WIDTH)?,
            vocab_size,
            max_position_embeddings: text.size_or("max_position_embeddings", 32_768, 1..=MAX_POSITIONS)?,
            layers,
            attention: attention(text)?,
            gdn: if has_gdn { Some(gdn(text)?) } else { None },
            rms_norm_eps: text.number_or("rms_norm_eps", 1e-6, 1e-20..=1.0)? as f32,
            tie_word_embeddings,
            eos_token_ids,
            dtype,
            architecture,
        })
    }
}

/// The first entry of `architectures` that can run.
fn architecture(top: &Fields<'_>) -> Result<String, ModelError> {
    let supported = ARCHITECTURES.map(|(name, _)| name).join(", ");
    if let Some(value) = top.get("architectures") {
        let names: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        return match names.iter().find(|name| ARCHITECTURES.iter().any(|(known, _)| known == *name)) {
            Some(name) => Ok((*name).to_string()),
            None => Err(top.error("architectures", format!("{value} is not supported; supported: {supported}"))),
        };
    }
    let Some(model_type) = top.text("model_type")? else {
        return Err(top.error("architectures", format!("is missing; supported: {supported}")));
    };
    match ARCHITECTURES.iter().find(|(_, known)| *known == model_type) {
        Some((name, _)) => Ok((*name).to_string()),
        None => {
            let types = ARCHITECTURES.map(|(_, model_type)| model_type).join(", ");
            Err(top.error("model_type", format!("`{model_type}` is not supported; supported: {types}")))
        }
    }
}

/// Refuses what would change the mathematics.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), ModelError> {
    if let Some(quantization) = fields.get("quantization_config") {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        let problem = format!("quantized weights (method `{method}`) are not supported; supported: BF16, F16, F32");
        return Err(fields.error("quantization_config", problem));
    }
    if fields.flag("attention_bias")? == Some(true) {
        return Err(fields.error("attention_bias", "true is not supported; supported: false"));
    }
    fields.one_of("hidden_act", &["silu", "swish"])?;
    fields.one_of("output_gate_type", &["silu", "swish"])
}

/// `layer_types`, or every `full_attention_interval`-th layer with full attention.
fn layers(text: &Fields<'_>, num_layers: usize) -> Result<Vec<LayerKind>, ModelError> {
    let Some(types) = text.get("layer_types") else {
        let interval = text.size_or("full_attention_interval", 4, 1..=MAX_LAYERS)?;
        let kind =
            |layer: usize| if layer.is_multiple_of(interval) { LayerKind::FullAttention } else { LayerKind::Gdn };
        return Ok((1..=num_layers).map(kind).collect());
    };
    let Some(types) = types.as_array() else {
        return Err(text.error("layer_types", "is not a list"));
    };
    if types.len() != num_layers {
        let problem = format!("has {} entries, but num_hidden_layers is {num_layers}", types.len());
        return Err(text.error("layer_types", problem));
    }
    let kind = |(i, value): (usize, &Value)| match value.as_str() {
        Some("linear_attention") => Ok(LayerKind::Gdn),
        Some("full_attention") => Ok(LayerKind::FullAttention),
        _ => {
            let problem = format!("{value} is not supported; supported: linear_attention, full_attention");
            Err(text.error(&format!("layer_types[{i}]"), problem))
        }
    };
    types.iter().enumerate().map(kind).collect()
}

fn attention(text: &Fields<'_>) -> Result<AttentionConfig, ModelError> {
    let num_heads = text.size_or("num_attention_heads", 16, 1..=MAX_HEADS)?;
    let num_kv_heads = text.size_or("num_key_value_heads", 4, 1..=MAX_HEADS)?;
    if !num_heads.is_multiple_of(num_kv_heads) {
        let problem = format!("{num_kv_heads} does not divide num_attention_heads {num_heads}");
        return Err(text.error("num_key_value_heads", problem));
    }
    let head_dim = text.size_or("head_dim", 256, 1..=MAX_HEAD_DIM)?;
    text.product("num_attention_heads x head_dim", num_heads * head_dim, MAX_WIDTH)?;
    let rope = rope(text)?;
    // Python's int() cuts.
    let rotary_dim = (head_dim as f64 * rope.partial_rotary_factor) as usize;
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        let problem = format!("gives {rotary_dim} rotated dimensions of head_dim {head_dim}; an even number is needed");
        return Err(text.error("partial_rotary_factor", problem));
    }
    Ok(AttentionConfig {
        num_heads,
        num_kv_heads,
        head_dim,
        rotary_dim,
        rope_theta: rope.theta as f32,
        output_gate: text.flag("attn_output_gate")?.unwrap_or(true),
    })
}

struct Rope {
    theta: f64,
    partial_rotary_factor: f64,
}

/// `rope_parameters` (or its older name `rope_scaling`), with the flat fields for what they lack. Sections for image
/// positions (`mrope_section`) change nothing for text.
fn rope(text: &Fields<'_>) -> Result<Rope, ModelError> {
    let nested = match text.object("rope_scaling")? {
        Some(older) => Some(older),
        None => text.object("rope_parameters")?,
    };
    let mut theta = text.number("rope_theta", 1.0..=1e15)?;
    let mut factor = text.number("partial_rotary_factor", 1e-6..=1.0)?;
    if let Some(nested) = nested {
        nested.one_of("rope_type", &["default", "mrope"])?;
        nested.one_of("type", &["default", "mrope"])?;
        theta = nested.number("rope_theta", 1.0..=1e15)?.or(theta);
        factor = nested.number("partial_rotary_factor", 1e-6..=1.0)?.or(factor);
    }
    Ok(Rope { theta: theta.unwrap_or(10_000.0), partial_rotary_factor: factor.unwrap_or(0.25) })
}

fn gdn(text: &Fields<'_>) -> Result<GdnConfig, ModelError> {
    let num_key_heads = text.size_or("linear_num_key_heads", 16, 1..=MAX_HEADS)?;
    let num_value_heads = text.size_or("linear_num_value_heads", 32, 1..=MAX_HEADS)?;
    if !num_value_heads.is_multiple_of(num_key_heads) {
        let problem = format!("{num_value_heads} is not a multiple of linear_num_key_heads {num_key_heads}");
        return Err(text.error("linear_num_value_heads", problem));
    }
    let key_head_dim = text.size_or("linear_key_head_dim", 128, 1..=MAX_HEAD_DIM)?;
    let value_head_dim = text.size_or("linear_value_head_dim", 128, 1..=MAX_HEAD_DIM)?;
    text.product("linear_num_key_heads x linear_key_head_dim", num_key_heads * key_head_dim, MAX_WIDTH)?;
    text.product("linear_num_value_heads x linear_value_head_dim", num_value_heads * value_head_dim, MAX_WIDTH)?;
    Ok(GdnConfig {
        num_key_heads,
        num_value_heads,
        key_head_dim,
        value_head_dim,
        conv_kernel: text.size_or("linear_conv_kernel_dim", 4, 2..=MAX_CONV_KERNEL)?,
    })
}

/// `dtype`, or `torch_dtype` as older files call it.
fn dtype(fields: &Fields<'_>) -> Result<Option<Dtype>, ModelError> {
    for field in ["dtype", "torch_dtype"] {
        match fields.text(field)? {
            None | Some("auto") => {}
            Some("bfloat16") => return Ok(Some(Dtype::Bf16)),
            Some("float16") => return Ok(Some(Dtype::F16)),
            Some("float32") => return Ok(Some(Dtype::F32)),
            Some(other) => {
                let problem = format!("`{other}` is not supported; supported: bfloat16, float16, float32");
                return Err(fields.error(field, problem));
            }
        }
    }
    Ok(None)
}
