//! The layout of the KV cache, and writing into it.

use super::tile::Tile;
use super::{Rows, Shared, load_up_to, padded};
use crate::simd::{LANES, Simd, simd_dispatch};
use half::{bf16, f16};
use refrain_device::{BLOCK_TOKENS, Segment};
use std::ops::Range;

/// Element type of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvElement {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
    /// 2 bytes, IEEE half.
    F16,
}

/// The cache of one attention layer: `[block][kv_head]{ K: [head_dim][16 tokens], V: [16 tokens][head_dim padded to 16] }`.
/// Keys are transposed so that the scores of 16 tokens are one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvLayout {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Element type.
    pub element: KvElement,
}

impl KvLayout {
    /// Bytes of one element.
    pub fn element_bytes(&self) -> usize {
        match self.element {
            KvElement::F32 => 4,
            KvElement::Bf16 | KvElement::F16 => 2,
        }
    }

    /// Elements of the keys of one head in one block.
    pub fn key_elements(&self) -> usize {
        self.head_dim * BLOCK_TOKENS
    }

    /// Elements of the values of one head in one block.
    pub fn value_elements(&self) -> usize {
        BLOCK_TOKENS * padded(self.head_dim)
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.kv_heads * (self.key_elements() + self.value_elements()) * self.element_bytes()
    }

    /// Where the keys of a head start, in elements from the start of the cache.
    pub fn keys(&self, block: usize, kv_head: usize) -> usize {
        (block * self.kv_heads + kv_head) * (self.key_elements() + self.value_elements())
    }

    /// Where the values of a head start, in elements from the start of the cache.
    pub fn values(&self, block: usize, kv_head: usize) -> usize {
        self.keys(block, kv_head) + self.key_elements()
    }
}

/// Writes the step's keys and values into the blocks of their sequences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvAppend<'a> {
    /// `[T, kv_heads * head_dim]`.
    pub k: Rows,
    /// `[T, kv_heads * head_dim]`.
    pub v: Rows,
    /// The cache of the layer.
    pub cache: Shared<u8>,
    /// Its layout.
    pub layout: KvLayout,
    /// All segments of the step.
    pub segments: &'a [Segment],
    /// Block ids of the step.
    pub block_table: &'a [u32],
}

/// How elements of the cache are read and written.
#[allow(clippy::missing_safety_doc)] // as for `Simd`: the processor has the level, pointers are good for the lanes
pub(crate) trait Element: Copy {
    /// Sixteen elements, widened.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// Sixteen elements, rounded to nearest even.
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V);
    /// One element, rounded to nearest even.
    fn round(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by contract.
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V) {
        // SAFETY: by contract.
        unsafe { S::store(to, value) }
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by contract.
        unsafe { S::load_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V) {
        // SAFETY: by contract.
        unsafe { S::store_bf16(to.cast(), value) }
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by contract.
        unsafe { S::load_f16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V) {
        // SAFETY: by contract.
        unsafe { S::store_f16(to.cast(), value) }
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// Rows `row..row + count` of the step, which are tokens `token..token + count` of one block.
struct Run {
    row: usize,
    token: usize,
    count: usize,
}

#[inline(always)]
unsafe fn append<S: Tile, E: Element>(args: &KvAppend<'_>, rows: Range<usize>) {
    let cache = args.cache.0.cast::<E>();
    for segment in args.segments {
        let first = segment.row as usize;
        let mut row = rows.start.max(first);
        let end = rows.end.min(first + segment.len as usize);
        while row < end {
            let position = segment.position as usize + row - first;
            let token = position % BLOCK_TOKENS;
            let count = (BLOCK_TOKENS - token).min(end - row);
            let block = args.block_table[segment.blocks as usize + position / BLOCK_TOKENS] as usize;
            for head in 0..args.layout.kv_heads {
                let run = Run { row, token, count };
                // SAFETY: the step was validated: the block is in the pool, the rows have all heads.
                unsafe {
                    append_keys::<S, E>(args, &run, head, cache.add(args.layout.keys(block, head)));
                    append_values::<S, E>(args, &run, head, cache.add(args.layout.values(block, head)));
                }
            }
            row += count;
        }
    }
}

/// Transposes the keys of some tokens of one block into it: `keys[d][token] = k[token][d]`.
#[inline(always)]
unsafe fn append_keys<S: Tile, E: Element>(args: &KvAppend<'_>, run: &Run, head: usize, keys: *mut E) {
    let head_dim = args.layout.head_dim;
    // SAFETY: the rows have `kv_heads * head_dim` floats, the keys of a block `head_dim * 16` elements.
    unsafe {
        let from = args.k.row(run.row).add(head * head_dim);
        let mut d = 0;
        if run.count == BLOCK_TOKENS {
            while d + LANES <= head_dim {
                let mut square = [S::splat(0.0); BLOCK_TOKENS];
                for (token, row) in square.iter_mut().enumerate() {
                    *row = S::load(from.add(token * args.k.stride + d));
                }
                for (i, column) in S::transpose(square).iter().enumerate() {
                    E::store::<S>(keys.add((d + i) * BLOCK_TOKENS), *column);
                }
                d += LANES;
            }
        }
        for d in d..head_dim {
            for i in 0..run.count {
                *keys.add(d * BLOCK_TOKENS + run.token + i) = E::round(*from.add(i * args.k.stride + d));
            }
        }
    }
}

/// Copies the values of some tokens of one block into it.
#[inline(always)]
unsafe fn append_values<S: Simd, E: Element>(args: &KvAppend<'_>, run: &Run, head: usize, values: *mut E) {
    let head_dim = args.layout.head_dim;
    for i in 0..run.count {
        // SAFETY: the rows have `kv_heads * head_dim` floats; the values of a token are padded to whole registers.
        unsafe {
            let from = args.v.row(run.row + i).add(head * head_dim);
            let to = values.add((run.token + i) * padded(head_dim));
            let mut d = 0;
            while d < head_dim {
                E::store::<S>(to.add(d), load_up_to::<S>(from.add(d), head_dim - d));
                d += LANES;
            }
        }
    }
}

#[inline(always)]
unsafe fn append_any<S: Tile>(args: &KvAppend<'_>, rows: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        match args.layout.element {
            KvElement::F32 => append::<S, f32>(args, rows),
            KvElement::Bf16 => append::<S, bf16>(args, rows),
            KvElement::F16 => append::<S, f16>(args, rows),
        }
    }
}

simd_dispatch! {
    /// [`KvAppend`] of some rows of the step. Fastest when a range holds whole blocks.
    pub(crate) fn kv_append(args: &KvAppend<'_>, rows: Range<usize>) = append_any
}

#[cfg(test)]
mod tests;
