//! The text form: one line for each op, weight and state.

use crate::{Rows, StateKind, WeightKind};
use std::fmt;

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rows::Tokens => "T",
            Rows::Logits => "S",
        })
    }
}

impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightKind::Matrix { outputs, inputs } => write!(f, "[{outputs}, {inputs}]"),
            WeightKind::Vector { length } => write!(f, "[{length}]"),
            WeightKind::Convolution { channels, taps } => write!(f, "[{channels}, 1, {taps}]"),
        }
    }
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateKind::KvCache { kv_heads, head_dim } => write!(f, "kv [token, 2, {kv_heads}, {head_dim}]"),
            StateKind::GdnState { value_heads, key_head_dim, value_head_dim } => {
                write!(f, "gdn [slot, {value_heads}, {key_head_dim}, {value_head_dim}]")
            }
            StateKind::ConvState { channels, taps } => write!(f, "conv [slot, {}, {channels}]", taps - 1),
        }
    }
}
