//! What one item does: its queries against one split of their context, and the merging of splits.

use super::plan::Place;
use super::{Attention, Element, KEY_TILE, SPLIT, Tile, group, padded, tiles};
use crate::kernels::{load_up_to, store_up_to};
use crate::simd::{LANES, Simd};
use refrain_device::{BLOCK_TOKENS, Segment};
use refrain_program::AttentionShape;

/// Queries of one item, `row * group + head`, and its part of the scratch memory.
pub(super) struct Item<'a> {
    pub args: &'a Attention<'a>,
    pub segment: &'a Segment,
    /// First row in the step.
    row: usize,
    /// Position of that row in its sequence.
    position: usize,
    pub kv_head: usize,
    group: usize,
    pub queries: usize,
    /// Head size in whole registers.
    pub width: usize,
    /// `[queries][width]`, scaled.
    pub q: *mut f32,
    /// Scores of one key tile, then their exponentials, `[queries][KEY_TILE]`.
    pub scores: *mut f32,
    /// What the sums are multiplied by before a key tile is added, `[queries]`.
    pub factors: *mut f32,
    /// How many tokens of the key tile each query sees, `[queries]`.
    pub visible: *mut u32,
}

/// The running softmax of every query of an item.
pub(super) struct Sums {
    /// Weighted sums of values, `[queries][width]`.
    pub values: *mut f32,
    /// Sums of the weights, lane by lane, `[queries][LANES]`.
    weights: *mut f32,
    /// Largest scores, `[queries]`.
    largest: *mut f32,
}

impl Sums {
    pub fn floats(shape: &AttentionShape, queries: usize) -> usize {
        queries * (padded(shape.head_dim) + LANES) + padded(queries)
    }

    /// # Safety
    /// `memory` has [`Sums::floats`] floats.
    pub unsafe fn new(shape: &AttentionShape, queries: usize, memory: *mut f32) -> Self {
        // SAFETY: by contract.
        unsafe {
            let weights = memory.add(queries * padded(shape.head_dim));
            Self { values: memory, weights, largest: weights.add(queries * LANES) }
        }
    }
}

impl<'a> Item<'a> {
    pub fn scratch_floats(shape: &AttentionShape, queries: usize) -> usize {
        queries * (padded(shape.head_dim) + KEY_TILE) + 2 * padded(queries)
    }

    /// # Safety
    /// `scratch` has [`Item::scratch_floats`] floats, or the item only merges.
    pub unsafe fn new(args: &'a Attention<'a>, place: Place, scratch: *mut f32) -> Self {
        let segment = &args.segments[place.segment as usize];
        let group = group(&args.shape);
        let queries = place.rows as usize * group;
        let width = padded(args.shape.head_dim);
        let scores = scratch.wrapping_add(queries * width);
        let factors = scores.wrapping_add(queries * KEY_TILE);
        Self {
            args,
            segment,
            row: (segment.row + place.first) as usize,
            position: (segment.position + place.first) as usize,
            kv_head: place.kv_head as usize,
            group,
            queries,
            width,
            q: scratch,
            scores,
            factors,
            visible: factors.wrapping_add(padded(queries)).cast(),
        }
    }

    /// Splits of the last row's context.
    pub fn splits(&self) -> usize {
        (self.position + self.queries / self.group).div_ceil(SPLIT)
    }

    /// The first query that sees the token at `position`; all after it do, too.
    fn first_seeing(&self, position: usize) -> usize {
        (position.saturating_sub(self.position) * self.group).min(self.queries)
    }

    /// Row in the step, and first column, of a query.
    fn query(&self, index: usize) -> (usize, usize) {
        let head = self.kv_head * self.group + index % self.group;
        (self.row + index / self.group, head * self.args.shape.head_dim)
    }

    /// Copies the queries into the scratch memory, scaled.
    #[inline(always)]
    pub unsafe fn pack<S: Simd>(&self) {
        let head_dim = self.args.shape.head_dim;
        for index in 0..self.queries {
            let (row, column) = self.query(index);
            // SAFETY: the rows have all heads.
            unsafe {
                let from = self.args.q.row(row).add(column);
                let scale = S::splat(self.args.shape.scale);
                for d in (0..head_dim).step_by(LANES) {
                    let q = S::mul(load_up_to::<S>(from.add(d), head_dim - d), scale);
                    S::store(self.q.add(index * self.width + d), q);
                }
            }
        }
    }

    /// The running softmax over one split of the context, from nothing.
    #[inline(always)]
    pub unsafe fn attend<S: Tile, E: Element>(&self, split: usize, sums: &Sums) {
        let end = (self.position + self.queries / self.group).min((split + 1) * SPLIT);
        // SAFETY: the blocks of the context are in the cache; sums and scratch are large enough.
        unsafe {
            for index in self.first_seeing(split * SPLIT)..self.queries {
                sums.values.add(index * self.width).write_bytes(0, self.width);
                sums.weights.add(index * LANES).write_bytes(0, LANES);
                *sums.largest.add(index) = f32::NEG_INFINITY;
            }
            for start in (split * SPLIT..end).step_by(KEY_TILE) {
                let blocks = tiles::Blocks::<E>::new(self, start, end);
                let factors = E::FP8.map(|_| tiles::Factors::new(self, start, blocks.count));
                let first = self.first_seeing(start);
                tiles::scores::<S, E>(self, first, &blocks);
                for index in first..self.queries {
                    let visible = (self.position + index / self.group + 1 - start).min(KEY_TILE);
                    *self.visible.add(index) = visible as u32;
                    self.soften::<S>(index, visible, factors.as_ref(), sums);
                }
                tiles::weighted_values::<S, E>(self, first, &blocks, sums);
            }
        }
    }

    /// Turns one query's scores into weights relative to its largest score so far.
    #[inline(always)]
    unsafe fn soften<S: Simd>(&self, index: usize, visible: usize, factors: Option<&tiles::Factors>, sums: &Sums) {
        // SAFETY: the query is one of the item's.
        unsafe {
            let scores = self.scores.add(index * KEY_TILE);
            if let Some(factors) = factors {
                multiply::<S>(scores, &factors.keys);
            }
            for token in visible..KEY_TILE {
                *scores.add(token) = f32::NEG_INFINITY;
            }
            let mut all = [S::splat(0.0); KEY_TILE / LANES];
            for (i, score) in all.iter_mut().enumerate() {
                *score = S::load(scores.add(i * LANES));
            }
            let before = *sums.largest.add(index);
            let tile = S::largest(S::max(S::max(all[0], all[1]), S::max(all[2], all[3])));
            let largest = before.max(tile);
            *sums.largest.add(index) = largest;
            let factor = if largest == before { 1.0 } else { exp::<S>(before - largest) };
            *self.factors.add(index) = factor;
            for (i, score) in all.iter_mut().enumerate() {
                *score = S::exp(S::sub(*score, S::splat(largest)));
                S::store(scores.add(i * LANES), *score);
            }
            let weights = sums.weights.add(index * LANES);
            let tile = S::add(S::add(all[0], all[1]), S::add(all[2], all[3]));
            S::store(weights, S::fma(S::load(weights), S::splat(factor), tile));
            if let Some(factors) = factors {
                multiply::<S>(scores, &factors.values);
            }
        }
    }

    /// Adds the sums of `split` to those of the splits before it.
    #[inline(always)]
    pub unsafe fn merge<S: Simd>(&self, split: usize, total: &Sums, part: &Sums) {
        for index in self.first_seeing(split * SPLIT)..self.queries {
            // SAFETY: both sums are of this item's queries.
            unsafe {
                let (before, new) = (*total.largest.add(index), *part.largest.add(index));
                let largest = before.max(new);
                *total.largest.add(index) = largest;
                let (keep, add) = (S::splat(exp::<S>(before - largest)), S::splat(exp::<S>(new - largest)));
                let weights = total.weights.add(index * LANES);
                let new_weights = S::load(part.weights.add(index * LANES));
                S::store(weights, S::fma(new_weights, add, S::mul(S::load(weights), keep)));
                for d in (0..self.width).step_by(LANES) {
                    let values = total.values.add(index * self.width + d);
                    let new_values = S::load(part.values.add(index * self.width + d));
                    S::store(values, S::fma(new_values, add, S::mul(S::load(values), keep)));
                }
            }
        }
    }

    /// Writes the output rows.
    #[inline(always)]
    pub unsafe fn finish<S: Simd>(&self, total: &Sums) {
        let head_dim = self.args.shape.head_dim;
        for index in 0..self.queries {
            let (row, column) = self.query(index);
            // SAFETY: the rows have all heads.
            unsafe {
                let out = self.args.out.row(row).add(column);
                let factor = S::splat(1.0 / S::sum(S::load(total.weights.add(index * LANES))));
                for d in (0..head_dim).step_by(LANES) {
                    let mut values = S::mul(S::load(total.values.add(index * self.width + d)), factor);
                    if let Some(gate) = self.args.gate {
                        let gate = load_up_to::<S>(gate.row(row).add(column + d), head_dim - d);
                        values = S::mul(values, S::sigmoid(gate));
                    }
                    store_up_to::<S>(out.add(d), values, head_dim - d);
                }
            }
        }
    }

    /// Where the block with the tokens from `position` on is in the cache.
    pub fn block(&self, position: usize) -> usize {
        self.args.block_table[self.segment.blocks as usize + position / BLOCK_TOKENS] as usize
    }
}

/// Scores, or weights, of a key tile times the factors of its keys, or values.
#[inline(always)]
unsafe fn multiply<S: Simd>(scores: *mut f32, factors: &[f32; KEY_TILE]) {
    for token in (0..KEY_TILE).step_by(LANES) {
        // SAFETY: both have a key tile of floats; the caller's processor has the level.
        unsafe { S::store(scores.add(token), S::mul(S::load(scores.add(token)), S::load(factors[token..].as_ptr()))) };
    }
}

/// `e^x` of one number, as the lanes compute it.
#[inline(always)]
unsafe fn exp<S: Simd>(x: f32) -> f32 {
    // SAFETY: the caller's processor has the level.
    unsafe { S::largest(S::exp(S::splat(x))) }
}
