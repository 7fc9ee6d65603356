//! Norms of rows and of heads, and the rotary embedding that follows one of them.

use super::Rows;
use crate::simd::SimdLevel;
use std::ops::Range;

/// `out = x * rsqrt(mean(x^2) + eps) * (1 + weight)`, row by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RmsNorm<'a> {
    /// `[T, width]`.
    pub x: Rows,
    /// `[width]`.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// `[T, width]`; may be `x`.
    pub out: Rows,
}

/// `out = x * rsqrt(sum(x^2) + eps) * scale`, head by head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct L2Norm {
    /// `[T, heads * head_dim]`.
    pub x: Rows,
    /// Number of heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor after the norm.
    pub scale: f32,
    /// Added to the sum of squares.
    pub eps: f32,
    /// `[T, heads * head_dim]`; may be `x`.
    pub out: Rows,
}

/// `out = weight * x * rsqrt(mean(x^2) + eps) * silu(gate)`, head by head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatedRmsNorm<'a> {
    /// `[T, heads * head_dim]`.
    pub x: Rows,
    /// `[T, heads * head_dim]`.
    pub gate: Rows,
    /// `[head_dim]`.
    pub weight: &'a [f32],
    /// Number of heads.
    pub heads: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// `[T, heads * head_dim]`; may be `x` or `gate`.
    pub out: Rows,
}

/// The zero-centred RMS norm of every head, then rotary embedding of its first `rotary_dim` dimensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QkNormRope<'a> {
    /// `[T, heads * head_dim]`.
    pub x: Rows,
    /// `[head_dim]`.
    pub weight: &'a [f32],
    /// Number of heads.
    pub heads: usize,
    /// Rotated dimensions, even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// `[entries, rotary_dim]`, rows made by [`fill_rope`].
    pub rope: &'a [f32],
    /// `[T]`: which row of `rope` belongs to each row of `x`.
    pub rope_rows: &'a [u32],
    /// `[T, heads * head_dim]`; may be `x`.
    pub out: Rows,
}

/// Writes one row of `rotary_dim` floats for each of `positions`: the cosines of all `rotary_dim / 2` angles, then
/// their sines. Angles are rounded to f32 as Hugging Face's rotary embedding rounds them.
pub(crate) fn fill_rope(positions: Range<usize>, rotary_dim: usize, theta: f32, out: &mut [f32]) {
    let _ = (positions, rotary_dim, theta, out);
    todo!()
}

/// [`RmsNorm`] of some rows.
pub(crate) unsafe fn rms_norm(level: SimdLevel, args: &RmsNorm<'_>, rows: Range<usize>) {
    let _ = (level, args, rows);
    todo!()
}
/// [`L2Norm`] of some rows.
pub(crate) unsafe fn l2_norm(level: SimdLevel, args: &L2Norm, rows: Range<usize>) {
    let _ = (level, args, rows);
    todo!()
}
/// [`GatedRmsNorm`] of some rows.
pub(crate) unsafe fn gated_rms_norm(level: SimdLevel, args: &GatedRmsNorm<'_>, rows: Range<usize>) {
    let _ = (level, args, rows);
    todo!()
}
/// [`QkNormRope`] of some rows.
pub(crate) unsafe fn qk_norm_rope(level: SimdLevel, args: &QkNormRope<'_>, rows: Range<usize>) {
    let _ = (level, args, rows);
    todo!()
}
