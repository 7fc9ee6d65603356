//! The gated delta rule: chunked for prompt tokens, one by one for generated tokens.

use super::{Rows, Shared};
use crate::simd::SimdLevel;
use refrain_device::Segment;
use refrain_program::GdnShape;

/// `S <- e^decay S; d = beta (v - S^T k); S <- S + k d^T; out = S^T q`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GdnScan {
    /// `[T, key_heads * key_head_dim]`, normalised and scaled.
    pub q: Rows,
    /// `[T, key_heads * key_head_dim]`, normalised.
    pub k: Rows,
    /// `[T, value_heads * value_head_dim]`.
    pub v: Rows,
    /// `[T, value_heads]`.
    pub beta: Rows,
    /// `[T, value_heads]`, at most 0.
    pub decay: Rows,
    /// `[slot][value_head][key_head_dim][value_head_dim padded to 16]`.
    pub state: Shared<f32>,
    /// Floats from one slot to the next, [`slot_floats`] if nothing lies between.
    pub slot_stride: usize,
    /// Heads.
    pub shape: GdnShape,
    /// `[T, value_heads * value_head_dim]`; may be `v`.
    pub out: Rows,
}

/// Floats of the state of one sequence in one layer.
pub(crate) fn slot_floats(shape: &GdnShape) -> usize {
    shape.num_value_heads * shape.key_head_dim * super::padded(shape.value_head_dim)
}

/// Scratch floats that [`gdn_scan`] needs.
pub(crate) fn gdn_scan_scratch_floats(shape: &GdnShape) -> usize {
    let _ = shape;
    todo!()
}

/// All tokens of one segment for one value head. Items of different value heads and segments are independent.
pub(crate) unsafe fn gdn_scan(
    level: SimdLevel,
    args: &GdnScan,
    segment: &Segment,
    value_head: usize,
    scratch: *mut f32,
) {
    let _ = (level, args, segment, value_head, scratch);
    todo!()
}
