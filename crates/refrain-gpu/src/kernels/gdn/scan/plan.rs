//! How the kernels of the gated delta rule divide a layer's heads.

use crate::Target;
use refrain_program::{Dtype, GdnShape};

/// Tokens of a chunk.
const CHUNK: u32 = 64;

/// How the chunked scan works on a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkPlan {
    /// By tensor cores; else in f32.
    pub tensor_cores: bool,
    /// With tensor cores: pairs of waves of a block, each with 16 value columns.
    pub pairs: u32,
    /// With tensor cores: chunks in shared memory.
    pub stages: u32,
    key_dim: u32,
}

impl ChunkPlan {
    pub fn new(shape: &GdnShape, activations: Dtype, target: &Target) -> ChunkPlan {
        let (key_dim, value_dim) = (shape.key_head_dim as u32, shape.value_head_dim as u32);
        let tensor_cores = target.mma
            && activations != Dtype::F32
            && key_dim.is_multiple_of(16)
            && key_dim <= 128
            && value_dim.is_multiple_of(16);
        // As few pairs in a block as let one sequence have a multiprocessor for each block.
        let all_pairs = shape.num_value_heads as u32 * value_dim / 16;
        let fits = |pairs: u32| value_dim.is_multiple_of(16 * pairs) && all_pairs / pairs >= target.processors / 2;
        let pairs = if fits(4) && all_pairs > 2 * target.processors {
            4
        } else if fits(2) && all_pairs > target.processors {
            2
        } else {
            1
        };
        let mut plan = ChunkPlan { tensor_cores, pairs, stages: 3, key_dim };
        while plan.tensor_cores && plan.stages > 1 && plan.shared_bytes() > target.shared_bytes {
            plan.stages -= 1;
        }
        plan
    }

    /// Type of what the first kernel leaves for the second.
    pub fn matrices(&self) -> Dtype {
        if self.tensor_cores { Dtype::F16 } else { Dtype::F32 }
    }

    /// Size of `GdnChunk`.
    pub fn chunk_bytes(&self) -> usize {
        (2 * CHUNK * 4 + 2 * CHUNK * CHUNK * self.matrices().bytes() as u32) as usize
    }

    /// Value columns of a block. Without tensor cores the rows of the state that fit in 17 KB, at least 4.
    pub fn slice(&self) -> u32 {
        match self {
            ChunkPlan { tensor_cores: true, pairs, .. } => 16 * pairs,
            ChunkPlan { key_dim: ..=128, .. } => 32,
            ChunkPlan { key_dim: ..=256, .. } => 16,
            ChunkPlan { key_dim: ..=512, .. } => 8,
            _ => 4,
        }
    }

    /// Size of `Shared` of the second kernel.
    pub fn shared_bytes(&self) -> u32 {
        let slice = self.slice();
        if self.tensor_cores {
            let keys = CHUNK * (self.key_dim + 8) * 2;
            let triangle = CHUNK * (CHUNK + 8) * 2;
            let stage = 2 * keys + 2 * triangle + CHUNK * (slice + 8) * 2 + 2 * CHUNK * 4 + 16;
            let operands = (self.key_dim / 16 + CHUNK / 16) * 32 * 16;
            self.stages * stage + self.pairs * (operands + CHUNK * 24 * 2)
        } else {
            let state = slice * (self.key_dim.next_multiple_of(32) + 4);
            let values = CHUNK * (slice + 4);
            let tile = CHUNK * 2 * 36;
            (state + values + tile + 2 * CHUNK) * 4
        }
    }
}

/// How the recurrence works on a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels::gdn) struct RecurrencePlan {
    /// Lanes that share a row of the state.
    pub lanes: u32,
    /// Elements that a lane takes at once.
    pub vector: u32,
    /// Rows that a lane has a part of.
    pub rows: u32,
}

impl RecurrencePlan {
    /// Threads of a block.
    pub const THREADS: u32 = 128;

    /// `vectors`: whether four elements of `q` and `k` can be loaded at once.
    pub fn new(shape: &GdnShape, vectors: bool, target: &Target) -> RecurrencePlan {
        let key_dim = shape.key_head_dim as u32;
        let vector = if vectors && key_dim.is_multiple_of(4) { 4 } else { 1 };
        // 16 elements of a row for each lane, where 32 lanes are enough.
        let held = |lanes: u32| key_dim.div_ceil(lanes * vector) * vector;
        let lanes = if held(8) <= 16 {
            8
        } else if held(16) <= 16 {
            16
        } else {
            32
        };
        let mut plan = RecurrencePlan { lanes, vector, rows: 2 };
        // Two rows are twice the loads in flight, unless registers or blocks run out.
        let blocks = shape.num_value_heads as u32 * (shape.value_head_dim as u32).div_ceil(plan.slice());
        if held(lanes) > 16 || blocks < target.processors * 3 / 4 {
            plan.rows = 1;
        }
        plan
    }

    /// Rows of the state of a block.
    pub fn slice(&self) -> u32 {
        Self::THREADS / self.lanes * self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(processors: u32, shared_bytes: u32) -> Target {
        Target { arch: "sm_90a".to_owned(), wave: 32, mma: true, processors, shared_bytes }
    }

    fn shape(value_heads: usize, key_head_dim: usize, value_head_dim: usize) -> GdnShape {
        GdnShape { num_key_heads: 1, num_value_heads: value_heads, key_head_dim, value_head_dim }
    }

    #[test]
    fn one_sequence_fills_the_multiprocessors_of_an_h100() {
        let target = target(132, 232_448);
        for (heads, pairs) in [(16, 1), (32, 2), (48, 4)] {
            let plan = ChunkPlan::new(&shape(heads, 128, 128), Dtype::Bf16, &target);
            assert_eq!((plan.tensor_cores, plan.pairs, plan.stages), (true, pairs, 3), "{heads} heads");
            assert!(plan.shared_bytes() <= target.shared_bytes);
        }
        let plan = RecurrencePlan::new(&shape(32, 128, 128), true, &target);
        assert_eq!((plan, plan.slice()), (RecurrencePlan { lanes: 8, vector: 4, rows: 2 }, 32));
        assert_eq!(RecurrencePlan::new(&shape(16, 128, 128), true, &target).rows, 1);
    }

    #[test]
    fn less_shared_memory_gives_fewer_stages() {
        let stages = |bytes| ChunkPlan::new(&shape(32, 128, 128), Dtype::Bf16, &target(108, bytes)).stages;
        assert_eq!([232_448, 166_912, 101_376].map(stages), [3, 2, 1]);
    }

    #[test]
    fn odd_heads_and_f32_do_without_tensor_cores() {
        let target = target(132, 232_448);
        for (key_dim, value_dim, dtype) in
            [(128, 128, Dtype::F32), (24, 40, Dtype::Bf16), (256, 128, Dtype::F16), (128, 40, Dtype::F16)]
        {
            let plan = ChunkPlan::new(&shape(4, key_dim, value_dim), dtype, &target);
            assert!(!plan.tensor_cores && plan.shared_bytes() <= 65_536, "{key_dim} {value_dim} {dtype:?}");
        }
    }
}
