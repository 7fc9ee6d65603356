//! Element-wise kernels: gates, sums, copies of rows.

use super::{Rows, load_up_to, store_up_to};
use crate::simd::{LANES, Simd, simd_dispatch};
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

/// One of the pairwise kernels: the loop over rows and registers around `$compute`.
macro_rules! pairwise {
    ($(#[$doc:meta])* $name:ident, $generic:ident, $S:ident, $a:ident, $b:ident, $compute:expr) => {
        #[inline(always)]
        unsafe fn $generic<$S: Simd>(args: &Pairwise, rows: Range<usize>) {
            for row in rows {
                // SAFETY: the caller gives rows of `width` floats.
                unsafe {
                    let (a, b, out) = (args.a.row(row), args.b.row(row), args.out.row(row));
                    let mut column = 0;
                    while column < args.width {
                        let count = args.width - column;
                        let $a = load_up_to::<$S>(a.add(column), count);
                        let $b = load_up_to::<$S>(b.add(column), count);
                        store_up_to::<$S>(out.add(column), $compute, count);
                        column += LANES;
                    }
                }
            }
        }
        simd_dispatch! {
            $(#[$doc])*
            pub(crate) fn $name(args: &Pairwise, rows: Range<usize>) = $generic
        }
    };
}

pairwise!(
    /// `out = a * sigmoid(b)` for some rows.
    sigmoid_gate, sigmoid_gate_rows, S, a, b, S::mul(a, S::sigmoid(b))
);
pairwise!(
    /// `out = silu(a) * b` for some rows.
    silu_mul, silu_mul_rows, S, a, b, S::mul(S::silu(a), b)
);
pairwise!(
    /// `out = a + b` for some rows.
    add, add_rows, S, a, b, S::add(a, b)
);

/// Above this, `softplus(x)` is `x`, as in PyTorch.
const SOFTPLUS_THRESHOLD: f32 = 20.0;

fn softplus(x: f32) -> f32 {
    if x > SOFTPLUS_THRESHOLD { x } else { x.exp().ln_1p() }
}

/// [`GdnGates`] of some rows.
///
/// # Safety
/// Rows have one float for each value head.
pub(crate) unsafe fn gdn_gates(args: &GdnGates<'_>, rows: Range<usize>) {
    for (head, (a_log, dt_bias)) in args.a_log.iter().zip(args.dt_bias).enumerate() {
        let rate = -a_log.exp();
        for row in rows.clone() {
            // SAFETY: by contract the rows have this head.
            unsafe {
                let (a, b) = (*args.a.row(row).add(head), *args.b.row(row).add(head));
                *args.beta.row(row).add(head) = 1.0 / (1.0 + (-b).exp());
                *args.decay.row(row).add(head) = rate * softplus(a + dt_bias);
            }
        }
    }
}

/// `out[i] = x[index[i]]` for the `i` in `rows`.
///
/// # Safety
/// Rows have `width` floats, indices are rows of `x`, and `out` doesn't overlap `x`.
pub(crate) unsafe fn gather_rows(x: Rows, index: &[u32], width: usize, out: Rows, rows: Range<usize>) {
    for row in rows {
        // SAFETY: by contract.
        unsafe { std::ptr::copy_nonoverlapping(x.row(index[row] as usize), out.row(row), width) };
    }
}

#[cfg(test)]
mod tests;
