//! The layout of the KV cache, and writing into it.

use super::kv_element::{E4m3, E5m2, Element, KvElement};
use super::tile::Tile;
use super::{Rows, Shared, load_up_to, padded};
use crate::simd::{LANES, Simd, simd_dispatch};
use half::{bf16, f16};
use refrain_device::{BLOCK_TOKENS, Segment};
use refrain_program::{Fp8, scale_inverse};
use std::ops::Range;

/// The cache of one attention layer: `[block][kv_head]{ K: [head_dim][16 tokens], V: [16 tokens][head_dim padded to 16] }`.
/// Keys are transposed so that the scores of 16 tokens are one register. In FP8, the scales of the head's rows follow, a
/// byte each: those of the keys of 16 tokens, then those of the values.
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
            KvElement::Fp8(_) => 1,
        }
    }

    /// Bytes, and elements, of the scales of one head in one block.
    fn scale_bytes(&self) -> usize {
        match self.element {
            KvElement::Fp8(_) => 2 * BLOCK_TOKENS,
            KvElement::F32 | KvElement::Bf16 | KvElement::F16 => 0,
        }
    }

    /// Elements of one head in one block.
    fn head_elements(&self) -> usize {
        self.key_elements() + self.value_elements() + self.scale_bytes()
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
        self.kv_heads * self.head_elements() * self.element_bytes()
    }

    /// Where the keys of a head start, in elements from the start of the cache.
    pub fn keys(&self, block: usize, kv_head: usize) -> usize {
        (block * self.kv_heads + kv_head) * self.head_elements()
    }

    /// Where the values of a head start, in elements from the start of the cache.
    pub fn values(&self, block: usize, kv_head: usize) -> usize {
        self.keys(block, kv_head) + self.key_elements()
    }

    /// Where the scales of a head start, in bytes from the start of the cache. In FP8 only.
    pub fn scales(&self, block: usize, kv_head: usize) -> usize {
        self.values(block, kv_head) + self.value_elements()
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

/// Rows `row..row + count` of the step, which are tokens `token..token + count` of one block.
struct Run {
    row: usize,
    token: usize,
    count: usize,
    /// What the row of each token is multiplied by before it is rounded.
    inverses: [f32; BLOCK_TOKENS],
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
                let mut run = Run { row, token, count, inverses: [1.0; BLOCK_TOKENS] };
                // SAFETY: the step was validated: the block is in the pool, the rows have all heads; in FP8, the block
                // has scales.
                unsafe {
                    let scales = args.cache.0.wrapping_add(args.layout.scales(block, head));
                    if let Some(format) = E::FP8 {
                        append_scales::<S>(format, &args.k, &mut run, head * args.layout.head_dim, args.layout, scales);
                    }
                    append_keys::<S, E>(args, &run, head, cache.add(args.layout.keys(block, head)));
                    if let Some(format) = E::FP8 {
                        let scales = scales.add(BLOCK_TOKENS);
                        append_scales::<S>(format, &args.v, &mut run, head * args.layout.head_dim, args.layout, scales);
                    }
                    append_values::<S, E>(args, &run, head, cache.add(args.layout.values(block, head)));
                }
            }
            row += count;
        }
    }
}

/// Chooses the scales of the rows of some tokens and one head, whose first column is `column`.
#[inline(always)]
unsafe fn append_scales<S: Simd>(
    format: Fp8,
    x: &Rows,
    run: &mut Run,
    column: usize,
    layout: KvLayout,
    scales: *mut u8,
) {
    for i in 0..run.count {
        // SAFETY: the rows have `head_dim` floats from `column` on, the scales a byte for each token of the block.
        unsafe {
            let from = x.row(run.row + i).add(column);
            let mut largest = S::splat(0.0);
            for d in (0..layout.head_dim).step_by(LANES) {
                let values = load_up_to::<S>(from.add(d), layout.head_dim - d);
                // Of NaN and a number, the second.
                largest = S::max(S::max(values, S::sub(S::splat(0.0), values)), largest);
            }
            let scale = format.scale(S::largest(largest));
            *scales.add(run.token + i) = scale;
            run.inverses[i] = scale_inverse(scale);
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
                    *row = scaled::<S, E>(S::load(from.add(token * args.k.stride + d)), run.inverses[token]);
                }
                for (i, column) in S::transpose(square).iter().enumerate() {
                    E::store::<S>(keys.add((d + i) * BLOCK_TOKENS), *column);
                }
                d += LANES;
            }
        }
        for d in d..head_dim {
            for i in 0..run.count {
                let key = *from.add(i * args.k.stride + d);
                let key = if E::FP8.is_some() { key * run.inverses[i] } else { key };
                *keys.add(d * BLOCK_TOKENS + run.token + i) = E::round(key);
            }
        }
    }
}

/// What is stored of a row: in the types that have no scales, the row as it is.
#[inline(always)]
unsafe fn scaled<S: Simd, E: Element>(row: S::V, inverse: f32) -> S::V {
    // SAFETY: the caller's processor has the level.
    if E::FP8.is_some() { unsafe { S::mul(row, S::splat(inverse)) } } else { row }
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
                let values = load_up_to::<S>(from.add(d), head_dim - d);
                E::store::<S>(to.add(d), scaled::<S, E>(values, run.inverses[i]));
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
            KvElement::Fp8(Fp8::E4m3) => append::<S, E4m3>(args, rows),
            KvElement::Fp8(Fp8::E5m2) => append::<S, E5m2>(args, rows),
        }
    }
}

simd_dispatch! {
    /// [`KvAppend`] of some rows of the step. Fastest when a range holds whole blocks.
    pub(crate) fn kv_append(args: &KvAppend<'_>, rows: Range<usize>) = append_any
}

#[cfg(test)]
mod tests;
