//! Norms of rows and of heads, and the rotary embedding that follows one of them.

use super::{Rows, load_up_to, store_up_to};
use crate::simd::{LANES, Simd, simd_dispatch};
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
    /// How many heads, from the first, are scaled.
    pub scaled: usize,
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
/// their sines. Frequencies and angles are rounded to f32 where Hugging Face's rotary embedding rounds them.
pub(crate) fn fill_rope(positions: Range<usize>, rotary_dim: usize, theta: f32, out: &mut [f32]) {
    let half = rotary_dim / 2;
    assert_eq!(out.len(), positions.len() * rotary_dim);
    if half == 0 {
        return;
    }
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / rotary_dim as f32;
        1.0 / (f64::from(theta).powf(f64::from(exponent)) as f32)
    };
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    for (position, row) in positions.zip(out.chunks_exact_mut(rotary_dim)) {
        let (cosines, sines) = row.split_at_mut(half);
        for ((frequency, cosine), sine) in frequencies.iter().zip(cosines).zip(sines) {
            let angle = f64::from(position as f32 * frequency);
            *cosine = angle.cos() as f32;
            *sine = angle.sin() as f32;
        }
    }
}

/// Sum of squares of `width` floats, in an order that depends on nothing but `width`.
#[inline(always)]
unsafe fn sum_of_squares<S: Simd>(x: *const f32, width: usize) -> f32 {
    const CHAINS: usize = 4;
    // SAFETY: `x` has `width` floats, and the processor has the level.
    unsafe {
        let mut sums = [S::splat(0.0); CHAINS];
        let mut column = 0;
        while column < width {
            for (chain, sum) in sums.iter_mut().enumerate() {
                let at = column + chain * LANES;
                if at < width {
                    let x = load_up_to::<S>(x.add(at), width - at);
                    *sum = S::fma(x, x, *sum);
                }
            }
            column += CHAINS * LANES;
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

#[inline(always)]
unsafe fn rms_norm_rows<S: Simd>(args: &RmsNorm<'_>, rows: Range<usize>) {
    let width = args.weight.len();
    for row in rows {
        // SAFETY: the caller gives rows of `weight.len()` floats.
        unsafe {
            let (x, out) = (args.x.row(row), args.out.row(row));
            let mean = sum_of_squares::<S>(x, width) / width as f32;
            norm_by::<S>(x, args.weight.as_ptr(), 1.0 / (mean + args.eps).sqrt(), width, out);
        }
    }
}

/// `out = x * factor * (1 + weight)`.
#[inline(always)]
unsafe fn norm_by<S: Simd>(x: *const f32, weight: *const f32, factor: f32, width: usize, out: *mut f32) {
    // SAFETY: all three have `width` floats.
    unsafe {
        let (factor, one) = (S::splat(factor), S::splat(1.0));
        let mut column = 0;
        while column < width {
            let count = width - column;
            let weight = S::add(load_up_to::<S>(weight.add(column), count), one);
            let y = S::mul(S::mul(load_up_to::<S>(x.add(column), count), factor), weight);
            store_up_to::<S>(out.add(column), y, count);
            column += LANES;
        }
    }
}

#[inline(always)]
unsafe fn l2_norm_rows<S: Simd>(args: &L2Norm, rows: Range<usize>) {
    for row in rows {
        for head in 0..args.heads {
            // SAFETY: the caller gives rows of `heads * head_dim` floats.
            unsafe {
                let x = args.x.row(row).add(head * args.head_dim);
                let out = args.out.row(row).add(head * args.head_dim);
                let sum = sum_of_squares::<S>(x, args.head_dim);
                let scale = if head < args.scaled { args.scale } else { 1.0 };
                let factor = S::splat(scale / (sum + args.eps).sqrt());
                let mut column = 0;
                while column < args.head_dim {
                    let count = args.head_dim - column;
                    let y = S::mul(load_up_to::<S>(x.add(column), count), factor);
                    store_up_to::<S>(out.add(column), y, count);
                    column += LANES;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn gated_rms_norm_rows<S: Simd>(args: &GatedRmsNorm<'_>, rows: Range<usize>) {
    let width = args.weight.len();
    for row in rows {
        for head in 0..args.heads {
            // SAFETY: the caller gives rows of `heads * weight.len()` floats.
            unsafe {
                let x = args.x.row(row).add(head * width);
                let gate = args.gate.row(row).add(head * width);
                let out = args.out.row(row).add(head * width);
                let mean = sum_of_squares::<S>(x, width) / width as f32;
                let factor = S::splat(1.0 / (mean + args.eps).sqrt());
                let mut column = 0;
                while column < width {
                    let count = width - column;
                    let weight = load_up_to::<S>(args.weight.as_ptr().add(column), count);
                    let y = S::mul(S::mul(load_up_to::<S>(x.add(column), count), factor), weight);
                    let y = S::mul(y, S::silu(load_up_to::<S>(gate.add(column), count)));
                    store_up_to::<S>(out.add(column), y, count);
                    column += LANES;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn qk_norm_rope_rows<S: Simd>(args: &QkNormRope<'_>, rows: Range<usize>) {
    let (width, half) = (args.weight.len(), args.rotary_dim / 2);
    let weight = args.weight.as_ptr();
    for row in rows {
        let angles = &args.rope[args.rope_rows[row] as usize * args.rotary_dim..][..args.rotary_dim];
        for head in 0..args.heads {
            // SAFETY: the caller gives rows of `heads * weight.len()` floats; `rotary_dim <= weight.len()`.
            unsafe {
                let x = args.x.row(row).add(head * width);
                let out = args.out.row(row).add(head * width);
                let mean = sum_of_squares::<S>(x, width) / width as f32;
                let factor = 1.0 / (mean + args.eps).sqrt();
                let (scale, one) = (S::splat(factor), S::splat(1.0));
                let mut column = 0;
                // In place, a pair is read whole before either half is written.
                while column < half {
                    let count = half - column;
                    let mut pair = [one; 2];
                    for (value, at) in pair.iter_mut().zip([column, column + half]) {
                        let weight = S::add(load_up_to::<S>(weight.add(at), count), one);
                        *value = S::mul(S::mul(load_up_to::<S>(x.add(at), count), scale), weight);
                    }
                    let [a, b] = pair;
                    let cosine = load_up_to::<S>(angles.as_ptr().add(column), count);
                    let sine = load_up_to::<S>(angles.as_ptr().add(column + half), count);
                    store_up_to::<S>(out.add(column), S::sub(S::mul(a, cosine), S::mul(b, sine)), count);
                    store_up_to::<S>(out.add(column + half), S::fma(b, cosine, S::mul(a, sine)), count);
                    column += LANES;
                }
                let rest = args.rotary_dim;
                if rest < width {
                    norm_by::<S>(x.add(rest), weight.add(rest), factor, width - rest, out.add(rest));
                }
            }
        }
    }
}

simd_dispatch! {
    /// [`RmsNorm`] of some rows.
    pub(crate) fn rms_norm(args: &RmsNorm<'_>, rows: Range<usize>) = rms_norm_rows
}
simd_dispatch! {
    /// [`L2Norm`] of some rows.
    pub(crate) fn l2_norm(args: &L2Norm, rows: Range<usize>) = l2_norm_rows
}
simd_dispatch! {
    /// [`GatedRmsNorm`] of some rows.
    pub(crate) fn gated_rms_norm(args: &GatedRmsNorm<'_>, rows: Range<usize>) = gated_rms_norm_rows
}
simd_dispatch! {
    /// [`QkNormRope`] of some rows.
    pub(crate) fn qk_norm_rope(args: &QkNormRope<'_>, rows: Range<usize>) = qk_norm_rope_rows
}

#[cfg(test)]
mod tests;
