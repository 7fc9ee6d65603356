//! What a configuration must satisfy before a program can be built from it.

use crate::ProgramError;
use refrain_model::{LayerKind, ModelConfig};

/// No width of a real model comes near; products of a few of these can't overflow.
const MAX_SIZE: usize = 1 << 28;
const MAX_HEADS: usize = 1 << 12;

/// Checks every number that [`crate::Program::build`] uses, so that building can't fail half-way or overflow.
pub(crate) fn check_config(config: &ModelConfig) -> Result<(), ProgramError> {
    in_range("vocab_size", config.vocab_size, MAX_SIZE)?;
    in_range("hidden_size", config.hidden_size, MAX_SIZE)?;
    in_range("intermediate_size", config.intermediate_size, MAX_SIZE)?;
    in_range("number of layers", config.layers.len(), MAX_HEADS)?;
    positive("rms_norm_eps", config.rms_norm_eps)?;

    let attention = &config.attention;
    if config.layers.contains(&LayerKind::FullAttention) {
        in_range("num_attention_heads", attention.num_heads, MAX_HEADS)?;
        in_range("num_key_value_heads", attention.num_kv_heads, MAX_HEADS)?;
        in_range("head_dim", attention.head_dim, MAX_HEADS)?;
        multiple("num_attention_heads", attention.num_heads, "num_key_value_heads", attention.num_kv_heads)?;
        if !attention.rotary_dim.is_multiple_of(2) || attention.rotary_dim > attention.head_dim {
            let expected = format!("an even number of at most head_dim = {}", attention.head_dim);
            return fail("rotary_dim", attention.rotary_dim, expected);
        }
        positive("rope_theta", attention.rope_theta)?;
    }

    match &config.gdn {
        Some(gdn) if config.layers.contains(&LayerKind::Gdn) => {
            in_range("linear_num_key_heads", gdn.num_key_heads, MAX_HEADS)?;
            in_range("linear_num_value_heads", gdn.num_value_heads, MAX_HEADS)?;
            in_range("linear_key_head_dim", gdn.key_head_dim, MAX_HEADS)?;
            in_range("linear_value_head_dim", gdn.value_head_dim, MAX_HEADS)?;
            in_range("linear_conv_kernel_dim", gdn.conv_kernel, 64)?;
            multiple("linear_num_value_heads", gdn.num_value_heads, "linear_num_key_heads", gdn.num_key_heads)
        }
        None if config.layers.contains(&LayerKind::Gdn) => {
            fail("gdn", "absent", "the linear_* fields, because there are linear_attention layers".to_owned())
        }
        _ => Ok(()),
    }
}

fn fail(field: &'static str, value: impl ToString, expected: String) -> Result<(), ProgramError> {
    Err(ProgramError::Config { field, value: value.to_string(), expected })
}

fn in_range(field: &'static str, value: usize, max: usize) -> Result<(), ProgramError> {
    if (1..=max).contains(&value) { Ok(()) } else { fail(field, value, format!("1 to {max}")) }
}

fn positive(field: &'static str, value: f32) -> Result<(), ProgramError> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { fail(field, value, "a positive number".to_owned()) }
}

fn multiple(field: &'static str, value: usize, of: &str, divisor: usize) -> Result<(), ProgramError> {
    if value.is_multiple_of(divisor) { Ok(()) } else { fail(field, value, format!("a multiple of {of} = {divisor}")) }
}
