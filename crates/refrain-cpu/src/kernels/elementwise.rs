//! Element-wise kernels: gates, sums, copies of rows.

use super::Rows;
use crate::simd::SimdLevel;
use std::ops::Range;

/// Two inputs, one output, element by element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairwise {
    /// `[T, width]`.
    pub a: Rows,
    /// `[T, width]`.
    pub b: Rows,
    /// Elements in a row.
    pub width: usize,
    /// `[T, width]`; may be `a` or `b`.
    pub out: Rows,
}

/// `beta = sigmoid(b)`, `decay = -exp(a_log) * softplus(a + dt_bias)`, per value head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GdnGates<'a> {
    /// `[T, value_heads]`.
    pub b: Rows,
    /// `[T, value_heads]`.
    pub a: Rows,
    /// `[value_heads]`.
    pub a_log: &'a [f32],
    /// `[value_heads]`.
    pub dt_bias: &'a [f32],
    /// `[T, value_heads]`; may be `b`.
    pub beta: Rows,
    /// `[T, value_heads]`; may be `a`.
    pub decay: Rows,
}

/// `out = a * sigmoid(b)` for some rows.
pub(crate) unsafe fn sigmoid_gate(level: SimdLevel, args: &Pairwise, rows: Range<usize>) {
    let _ = (level, args, rows);
    todo!()
}
/// `out = silu(a) * b` for some rows.
pub(crate) unsafe fn silu_mul(level: SimdLevel, args: &Pairwise, rows: Range<usize>) {
    let _ = (level, args, rows);
    todo!()
}
/// `out = a + b` for some rows.
pub(crate) unsafe fn add(level: SimdLevel, args: &Pairwise, rows: Range<usize>) {
    let _ = (level, args, rows);
    todo!()
}
/// [`GdnGates`] of some rows.
pub(crate) unsafe fn gdn_gates(args: &GdnGates<'_>, rows: Range<usize>) {
    let _ = (args, rows);
    todo!()
}
/// `out[i] = x[index[i]]` for the `i` in `rows`.
pub(crate) unsafe fn gather_rows(x: Rows, index: &[u32], width: usize, out: Rows, rows: Range<usize>) {
    let _ = (x, index, width, out, rows);
    todo!()
}
