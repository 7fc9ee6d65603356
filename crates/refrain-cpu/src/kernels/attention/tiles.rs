//! The two products of attention in registers: queries by keys, weights by values. Several queries share every load.

use super::item::{Item, Sums};
use super::{Element, KEY_TILE, Tile};
use crate::kernels::tile::{Left, multiply};
use crate::simd::{LANES, Simd};
use refrain_device::BLOCK_TOKENS;
use refrain_program::scale_factor;

/// Blocks of a key tile.
const BLOCKS: usize = KEY_TILE / BLOCK_TOKENS;

/// The blocks of one key tile.
pub(super) struct Blocks<E> {
    keys: [*const E; BLOCKS],
    values: [*const E; BLOCKS],
    pub count: usize,
}

impl<E: Element> Blocks<E> {
    /// The blocks with the tokens `start..end`, at most a key tile of them.
    ///
    /// # Safety
    /// The tokens are in the item's context.
    pub unsafe fn new(item: &Item<'_>, start: usize, end: usize) -> Self {
        let (layout, cache) = (item.args.layout, item.args.cache.0.cast::<E>());
        let count = (end - start).div_ceil(BLOCK_TOKENS).min(BLOCKS);
        let mut all = Self { keys: [cache; BLOCKS], values: [cache; BLOCKS], count };
        for index in 0..count {
            let block = item.block(start + index * BLOCK_TOKENS);
            // SAFETY: the step was validated: its blocks are in the cache.
            unsafe {
                all.keys[index] = cache.add(layout.keys(block, item.kv_head));
                all.values[index] = cache.add(layout.values(block, item.kv_head));
            }
        }
        all
    }
}

/// The scales of the rows of one key tile, for elements that have them; 0 for blocks that the context doesn't have.
pub(super) struct Factors {
    pub keys: [f32; KEY_TILE],
    pub values: [f32; KEY_TILE],
}

impl Factors {
    /// Those of the blocks with the tokens from `start` on.
    ///
    /// # Safety
    /// The item's context has `count` blocks from there on, in FP8.
    pub unsafe fn new(item: &Item<'_>, start: usize, count: usize) -> Self {
        let (layout, cache) = (item.args.layout, item.args.cache.0);
        let mut all = Self { keys: [0.0; KEY_TILE], values: [0.0; KEY_TILE] };
        for token in (0..count * BLOCK_TOKENS).step_by(BLOCK_TOKENS) {
            // SAFETY: the step was validated: its blocks are in the cache. Of tokens that nobody has written the scale
            // may be any byte, and the factor infinite: their scores are masked, their weights not used.
            let scales: &[[u8; BLOCK_TOKENS]; 2] =
                unsafe { &*cache.add(layout.scales(item.block(start + token), item.kv_head)).cast() };
            for (factors, scales) in [&mut all.keys, &mut all.values].into_iter().zip(scales) {
                for (factor, scale) in factors[token..][..BLOCK_TOKENS].iter_mut().zip(scales) {
                    *factor = scale_factor(*scale);
                }
            }
        }
        all
    }
}

/// Calls `$kernel::<S, E, M>(args.., first query)` for all queries from `$first` on, four at a time where the registers
/// allow it. More tile shapes would gain little and cost minutes of compile time: each exists for every level and type.
macro_rules! for_queries {
    ($S:ident, $E:ident, $item:ident, $first:expr, $kernel:ident($($arg:expr),*)) => {
        let mut query = $first;
        while $S::SUMS >= 4 && query + 4 <= $item.queries {
            $kernel::<$S, $E, 4>($($arg,)* query);
            query += 4;
        }
        while query < $item.queries {
            $kernel::<$S, $E, 1>($($arg,)* query);
            query += 1;
        }
    };
}

/// Scores of the queries from `first` on against the keys of the tile.
#[inline(always)]
pub(super) unsafe fn scores<S: Tile, E: Element>(item: &Item<'_>, first: usize, blocks: &Blocks<E>) {
    // SAFETY: the caller's promise.
    unsafe {
        for_queries!(S, E, item, first, score_rows(item, blocks));
    }
}

#[inline(always)]
unsafe fn score_rows<S: Tile, E: Element, const M: usize>(item: &Item<'_>, blocks: &Blocks<E>, query: usize) {
    let mut block = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while S::SUMS >= 4 * M && block + 4 <= blocks.count {
            score_tile::<S, E, M, 4>(item, blocks, query, block);
            block += 4;
        }
        while block < blocks.count {
            score_tile::<S, E, M, 1>(item, blocks, query, block);
            block += 1;
        }
    }
}

#[inline(always)]
unsafe fn score_tile<S: Simd, E: Element, const M: usize, const N: usize>(
    item: &Item<'_>,
    blocks: &Blocks<E>,
    query: usize,
    block: usize,
) {
    // SAFETY: queries and blocks are the item's.
    unsafe {
        let left = Left { data: item.q.add(query * item.width), row: item.width, step: 1 };
        let mut keys = [blocks.keys[0]; N];
        keys.copy_from_slice(&blocks.keys[block..block + N]);
        let zero = [[S::splat(0.0); N]; M];
        let sums = multiply::<S, E, M, N>(zero, left, keys, BLOCK_TOKENS, item.args.shape.head_dim);
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                S::store(item.scores.add((query + m) * KEY_TILE + (block + n) * BLOCK_TOKENS), *sum);
            }
        }
    }
}

/// Adds the tile's values, weighted, to the sums of the queries from `first` on.
#[inline(always)]
pub(super) unsafe fn weighted_values<S: Tile, E: Element>(
    item: &Item<'_>,
    first: usize,
    blocks: &Blocks<E>,
    sums: &Sums,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for_queries!(S, E, item, first, value_rows(item, blocks, sums));
    }
}

#[inline(always)]
unsafe fn value_rows<S: Tile, E: Element, const M: usize>(
    item: &Item<'_>,
    blocks: &Blocks<E>,
    sums: &Sums,
    query: usize,
) {
    let mut column = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while S::SUMS >= 4 * M && column + 4 * LANES <= item.width {
            value_tile::<S, E, M, 4>(item, blocks, sums, query, column);
            column += 4 * LANES;
        }
        while column < item.width {
            value_tile::<S, E, M, 1>(item, blocks, sums, query, column);
            column += LANES;
        }
    }
}

#[inline(always)]
unsafe fn value_tile<S: Simd, E: Element, const M: usize, const N: usize>(
    item: &Item<'_>,
    blocks: &Blocks<E>,
    sums: &Sums,
    query: usize,
    column: usize,
) {
    // SAFETY: queries, blocks and columns are the item's.
    unsafe {
        let mut tile = [[S::splat(0.0); N]; M];
        for (m, row) in tile.iter_mut().enumerate() {
            let factor = S::splat(*item.factors.add(query + m));
            for (n, sum) in row.iter_mut().enumerate() {
                let values = sums.values.add((query + m) * item.width + column + n * LANES);
                *sum = S::mul(S::load(values), factor);
            }
        }
        // Tokens that all of these queries see, then the few more that the later ones see: weights of 0 would do, but
        // not if a value were infinite.
        let shared = *item.visible.add(query) as usize;
        for block in 0..blocks.count {
            let tokens = shared.saturating_sub(block * BLOCK_TOKENS).min(BLOCK_TOKENS);
            let mut values = [blocks.values[block].add(column); N];
            for (n, values) in values.iter_mut().enumerate() {
                *values = values.add(n * LANES);
            }
            let weights = item.scores.add(query * KEY_TILE + block * BLOCK_TOKENS);
            let left = Left { data: weights, row: KEY_TILE, step: 1 };
            tile = multiply::<S, E, M, N>(tile, left, values, item.width, tokens);
        }
        for (m, row) in tile.iter_mut().enumerate().skip(1) {
            for token in shared..*item.visible.add(query + m) as usize {
                let weight = S::splat(*item.scores.add((query + m) * KEY_TILE + token));
                let values = blocks.values[token / BLOCK_TOKENS].add(token % BLOCK_TOKENS * item.width + column);
                for (n, sum) in row.iter_mut().enumerate() {
                    *sum = S::fma(weight, E::load::<S>(values.add(n * LANES)), *sum);
                }
            }
        }
        for (m, row) in tile.iter().enumerate() {
            for (n, sum) in row.iter().enumerate() {
                S::store(sums.values.add((query + m) * item.width + column + n * LANES), *sum);
            }
        }
    }
}
