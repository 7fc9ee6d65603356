//! Cutting the attention of a step into items. How it is cut changes no bit of the result.

use super::{SPLIT, Sums, group, tile_rows};
use refrain_device::Segment;
use refrain_program::AttentionShape;
use std::cmp::Reverse;

/// Some query rows of one segment for one key and value head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the segment.
    pub segment: u32,
    /// First row, counted from the start of the segment.
    pub first: u32,
    /// Number of rows.
    pub rows: u32,
    /// Key and value head.
    pub kv_head: u32,
}

/// One split of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which.
    pub split: u32,
    /// Where its sums go, in floats from the start of the partials.
    pub partial: usize,
}

/// Work for one worker: some queries over their whole context, or over one split of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionItem {
    pub(super) place: Place,
    pub(super) part: Option<Part>,
}

/// The parts of some queries, to be put together once all of them are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionMerge {
    pub(super) place: Place,
    /// Where the sums of the first split are; the others follow.
    pub(super) partial: usize,
}

/// What the planner may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanLimits {
    /// Worker threads.
    pub workers: usize,
    /// Floats of [`super::Attention::partials`]; what finds no room there stays whole.
    pub partial_floats: usize,
}

/// The items of a step, the same for every layer of one shape.
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
        self.items.clear();
        self.merges.clear();
        let mut total = 0;
        for place in places(segments, shape) {
            total += cost(segments, &place);
            self.items.push(AttentionItem { place, part: None });
        }
        if limits.workers > 1 {
            self.split(segments, shape, limits, total);
        }
        self.items.sort_unstable_by_key(|item| {
            let cost = match item.part {
                None => cost(segments, &item.place),
                Some(_) => item.place.rows as usize * SPLIT,
            };
            let Place { segment, first, kv_head, .. } = item.place;
            (Reverse(cost), segment, first, kv_head, item.part.map(|part| part.split))
        });
    }

    /// Splits the items that would keep one worker busy while the others wait.
    fn split(&mut self, segments: &[Segment], shape: &AttentionShape, limits: PlanLimits, total: usize) {
        let mut used = 0;
        for index in (0..self.items.len()).rev() {
            let place = self.items[index].place;
            let splits = context(segments, &place).div_ceil(SPLIT);
            let floats = Sums::floats(shape, place.rows as usize * group(shape));
            let long = cost(segments, &place) * 2 * limits.workers > total;
            if splits < 2 || !long || used + splits * floats > limits.partial_floats {
                continue;
            }
            self.items.swap_remove(index);
            self.merges.push(AttentionMerge { place, partial: used });
            for split in 0..splits {
                let part = Part { split: split as u32, partial: used + split * floats };
                self.items.push(AttentionItem { place, part: Some(part) });
            }
            used += splits * floats;
        }
    }
}

/// All query rows of all segments in tiles, for each key and value head.
fn places(segments: &[Segment], shape: &AttentionShape) -> impl Iterator<Item = Place> {
    let (tile, kv_heads) = (tile_rows(shape) as u32, shape.num_kv_heads as u32);
    segments.iter().zip(0..).flat_map(move |(segment, index)| {
        (0..segment.len).step_by(tile as usize).flat_map(move |first| {
            let rows = tile.min(segment.len - first);
            (0..kv_heads).map(move |kv_head| Place { segment: index, first, rows, kv_head })
        })
    })
}

/// Tokens that the last of the rows looks at.
fn context(segments: &[Segment], place: &Place) -> usize {
    (segments[place.segment as usize].position + place.first + place.rows) as usize
}

/// Work, in scores.
fn cost(segments: &[Segment], place: &Place) -> usize {
    context(segments, place) * place.rows as usize
}
