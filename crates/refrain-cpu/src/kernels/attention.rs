//! Causal softmax attention over the paged KV cache, with the running softmax of Milakov and Gimelshein
//! (arXiv 1805.02867) in place of a score matrix.
//!
//! A query goes over its context in key tiles of 64 tokens and splits of 512, both at absolute positions: inside a
//! split the maximum, the sum and the weighted values are rescaled when the maximum grows; finished splits are merged
//! in order. What a query computes so depends on its position alone, not on the rows beside it, and the splits of one
//! query may as well be computed by different workers and merged later: the bits are the same.

mod item;
mod plan;
mod tiles;

pub(crate) use plan::{AttentionItem, AttentionMerge, AttentionPlan, PlanLimits};

use super::kv_cache::KvLayout;
use super::kv_element::{E4m3, E5m2, Element, KvElement};
use super::tile::Tile;
use super::{Rows, Shared, padded};
use crate::simd::simd_dispatch;
use half::{bf16, f16};
use item::{Item, Sums};
use refrain_device::Segment;
use refrain_program::{AttentionShape, Fp8};

/// Tokens of context whose scores are computed at once.
const KEY_TILE: usize = 64;
/// Tokens of context after which a partial softmax is closed and merged.
const SPLIT: usize = 512;
/// Queries (rows times heads of the group) of one item, unless the group alone is larger.
const QUERY_TILE: usize = 64;

/// Causal attention of every query of the step over its sequence's cached keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a> {
    /// `[T, heads * head_dim]`.
    pub q: Rows,
    /// The cache of the layer, which already holds the step's own keys and values.
    pub cache: Shared<u8>,
    /// Its layout.
    pub layout: KvLayout,
    /// Heads.
    pub shape: AttentionShape,
    /// All segments of the step.
    pub segments: &'a [Segment],
    /// Block ids of the step.
    pub block_table: &'a [u32],
    /// Room for the results of parts, [`PlanLimits::partial_floats`].
    pub partials: Shared<f32>,
    /// `[T, heads * head_dim]`: the result is multiplied with the sigmoid of it.
    pub gate: Option<Rows>,
    /// `[T, heads * head_dim]`; may be `q`.
    pub out: Rows,
}

/// Query heads of one key and value head.
fn group(shape: &AttentionShape) -> usize {
    shape.num_heads / shape.num_kv_heads
}

/// Query rows of one item.
fn tile_rows(shape: &AttentionShape) -> usize {
    (QUERY_TILE / group(shape)).max(1)
}

/// Scratch floats that [`attention`] needs. Fastest if the scratch memory starts on a cache line.
pub(crate) fn attention_scratch_floats(shape: &AttentionShape) -> usize {
    let queries = tile_rows(shape) * group(shape);
    Item::scratch_floats(shape, queries) + 2 * Sums::floats(shape, queries)
}

#[inline(always)]
unsafe fn run<S: Tile, E: Element>(args: &Attention<'_>, work: &AttentionItem, scratch: *mut f32) {
    // SAFETY: the plan is one of this step, whose blocks are in the cache; scratch and partials are large enough.
    unsafe {
        let item = Item::new(args, work.place, scratch);
        let own = scratch.add(Item::scratch_floats(&args.shape, item.queries));
        item.pack::<S>();
        let (splits, total) = match work.part {
            Some(part) => (part.split as usize..part.split as usize + 1, args.partials.0.add(part.partial)),
            None => (0..item.splits(), own),
        };
        let total = Sums::new(&args.shape, item.queries, total);
        let next = Sums::new(&args.shape, item.queries, own.add(Sums::floats(&args.shape, item.queries)));
        for split in splits.clone() {
            // One call for both cases: it is inlined, and large.
            let sums = if split == splits.start { &total } else { &next };
            item.attend::<S, E>(split, sums);
            if split != splits.start {
                item.merge::<S>(split, &total, &next);
            }
        }
        if work.part.is_some() {
            return;
        }
        item.finish::<S>(&total);
    }
}

#[inline(always)]
unsafe fn run_any<S: Tile>(args: &Attention<'_>, work: &AttentionItem, scratch: *mut f32) {
    // SAFETY: the caller's promise; the cache has the elements that its layout says.
    unsafe {
        match args.layout.element {
            KvElement::F32 => run::<S, f32>(args, work, scratch),
            KvElement::Bf16 => run::<S, bf16>(args, work, scratch),
            KvElement::F16 => run::<S, f16>(args, work, scratch),
            KvElement::Fp8(Fp8::E4m3) => run::<S, E4m3>(args, work, scratch),
            KvElement::Fp8(Fp8::E5m2) => run::<S, E5m2>(args, work, scratch),
        }
    }
}

#[inline(always)]
unsafe fn merge_parts<S: Tile>(args: &Attention<'_>, merge: &AttentionMerge) {
    // SAFETY: as in `run`; merging needs no scratch memory.
    unsafe {
        let item = Item::new(args, merge.place, std::ptr::null_mut());
        let floats = Sums::floats(&args.shape, item.queries);
        let part = |split: usize| {
            let start = args.partials.0.add(merge.partial + split * floats);
            Sums::new(&args.shape, item.queries, start)
        };
        let total = part(0);
        for split in 1..item.splits() {
            item.merge::<S>(split, &total, &part(split));
        }
        item.finish::<S>(&total);
    }
}

simd_dispatch! {
    /// Runs one item. An item that is not split writes its rows of [`Attention::out`].
    pub(crate) fn attention(args: &Attention<'_>, item: &AttentionItem, scratch: *mut f32) = run_any
}
simd_dispatch! {
    /// Puts the parts of one split item together and writes its rows of [`Attention::out`].
    pub(crate) fn attention_merge(args: &Attention<'_>, merge: &AttentionMerge) = merge_parts
}

#[cfg(test)]
mod tests;
