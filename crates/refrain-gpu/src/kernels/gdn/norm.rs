//! The norms of heads: `kernels/gdn_norm.cu`.

use super::vector;
use crate::kernel::{Count, Extent, Kernel, LaunchSpec, Rows};
use crate::{StepPointers, Target};
use bytemuck::{NoUninit, Pod, Zeroable};
use refrain_device::DevicePtr;

/// `out = x * rsqrt(sum(x^2) + eps)`, head by head, and times `scale` for the first `scaled` heads.
#[derive(Clone, Copy, Debug)]
pub struct L2Norm {
    /// `[T, heads * head_dim]`.
    pub x: Rows,
    /// Number of heads.
    pub heads: u32,
    /// How many heads, from the first, are scaled.
    pub scaled: u32,
    /// Factor after the norm.
    pub scale: f32,
    /// Added to the sum of squares.
    pub eps: f32,
    /// `[T, heads * head_dim]` in the type of `x`; may be `x`.
    pub out: Rows,
}

/// `out = weight * x * rsqrt(mean(x^2) + eps) * silu(gate)`, head by head.
#[derive(Clone, Copy, Debug)]
pub struct GatedRmsNorm {
    /// `[T, heads * head_dim]`.
    pub x: Rows,
    /// `[T, heads * head_dim]`.
    pub gate: Rows,
    /// `[head_dim]` f32.
    pub weight: DevicePtr,
    /// Number of heads.
    pub heads: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// `[T, heads * head_dim]`; may be `x` or `gate` where it has that type.
    pub out: Rows,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct L2NormArguments {
    rows: u64,
    x: u64,
    out: u64,
    x_stride: u32,
    out_stride: u32,
    heads: u32,
    scale: f32,
    eps: f32,
    scaled: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatedRmsNormArguments {
    rows: u64,
    x: u64,
    gate: u64,
    weight: u64,
    out: u64,
    x_stride: u32,
    gate_stride: u32,
    out_stride: u32,
    heads: u32,
    eps: f32,
    padding: u32,
}

/// The launch of one of the two kernels.
fn launch(
    entry: &'static str,
    x: &Rows,
    heads: u32,
    vector: u32,
    target: &Target,
    arguments: &impl NoUninit,
) -> LaunchSpec {
    let head_dim = x.width / heads;
    let lanes = head_dim.div_ceil(vector).next_power_of_two().min(32);
    // So many elements of a row a lane holds; with as many rows as it has registers for, loads overlap.
    let held = head_dim.div_ceil(lanes * vector) * vector;
    let rows = (32 / held).clamp(1, 4);
    let threads = (heads * lanes).next_multiple_of(target.wave).min(256);
    let kernel = Kernel::new("gdn_norm.cu", entry, threads)
        .define_type("X_T", x.dtype)
        .define("HEAD_DIM", head_dim)
        .define("LANES", lanes)
        .define("VECTOR", vector)
        .define("ROWS", rows);
    let head_blocks = Extent::Fixed((heads * lanes).div_ceil(threads));
    let row_blocks = Extent::Each { count: Count::Tokens, per: rows };
    LaunchSpec::on_grid(kernel, [row_blocks, head_blocks, Extent::Fixed(1)], arguments)
}

impl L2Norm {
    /// The launches.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let arguments = L2NormArguments {
            rows: step.header,
            x: self.x.base.0,
            out: self.out.base.0,
            x_stride: self.x.stride,
            out_stride: self.out.stride,
            heads: self.heads,
            scale: self.scale,
            eps: self.eps,
            scaled: self.scaled,
        };
        let vector = vector(&[&self.x, &self.out], self.x.width / self.heads);
        vec![launch("l2_norm", &self.x, self.heads, vector, target, &arguments)]
    }
}

impl GatedRmsNorm {
    /// The launches.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let arguments = GatedRmsNormArguments {
            rows: step.header,
            x: self.x.base.0,
            gate: self.gate.base.0,
            weight: self.weight.0,
            out: self.out.base.0,
            x_stride: self.x.stride,
            gate_stride: self.gate.stride,
            out_stride: self.out.stride,
            heads: self.heads,
            eps: self.eps,
            padding: 0,
        };
        let vector = vector(&[&self.x, &self.gate, &self.out], self.x.width / self.heads);
        let mut spec = launch("gated_rms_norm", &self.x, self.heads, vector, target, &arguments);
        let kernel = spec.kernel.define_type("GATE_T", self.gate.dtype);
        spec.kernel = kernel.define_type("OUT_T", self.out.dtype);
        vec![spec]
    }
}
