//! Attention of sequences with one row in the step.

use super::{Attention, together};
use crate::kernel::{Count, Extent, Kernel, LaunchSpec};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_program::{AttentionShape, Dtype};

/// `AttentionDecodeArgs` of both kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct AttentionDecodeArgs {
    step: StepPointers,
    q: u64,
    cache: u64,
    out: u64,
    records: u64,
    q_stride: u32,
    out_stride: u32,
    scale: f32,
    reserved: u32,
}

const THREADS: u32 = 128;
/// Blocks that a processor holds at once: registers allow no more.
const RESIDENT: u32 = 2;
/// Tokens of a part at least: a block of 16 for each of four waves. Shorter parts would cost more in putting them
/// together than they gain.
const LEAST_PART: u32 = 64;
/// Parts of a context at most.
const MOST_SPLITS: u32 = 64;

/// How the work is divided: by shape and device, never by what is in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DecodePlan {
    /// Query heads of a block.
    pub queries: u32,
    /// Parts into which a context is cut at most: as many as fill the device when there is one sequence.
    pub splits: u32,
}

impl DecodePlan {
    pub fn new(shape: &AttentionShape, target: &Target) -> DecodePlan {
        // On gfx906, eight heads don't fit into registers.
        let queries = together(shape, if target.wave == 64 { 6 } else { 8 });
        let units = shape.num_heads as u32 / queries;
        DecodePlan { queries, splits: (RESIDENT * target.processors / units).clamp(1, MOST_SPLITS) }
    }

    /// `sizeof(Record)` of the kernels: sums of all parts, and a counter.
    pub fn record_bytes(&self, shape: &AttentionShape) -> usize {
        let values = (self.splits * self.queries) as usize;
        (values * (4 * shape.head_dim + 8) + 4).next_multiple_of(16)
    }
}

impl Attention {
    pub(super) fn decode(&self, target: &Target, step: &StepPointers) -> LaunchSpec {
        let plan = DecodePlan::new(&self.shape, target);
        let kernel = match self.tensor_core_product(target) {
            // Products are of f16, which has all numbers of eight bits.
            Some(_) if self.scaled() && self.shape.head_dim.is_multiple_of(64) => {
                self.kernel("attention_decode_fp8_mma.cu", "attention_decode_fp8_mma", THREADS)
            }
            Some(product) if !self.scaled() && self.shape.head_dim.is_multiple_of(64) => {
                self.kernel("attention_decode_mma.cu", "attention_decode_mma", THREADS).define("MMA", product)
            }
            _ => self.scalar_decode(&plan, target),
        };
        let kernel = kernel
            .define("QUERIES", plan.queries)
            .define("SPLITS", plan.splits)
            .define("LEAST_PART", LEAST_PART)
            .define("KX_RESIDENT", RESIDENT);
        let arguments = AttentionDecodeArgs {
            step: *step,
            q: self.q.base.0,
            cache: self.cache.0,
            out: self.out.base.0,
            records: self.workspace.0,
            q_stride: self.q.stride,
            out_stride: self.out.stride,
            scale: self.scale(),
            reserved: 0,
        };
        // Blocks go round over the parts of all sequences, so that the grid knows no lengths; none when there are none.
        let any = Extent::Each { count: Count::DecodePieces, per: u32::MAX };
        self.launch(kernel, [Extent::Fixed(RESIDENT * target.processors), any, Extent::Fixed(1)], &arguments)
    }

    fn scalar_decode(&self, plan: &DecodePlan, target: &Target) -> Kernel {
        let group = (self.shape.head_dim as u32 / 8).next_power_of_two();
        // What registers hold besides queries and sums: keys, values and scores of a run.
        let mut keys = (32 / plan.queries.next_power_of_two()).min(8);
        for tight in [self.dtype == Dtype::F32.into(), target.wave == 64] {
            keys = if tight { (keys / 2).max(1) } else { keys };
        }
        self.kernel("attention_decode.cu", "attention_decode", THREADS)
            .define("GROUP", group)
            .define("KEYS", keys.min(group))
    }
}
