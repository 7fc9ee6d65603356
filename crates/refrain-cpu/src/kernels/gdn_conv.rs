//! The short causal convolution in front of the gated delta rule.

use super::{Rows, Shared};
use crate::simd::SimdLevel;
use refrain_device::Segment;
use std::ops::Range;

/// `out[t, c] = silu(sum_j weight[j, c] x[t - taps + 1 + j, c])`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GdnConv<'a> {
    /// `[T, channels]`.
    pub x: Rows,
    /// `[taps, channels]`: the checkpoint's `[channels, 1, taps]` transposed.
    pub weight: &'a [f32],
    /// `[slot][taps - 1][channels]`: the last inputs of each sequence, oldest first.
    pub state: Shared<f32>,
    /// Floats from one slot to the next.
    pub slot_stride: usize,
    /// Channels.
    pub channels: usize,
    /// Taps, at least 1.
    pub taps: usize,
    /// `[T, channels]`; must not overlap `x`.
    pub out: Rows,
}

/// Convolves tokens `tokens` (counted from the start of the segment) of channels `channels`. The item that has token 0
/// reads and renews the state of its channels; so every (segment, channel) needs exactly one such item, and items of
/// later tokens may run before or after it.
pub(crate) unsafe fn gdn_conv(
    level: SimdLevel,
    args: &GdnConv<'_>,
    segment: &Segment,
    tokens: Range<usize>,
    channels: Range<usize>,
) {
    let _ = (level, args, segment, tokens, channels);
    todo!()
}
