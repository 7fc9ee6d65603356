//! Cases of attention, and of what prepares queries, keys and values for it.

mod append;
mod attend;
mod bits;
mod caches;
mod fused;
mod model;
mod rope;
mod sequences;
mod wide;

use super::{Case, Scale};
use crate::Target;
use refrain_program::{AttentionShape, CacheDtype, Dtype};

/// All cases of the group.
pub(super) fn cases(_target: &Target, scale: Scale) -> Vec<Case> {
    match scale {
        Scale::Ragged => {
            let alone = [rope::cases(), append::cases(), attend::cases(), bits::cases()];
            alone.into_iter().flatten().chain(fused::cases(scale)).collect()
        }
        Scale::Model => model::cases().into_iter().chain(fused::cases(scale)).collect(),
    }
}

/// Heads with the usual factor on the scores.
fn shape(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { num_heads, num_kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5) }
}

/// What rounding a result once to its type makes of it (half an ulp at most, a third of an ulp on average), or what
/// summing in f32 does, with room.
fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 3e-6,
        Dtype::F16 => 5e-4,
        Dtype::Bf16 => 4e-3,
    }
}

/// The name of a type in those of cases.
fn name(dtype: impl Into<CacheDtype>) -> &'static str {
    crate::cache_define(dtype.into())
}
