//! Causal softmax attention over the paged KV cache.

use super::kv_cache::KvLayout;
use super::{Rows, Shared};
use crate::simd::SimdLevel;
use refrain_device::Segment;
use refrain_program::AttentionShape;

/// Tokens of context after which a partial softmax is closed and merged, at multiples of this position.
pub(crate) const SPLIT_TOKENS: usize = 512;

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
    /// Room for the partial results of split items, [`PlanLimits::partial_floats`].
    pub partials: Shared<f32>,
    /// `[T, heads * head_dim]`; may be `q`.
    pub out: Rows,
}

/// Some query rows of one segment for one key and value head, over the whole context or over one split of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionItem {
    segment: u32,
    first: u32,
    rows: u32,
    kv_head: u32,
    part: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    split: u32,
    partial: usize,
}

/// The splits of one item, to be put together once all of them are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionMerge {
    segment: u32,
    first: u32,
    rows: u32,
    kv_head: u32,
    splits: u32,
    partial: usize,
}

/// What the planner may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanLimits {
    /// Worker threads.
    pub workers: usize,
    /// Floats of [`Attention::partials`]; without room items stay whole.
    pub partial_floats: usize,
}

/// The items of a step, the same for every layer of one shape. How the work is cut changes no bit of the result.
#[derive(Clone, Debug, Default)]
pub(crate) struct AttentionPlan {
    /// To be run first, in any order; the longest come first.
    pub items: Vec<AttentionItem>,
    /// To be run when all items are done.
    pub merges: Vec<AttentionMerge>,
}

impl AttentionPlan {
    /// Replaces the plan by one for `segments`; the vectors keep their memory.
    pub fn plan(&mut self, segments: &[Segment], shape: &AttentionShape, limits: PlanLimits) {
        let _ = (segments, shape, limits);
        todo!()
    }
}

/// Scratch floats that [`attention`] needs.
pub(crate) fn attention_scratch_floats(shape: &AttentionShape) -> usize {
    let _ = shape;
    todo!()
}

/// Runs one item. An item that is not split writes its rows of [`Attention::out`].
pub(crate) unsafe fn attention(level: SimdLevel, args: &Attention<'_>, item: &AttentionItem, scratch: *mut f32) {
    let _ = (level, args, item, scratch);
    todo!()
}

/// Puts the parts of one split item together and writes its rows of [`Attention::out`].
pub(crate) unsafe fn attention_merge(level: SimdLevel, args: &Attention<'_>, merge: &AttentionMerge) {
    let _ = (level, args, merge);
    todo!()
}
