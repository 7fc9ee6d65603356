//! Causal attention over the paged cache: `kernels/attention_decode.cu` for sequences with one row in the step,
//! `kernels/attention_prefill.cu` for those with several, and both with `_mma` where tensor cores can be used.

mod decode;
mod prefill;

use crate::kernel::{Extent, Kernel, LaunchSpec, Rows};
use crate::{StepPointers, Target};
use bytemuck::{NoUninit, Pod, Zeroable, bytes_of};
use decode::DecodePlan;
use refrain_device::{DevicePtr, StepLimits};
use refrain_program::{AttentionShape, CacheDtype, Dtype};

/// [`refrain_program::Op::Attention`] on its operands. Rows and strides are aligned to 8 elements; see [`unsupported`]
/// for the shapes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// `[T, heads * head_dim]`.
    pub q: Rows,
    /// The cache of the layer (see [`super::kv_append`]), which already holds the step's own keys and values.
    pub cache: DevicePtr,
    /// Its element type.
    pub dtype: CacheDtype,
    /// Heads.
    pub shape: AttentionShape,
    /// [`Attention::workspace_bytes`], aligned to 16. Zero before the first launch, and only used by attention of one
    /// shape from then on: it holds counters that each launch leaves at zero.
    pub workspace: DevicePtr,
    /// `[T, heads * head_dim]`: the result is multiplied with its sigmoid before it is rounded.
    pub gate: Option<Rows>,
    /// `[T, heads * head_dim]` in the type of `q` or f32; not `q`.
    pub out: Rows,
}

/// `GATE_ARGS` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GateArgs {
    gate: u64,
    gate_stride: u32,
    padding: u32,
}

impl Attention {
    /// Scratch memory for steps within some limits.
    pub fn workspace_bytes(limits: &StepLimits, shape: &AttentionShape, _dtype: Dtype, target: &Target) -> usize {
        let plan = DecodePlan::new(shape, target);
        let units = shape.num_heads / plan.queries as usize;
        limits.max_segments.saturating_mul(units * plan.record_bytes(shape))
    }

    /// A launch for sequences with several rows in the step, and one for those with one: they write different rows.
    ///
    /// # Panics
    /// When the shape is one of [`unsupported`].
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        assert!(unsupported(&self.shape).is_none(), "the program was not checked: {:?}", self.shape);
        vec![self.prefill(target, step), self.decode(target, step)]
    }

    /// A kernel with the constants that all of them need.
    fn kernel(&self, source: &'static str, entry: &'static str, threads: u32) -> Kernel {
        let kernel = Kernel::new(source, entry, threads);
        let kernel = match self.gate {
            Some(gate) => kernel.define_type("GATE_T", gate.dtype),
            None => kernel,
        };
        kernel
            .define_type("X_T", self.q.dtype)
            .define_cache_type("KV_T", self.dtype)
            .define_type("OUT_T", self.out.dtype)
            .define("HEADS", self.shape.num_heads)
            .define("KV_HEADS", self.shape.num_kv_heads)
            .define("HEAD_DIM", self.shape.head_dim)
    }

    /// The product of tensor cores for these types, where there is one.
    fn tensor_core_product(&self, target: &Target) -> Option<&'static str> {
        let product = match self.q.dtype {
            Dtype::Bf16 => "kx_mma_bf16",
            Dtype::F16 => "kx_mma_f16",
            Dtype::F32 => return None,
        };
        let fits = self.dtype == self.q.dtype.into() || self.scaled();
        (target.mma && fits).then_some(product)
    }

    /// Whether keys and values are of eight bits, and their rows have scales.
    fn scaled(&self) -> bool {
        matches!(self.dtype, CacheDtype::Fp8(_))
    }

    /// A launch with these arguments, behind which those of the gate follow where there is one.
    fn launch(&self, kernel: Kernel, grid: [Extent; 3], arguments: &impl NoUninit) -> LaunchSpec {
        let mut launch = LaunchSpec::on_grid(kernel, grid, arguments);
        if let Some(gate) = self.gate {
            let gate = GateArgs { gate: gate.base.0, gate_stride: gate.stride, padding: 0 };
            launch.arguments.extend_from_slice(bytes_of(&gate));
        }
        launch
    }

    /// The factor on the scores, for powers of two.
    fn scale(&self) -> f32 {
        self.shape.scale * std::f32::consts::LOG2_E
    }
}

/// Why these kernels can't do attention of a shape; `None` when they can.
pub fn unsupported(shape: &AttentionShape) -> Option<String> {
    unsupported_head(shape.head_dim)
}

/// The same for heads of so many dimensions.
pub fn unsupported_head(head_dim: usize) -> Option<String> {
    let possible = head_dim > 0 && head_dim <= 256 && head_dim.is_multiple_of(8);
    (!possible).then(|| format!("head_dim is {head_dim}, the kernels take multiples of 8 up to 256"))
}

/// Query heads that work together on one key and value head: the largest divisor of the group of at most `most`.
fn together(shape: &AttentionShape, most: u32) -> u32 {
    let group = (shape.num_heads / shape.num_kv_heads) as u32;
    (1..=most.min(group)).rev().find(|queries| group.is_multiple_of(*queries)).unwrap_or(1)
}

#[cfg(test)]
mod tests;
