//! Queries and keys normed and rotated, keys and values written into the cache: `kernels/qk_norm_rope_append.cu`.

use super::kv_append::KvAppend;
use super::qk_norm_rope::QkNormRope;
use crate::kernel::{Count, Extent, Kernel, LaunchSpec, Rows};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};

/// The three ops. Heads are a multiple of 8 wide, at most 256; rows, strides and weights are aligned to 8 elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNormRopeAppend {
    /// Of the queries.
    pub queries: QkNormRope,
    /// Of the keys. `out` is where they would lie between two ops; whether anything lies there afterwards is not said.
    pub keys: QkNormRope,
    /// Its `k` is `keys.out`.
    pub append: KvAppend,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    step: StepPointers,
    q: u64,
    k: u64,
    v: u64,
    q_out: u64,
    cache: u64,
    q_weight: u64,
    k_weight: u64,
    frequencies: u64,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    q_out_stride: u32,
    eps: f32,
    reserved: u32,
}

/// Most threads of a block.
const THREADS: u32 = 256;

impl QkNormRopeAppend {
    /// One launch; those of the three ops where keys would be rounded twice, or queries, keys and values differ in type.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let QkNormRopeAppend { queries, keys, append } = self;
        if !self.is_fused() {
            let parts = [queries.launches(target, step), keys.launches(target, step)];
            return parts.into_iter().chain([append.launches(target, step)]).flatten().collect();
        }
        let head_dim = append.shape.head_dim as u32;
        assert!(head_dim.is_multiple_of(8) && head_dim <= 256, "heads of {head_dim} dimensions");
        let group = (head_dim / 8).next_power_of_two();
        let heads = queries.heads + 2 * keys.heads;
        let threads = (heads * group).next_multiple_of(target.wave).min(THREADS);
        let kernel = Kernel::new("qk_norm_rope_append.cu", "qk_norm_rope_append", threads)
            .define_type("X_T", queries.x.dtype)
            .define_type("OUT_T", queries.out.dtype)
            .define_cache_type("KV_T", append.dtype)
            .define("HEADS", queries.heads)
            .define("KV_HEADS", keys.heads)
            .define("HEAD_DIM", head_dim)
            .define("ROTARY_DIM", queries.rotary_dim)
            .define("GROUP", group);
        let arguments = Arguments {
            step: *step,
            q: queries.x.base.0,
            k: keys.x.base.0,
            v: append.v.base.0,
            q_out: queries.out.base.0,
            cache: append.cache.0,
            q_weight: queries.weight.0,
            k_weight: keys.weight.0,
            frequencies: queries.frequencies.0,
            q_stride: queries.x.stride,
            k_stride: keys.x.stride,
            v_stride: append.v.stride,
            q_out_stride: queries.out.stride,
            eps: queries.eps,
            reserved: 0,
        };
        let head_blocks = Extent::Fixed(heads.div_ceil(threads / group));
        vec![LaunchSpec::on_grid(kernel, [Extent::one(Count::Tokens), head_blocks, Extent::Fixed(1)], &arguments)]
    }

    fn is_fused(&self) -> bool {
        let QkNormRopeAppend { queries, keys, append } = self;
        let same_type = |rows: &[Rows]| rows.iter().all(|rows| rows.dtype == queries.x.dtype);
        // Keys that are kept in the type of the projections are rounded once, to that of the cache.
        let once = keys.out.dtype == refrain_program::Dtype::F32 || append.dtype == keys.out.dtype.into();
        once && same_type(&[keys.x, append.v])
    }
}
