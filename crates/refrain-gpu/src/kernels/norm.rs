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
        let RmsNorm { count, x, weight, eps, out } = *self;
        assert!(x.width == out.width, "a norm from {x:?} to {out:?}");
        let vector = if are_wide(&[x, out]) && is_aligned(weight) { 8 } else { 1 };
        let vectors = x.width.div_ceil(vector);
        let items = vectors.div_ceil(THREADS);
        let kernel = |entry, threads, rows: u32| {
            let kernel = Kernel::new("norm.cu", entry, threads).define_type("X_T", x.dtype);
            let kernel = kernel.define_type("OUT_T", out.dtype);
            kernel.define("WIDTH", x.width).define("VECTOR", vector).define("ROWS", rows)
        };
        let (kernel, rows) = if items <= MOST_ITEMS {
            let rows = (ROWS / items).max(1);
            (kernel("rms_norm", vectors.div_ceil(items).next_multiple_of(target.wave), rows), rows)
        } else {
            (kernel("rms_norm_long", THREADS, 1), 1)
        };
        let arguments = RmsNormArgs {
            rows: row_count(step, count),
            x: x.base.0,
            weight: weight.0,
            out: out.base.0,
            x_stride: x.stride,
            out_stride: out.stride,
            eps,
            padding: 0,
        };
        vec![LaunchSpec::new(kernel, Extent::Each { count, per: rows }, &arguments)]
    }
}
