//! Attention of sequences with several rows in the step.

use super::{Attention, together};
use crate::kernel::{Count, Extent, Kernel, LaunchSpec};
use crate::step_block::PIECE_TOKENS;
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_device::BLOCK_TOKENS;
use refrain_program::Dtype;

/// `AttentionPrefillArgs` of both kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct AttentionPrefillArgs {
    step: StepPointers,
    q: u64,
    cache: u64,
    out: u64,
    q_stride: u32,
    out_stride: u32,
    scale: f32,
    reserved: u32,
}

/// Threads of a block without tensor cores.
const SCALAR_THREADS: u32 = 256;

/// Tiles on tensor cores, the fastest first: query heads, and blocks of 16 keys.
const TILES: [(u32, u32); 6] = [(2, 4), (2, 2), (1, 4), (1, 2), (2, 1), (1, 1)];
/// Tiles without: rows, and keys.
const SCALAR_TILES: [(u32, u32); 4] = [(64, 32), (64, 16), (32, 16), (16, 16)];

impl Attention {
    pub(super) fn prefill(&self, target: &Target, step: &StepPointers) -> LaunchSpec {
        let (kernel, grid_x, grid_z) = match self.tensor_core_kernel(target) {
            Some((kernel, queries)) => (kernel, self.shape.num_heads as u32 / queries, 1),
            None => {
                let (kernel, rows) = self.scalar_kernel(target);
                (kernel, self.shape.num_heads as u32, PIECE_TOKENS as u32 / rows)
            }
        };
        let arguments = AttentionPrefillArgs {
            step: *step,
            q: self.q.base.0,
            cache: self.cache.0,
            out: self.out.base.0,
            q_stride: self.q.stride,
            out_stride: self.out.stride,
            scale: self.scale(),
            reserved: 0,
        };
        let pieces = Extent::one(Count::PrefillPieces);
        self.launch(kernel, [Extent::Fixed(grid_x), pieces, Extent::Fixed(grid_z)], &arguments)
    }

    /// The kernel and the query heads of a block, where types and shape allow it.
    fn tensor_core_kernel(&self, target: &Target) -> Option<(Kernel, u32)> {
        let product = self.tensor_core_product(target)?;
        if !self.shape.head_dim.is_multiple_of(16) {
            return None;
        }
        let pair = if self.q.dtype == Dtype::Bf16 { "kx_bf16_pair" } else { "kx_f16_pair" };
        // Queries, and two stages of keys and values; rows are 16 bytes apart. Of eight bits: one stage, and codes and
        // scales for the next.
        let bytes = |queries: u32, blocks: u32| {
            let (head_dim, keys) = (self.shape.head_dim as u32, BLOCK_TOKENS as u32 * blocks);
            let (stages, codes) = if self.scaled() { (1, 2 * keys * (head_dim + 1)) } else { (2, 0) };
            (PIECE_TOKENS as u32 * queries + 2 * keys * stages) * (head_dim + 8) * 2 + codes
        };
        let most = together(&self.shape, 2);
        let fits = |&(queries, blocks): &(u32, u32)| queries <= most && bytes(queries, blocks) <= target.shared_bytes;
        let (queries, blocks) = TILES.into_iter().find(fits)?;
        let kernel = self
            .kernel("attention_prefill_mma.cu", "attention_prefill_mma", 128 * queries)
            .define("QUERIES", queries)
            .define("KEY_BLOCKS", blocks)
            .define("MMA", product)
            .define("PAIR", pair)
            .define("KX_RESIDENT", if self.shape.head_dim > 64 { 1 } else { 2 })
            .shared(bytes(queries, blocks));
        Some((kernel, queries))
    }

    /// The kernel and the rows of a block.
    fn scalar_kernel(&self, target: &Target) -> (Kernel, u32) {
        let head_bytes = |element: usize| self.shape.head_dim * element + 16;
        // `sizeof(Room)` of the kernel.
        let bytes = |rows: usize, keys: usize| {
            let weights = keys * (rows + 4) * 4;
            let scales = if self.scaled() { keys * 8 } else { 0 };
            let operands = rows * head_bytes(self.q.dtype.bytes()) + keys * head_bytes(self.dtype.bytes());
            operands + weights + rows * 4 + scales
        };
        let fits = |&(rows, keys): &(u32, u32)| bytes(rows as usize, keys as usize) <= target.shared_bytes as usize;
        let (rows, keys) = SCALAR_TILES.into_iter().find(fits).expect("16 rows of 256 dimensions fit into 48 KiB");
        let kernel = self
            .kernel("attention_prefill.cu", "attention_prefill", SCALAR_THREADS)
            .define("ROWS", rows)
            .define("KEYS", keys)
            .define("KX_RESIDENT", 1)
            .shared(bytes(rows as usize, keys as usize) as u32);
        (kernel, rows)
    }
}
