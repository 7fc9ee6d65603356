//! The gated delta rule: chunked for prompt tokens, one by one for generated tokens.

mod chunk;
mod recurrence;
mod tiles;

use super::tile::Tile;
use super::{Rows, Shared, padded};
use crate::simd::simd_dispatch;
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
    shape.num_value_heads * shape.key_head_dim * padded(shape.value_head_dim)
}

/// Scratch floats that [`gdn_scan`] needs. Fastest if the scratch memory starts on a cache line.
pub(crate) fn gdn_scan_scratch_floats(shape: &GdnShape) -> usize {
    chunk::Scratch::floats(shape)
}

/// One item: a segment and a value head, with the addresses that follow from them.
struct Item<'a> {
    args: &'a GdnScan,
    segment: &'a Segment,
    value_head: usize,
    key_head: usize,
    /// `[key_head_dim][value_head_dim padded to 16]`, in the slot.
    state: *mut f32,
}

/// What one token brings for this head.
struct Token {
    q: *const f32,
    k: *const f32,
    v: *const f32,
    beta: f32,
    decay: f32,
    out: *mut f32,
}

impl Item<'_> {
    /// Token `index` of the segment.
    #[inline(always)]
    unsafe fn token(&self, index: usize) -> Token {
        let (args, shape) = (self.args, &self.args.shape);
        let row = self.segment.row as usize + index;
        // SAFETY: the caller gives a token of the segment; rows have all heads.
        unsafe {
            Token {
                q: args.q.row(row).add(self.key_head * shape.key_head_dim),
                k: args.k.row(row).add(self.key_head * shape.key_head_dim),
                v: args.v.row(row).add(self.value_head * shape.value_head_dim),
                beta: *args.beta.row(row).add(self.value_head),
                decay: *args.decay.row(row).add(self.value_head),
                out: args.out.row(row).add(self.value_head * shape.value_head_dim),
            }
        }
    }
}

#[inline(always)]
unsafe fn scan<S: Tile>(args: &GdnScan, segment: &Segment, value_head: usize, scratch: *mut f32) {
    let shape = &args.shape;
    let key_head = value_head / (shape.num_value_heads / shape.num_key_heads);
    let head_floats = shape.key_head_dim * padded(shape.value_head_dim);
    let (len, scan) = (segment.len as usize, segment.scan as usize);
    // SAFETY: the slot is in the pool and belongs to this segment alone; this item is the only one with this head.
    unsafe {
        let state = args.state.0.add(segment.slot as usize * args.slot_stride + value_head * head_floats);
        let item = Item { args, segment, value_head, key_head, state };
        let fresh = segment.position == 0;
        if scan > 0 {
            chunk::scan_chunks::<S>(&item, fresh, scan, &chunk::Scratch::new(shape, scratch));
        } else if fresh {
            state.write_bytes(0, head_floats);
        }
        for index in scan..len {
            recurrence::step::<S>(&item, &item.token(index));
        }
    }
}

simd_dispatch! {
    /// All tokens of one segment for one value head. Items of different value heads and segments are independent.
    pub(crate) fn gdn_scan(args: &GdnScan, segment: &Segment, value_head: usize, scratch: *mut f32) = scan
}

#[cfg(test)]
mod tests;
