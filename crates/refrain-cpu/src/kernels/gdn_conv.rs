//! The short causal convolution in front of the gated delta rule.

use super::{Rows, Shared, load_up_to, store_up_to};
use crate::simd::{LANES, Simd, SimdLevel, simd_dispatch};
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

/// What [`gdn_conv`] is asked to do: tokens of one segment, counted from its start, for some channels.
#[derive(Clone, Debug)]
struct Part<'a> {
    segment: &'a Segment,
    tokens: Range<usize>,
    channels: Range<usize>,
}

/// Where the input of the token `back` places before token `token` of the segment is: in the step, in the state, or
/// nowhere (null) before the sequence began.
#[inline(always)]
unsafe fn input(args: &GdnConv<'_>, segment: &Segment, token: usize, back: usize) -> *const f32 {
    // SAFETY: the caller gives a token of the segment and `back < taps`.
    unsafe {
        if token >= back {
            args.x.row(segment.row as usize + token - back)
        } else if segment.position == 0 {
            std::ptr::null()
        } else {
            let entry = args.taps - 1 + token - back;
            args.state.0.add(segment.slot as usize * args.slot_stride + entry * args.channels)
        }
    }
}

#[inline(always)]
unsafe fn convolve<S: Simd>(args: &GdnConv<'_>, part: &Part<'_>) {
    let first = part.segment.row as usize;
    for token in part.tokens.clone() {
        // All inputs of a token are in the step, but for the first few tokens.
        let inside = token + 1 >= args.taps;
        // SAFETY: the caller gives tokens of the segment and channels of the rows.
        unsafe {
            let out = args.out.row(first + token);
            let mut channel = part.channels.start;
            while channel < part.channels.end {
                let count = part.channels.end - channel;
                let mut sum = S::splat(0.0);
                for tap in 0..args.taps {
                    let back = args.taps - 1 - tap;
                    let from = if inside {
                        args.x.row(first + token - back).cast_const()
                    } else {
                        input(args, part.segment, token, back)
                    };
                    if inside || !from.is_null() {
                        let weight = args.weight.as_ptr().add(tap * args.channels + channel);
                        let x = load_up_to::<S>(from.add(channel), count);
                        sum = S::fma(x, load_up_to::<S>(weight, count), sum);
                    }
                }
                store_up_to::<S>(out.add(channel), S::silu(sum), count);
                channel += LANES;
            }
        }
    }
    if part.tokens.start == 0 {
        // SAFETY: as above; the inputs are read before they are overwritten, because entries move towards the front.
        unsafe { renew_state(args, part) };
    }
}

/// Leaves the last `taps - 1` inputs of the segment, or of the segment and the old state, in the state.
#[inline(always)]
unsafe fn renew_state(args: &GdnConv<'_>, part: &Part<'_>) {
    let count = part.channels.len();
    for entry in 0..args.taps - 1 {
        // SAFETY: the slot and the channels are the caller's; `input` gives rows of all channels.
        unsafe {
            let slot = args.state.0.add(part.segment.slot as usize * args.slot_stride);
            let to = slot.add(entry * args.channels + part.channels.start);
            let from = input(args, part.segment, part.segment.len as usize - 1, args.taps - 2 - entry);
            if from.is_null() {
                to.write_bytes(0, count);
            } else {
                std::ptr::copy(from.add(part.channels.start), to, count);
            }
        }
    }
}

simd_dispatch! {
    /// [`gdn_conv`] at one level.
    fn convolve_part(args: &GdnConv<'_>, part: &Part<'_>) = convolve
}

/// Convolves tokens `tokens` (counted from the start of the segment) of channels `channels`. The item that has token 0
/// reads and renews the state of its channels: every (segment, channel) needs exactly one such item, and no other item
/// may start before the first `taps - 1` tokens. The items may run in any order.
///
/// # Safety
/// The processor has `level`; rows, slot and ranges are inside their buffers.
pub(crate) unsafe fn gdn_conv(
    level: SimdLevel,
    args: &GdnConv<'_>,
    segment: &Segment,
    tokens: Range<usize>,
    channels: Range<usize>,
) {
    debug_assert!(tokens.start == 0 || tokens.start >= args.taps - 1);
    debug_assert!(tokens.end <= segment.len as usize && channels.end <= args.channels);
    // SAFETY: by contract.
    unsafe { convolve_part(level, args, &Part { segment, tokens, channels }) };
}

#[cfg(test)]
mod tests;
