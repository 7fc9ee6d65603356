//! The layout of the KV cache, and writing into it.

use super::{Rows, Shared, padded};
use crate::simd::SimdLevel;
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

/// [`KvAppend`] of some rows of the step. Fastest when a range holds whole blocks.
pub(crate) unsafe fn kv_append(level: SimdLevel, args: &KvAppend<'_>, rows: Range<usize>) {
    let _ = (level, args, rows);
    todo!()
}
