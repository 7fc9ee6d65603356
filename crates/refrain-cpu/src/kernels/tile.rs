//! Small matrix products whose sums stay in registers.

use super::kv_cache::Element;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Simd};

/// How many sums fit into the registers beside the operands. Every sum is a chain of its own over ascending `k`, so the
/// shape of a tile changes the speed and not one bit of the result.
pub(crate) trait Tile: Simd {
    /// Registers' worth of sums.
    const SUMS: usize;
}

impl Tile for Portable {
    const SUMS: usize = 2;
}
#[cfg(target_arch = "x86_64")]
impl Tile for Avx2 {
    const SUMS: usize = 4;
}
#[cfg(target_arch = "x86_64")]
impl Tile for Avx512 {
    const SUMS: usize = 16;
}

/// The left operand of a product: element `(m, k)` is `data[m * row + k * step]`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub data: *const f32,
    pub row: usize,
    pub step: usize,
}

/// `sums[m][n] + sum over k of left(m, k) * right[n][k * step..][..16]`, `k` ascending.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, E: Element, const M: usize, const N: usize>(
    mut sums: [[S::V; N]; M],
    left: Left,
    right: [*const E; N],
    step: usize,
    depth: usize,
) -> [[S::V; N]; M] {
    for k in 0..depth {
        // SAFETY: the caller has `depth` columns on the left and rows on the right, and a processor with the level.
        unsafe {
            let mut b = [S::splat(0.0); N];
            for (b, right) in b.iter_mut().zip(&right) {
                *b = E::load::<S>(right.add(k * step));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let a = S::splat(*left.data.add(m * left.row + k * left.step));
                for (sum, b) in sums.iter_mut().zip(&b) {
                    *sum = S::fma(a, *b, *sum);
                }
            }
        }
    }
    sums
}
