//! Writing keys and values into the cache: `kernels/kv_append.cu`, and `kernels/kv_append_fp8.cu` where rows have scales.
//! The layout of the cache of one attention layer is that of `kernels/kv_cache.h`:
//! `[block, 2 (keys, values), kv_heads, 16 tokens, head_dim]`, and behind each block its scales.

use crate::kernel::{Count, Extent, Kernel, LaunchSpec, Rows};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_device::DevicePtr;
use refrain_program::{AttentionShape, CacheDtype};

/// `KvAppendArgs` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct KvAppendArgs {
    step: StepPointers,
    k: u64,
    v: u64,
    cache: u64,
    k_stride: u32,
    v_stride: u32,
}

/// [`refrain_program::Op::KvAppend`] on its operands. Rows and strides are aligned to 8 elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvAppend {
    /// `[T, kv_heads * head_dim]`.
    pub k: Rows,
    /// `[T, kv_heads * head_dim]`, of the type of `k`.
    pub v: Rows,
    /// The cache of the layer.
    pub cache: DevicePtr,
    /// Its element type.
    pub dtype: CacheDtype,
    /// Heads; `head_dim` is a multiple of 8.
    pub shape: AttentionShape,
}

/// Threads of a block, and as many eights of elements as it takes at least.
const THREADS: u32 = 256;

impl KvAppend {
    /// One launch.
    pub fn launches(&self, _target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let eights = (2 * self.shape.num_kv_heads * self.shape.head_dim / 8) as u32;
        assert!(self.shape.head_dim.is_multiple_of(8), "heads of {} dimensions", self.shape.head_dim);
        // Two eights a thread, so that both are on their way at once; more rows would leave processors without a block.
        let rows = (2 * THREADS / eights).clamp(1, 16);
        let kernel = match self.dtype {
            CacheDtype::Plain(_) => Kernel::new("kv_append.cu", "kv_append", THREADS),
            CacheDtype::Fp8(_) => {
                // A group of lanes looks for the largest number of a row, and must lie within a wave.
                let lanes = (self.shape.head_dim / 8).next_power_of_two();
                assert!(lanes <= 32, "heads of {} dimensions, the kernel takes up to 256", self.shape.head_dim);
                Kernel::new("kv_append_fp8.cu", "kv_append_fp8", THREADS).define("LANES", lanes)
            }
        };
        let kernel = kernel
            .define_type("X_T", self.k.dtype)
            .define_cache_type("KV_T", self.dtype)
            .define("KV_HEADS", self.shape.num_kv_heads)
            .define("HEAD_DIM", self.shape.head_dim)
            .define("ROWS", rows);
        let arguments = KvAppendArgs {
            step: *step,
            k: self.k.base.0,
            v: self.v.base.0,
            cache: self.cache.0,
            k_stride: self.k.stride,
            v_stride: self.v.stride,
        };
        vec![LaunchSpec::new(kernel, Extent::Each { count: Count::Tokens, per: rows }, &arguments)]
    }
}
