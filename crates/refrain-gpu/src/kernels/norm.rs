//! `kernels/norm.cu`: the zero-centred RMS norm of rows.

use super::rows::{are_wide, is_aligned, row_count};
use crate::{Count, Extent, Kernel, LaunchSpec, Rows, StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_device::DevicePtr;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RmsNormArgs {
    rows: u64,
    x: u64,
    weight: u64,
    out: u64,
    x_stride: u32,
    out_stride: u32,
    eps: f32,
    padding: u32,
}

/// `out = x * rsqrt(mean(x^2) + eps) * (1 + weight)`, row by row.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// What the rows are.
    pub count: Count,
    /// `[rows, width]`.
    pub x: Rows,
    /// `[width]` f32.
    pub weight: DevicePtr,
    /// Added to the mean square.
    pub eps: f32,
    /// `[rows, width]`; may be `x`.
    pub out: Rows,
}

/// `sum = a + b`, `out = rms_norm(sum)`, row by row.
#[derive(Clone, Copy, Debug)]
pub struct AddRmsNorm {
    /// What the rows are.
    pub count: Count,
    /// `[rows, width]`.
    pub a: Rows,
    /// `[rows, width]`.
    pub b: Rows,
    /// `[rows, width]`; may be `a` or `b` where it has that type. The norm takes it as it is stored.
    pub sum: Rows,
    /// `[width]` f32.
    pub weight: DevicePtr,
    /// Added to the mean square.
    pub eps: f32,
    /// `[rows, width]`, none of the others.
    pub out: Rows,
}

/// The argument struct of a sum.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AddRmsNormArgs {
    norm: RmsNormArgs,
    b: u64,
    sum: u64,
    b_stride: u32,
    sum_stride: u32,
}

/// Most threads of a block, unless rows are very long.
const THREADS: u32 = 512;
/// Most times that a thread takes elements of one row, so that they stay in registers.
const MOST_ITEMS: u32 = 4;
/// Rows that a block has at once when they are short: four loads in flight for each thread.
const ROWS: u32 = 4;

impl RmsNorm {
    /// One launch.
    ///
    /// # Panics
    /// When `x` and `out` don't agree.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let RmsNorm { count, x, weight, out, .. } = *self;
        assert!(x.width == out.width, "a norm from {x:?} to {out:?}");
        let wide = are_wide(&[x, out]) && is_aligned(weight);
        let (kernel, rows) = kernel(["rms_norm", "rms_norm_long"], &x, &out, wide, target);
        let arguments = self.arguments(step);
        vec![LaunchSpec::new(kernel, Extent::Each { count, per: rows }, &arguments)]
    }
    fn arguments(&self, step: &StepPointers) -> RmsNormArgs {
        RmsNormArgs {
            rows: row_count(step, self.count),
            x: self.x.base.0,
            weight: self.weight.0,
            out: self.out.base.0,
            x_stride: self.x.stride,
            out_stride: self.out.stride,
            eps: self.eps,
            padding: 0,
        }
    }
}

impl AddRmsNorm {
    /// One launch.
    ///
    /// # Panics
    /// When the operands don't agree.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let AddRmsNorm { count, a, b, sum, weight, eps, out } = *self;
        let rows = [a, b, sum, out];
        assert!(rows.iter().all(|rows| rows.width == a.width), "a norm of a sum on {rows:?}");
        let wide = are_wide(&rows) && is_aligned(weight);
        let (kernel, per) = kernel(["add_rms_norm", "add_rms_norm_long"], &a, &out, wide, target);
        let kernel = kernel.define_type("B_T", b.dtype).define_type("SUM_T", sum.dtype);
        let arguments = AddRmsNormArgs {
            norm: RmsNorm { count, x: a, weight, eps, out }.arguments(step),
            b: b.base.0,
            sum: sum.base.0,
            b_stride: b.stride,
            sum_stride: sum.stride,
        };
        vec![LaunchSpec::new(kernel, Extent::Each { count, per }, &arguments)]
    }
}

/// The kernel for rows that fit into registers, or else the one for long ones, and how many rows a block takes.
fn kernel(entries: [&'static str; 2], x: &Rows, out: &Rows, wide: bool, target: &Target) -> (Kernel, u32) {
    let vector = if wide { 8 } else { 1 };
    let vectors = x.width.div_ceil(vector);
    let items = vectors.div_ceil(THREADS);
    let kernel = |entry, threads, rows: u32| {
        let kernel = Kernel::new("norm.cu", entry, threads).define_type("X_T", x.dtype);
        let kernel = kernel.define_type("OUT_T", out.dtype);
        kernel.define("WIDTH", x.width).define("VECTOR", vector).define("ROWS", rows)
    };
    if items > MOST_ITEMS {
        return (kernel(entries[1], THREADS, 1), 1);
    }
    let rows = (ROWS / items).max(1);
    (kernel(entries[0], vectors.div_ceil(items).next_multiple_of(target.wave), rows), rows)
}
