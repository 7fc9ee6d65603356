//! Small matrix products whose sums stay in registers.

use super::kv_element::Element;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{LANES, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// What the tiles need beyond [`Simd`].
///
/// Every sum is a chain of its own over ascending `k`, so the shape of a tile changes the speed and not one bit of the
/// result.
#[allow(clippy::missing_safety_doc)] // as for `Simd`
pub(crate) trait Tile: Simd {
    /// Registers' worth of sums that fit beside the operands.
    const SUMS: usize;
    /// Sixteen registers as the rows of a square: its columns.
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES];
}

impl Tile for Portable {
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }
}

#[cfg(target_arch = "x86_64")]
impl Tile for Avx2 {
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut quarters = [rows[0].0; 4 * 8];
        for i in 0..8 {
            (quarters[i], quarters[8 + i]) = rows[i];
            (quarters[16 + i], quarters[24 + i]) = rows[8 + i];
        }
        // SAFETY: the caller has AVX2.
        unsafe {
            for quarter in quarters.chunks_exact_mut(8) {
                let mut pairs = [quarter[0]; 8];
                for i in 0..4 {
                    pairs[2 * i] = _mm256_unpacklo_ps(quarter[2 * i], quarter[2 * i + 1]);
                    pairs[2 * i + 1] = _mm256_unpackhi_ps(quarter[2 * i], quarter[2 * i + 1]);
                }
                // fours[4 g + c]: columns c and 4 + c of rows 4 g to 4 g + 3.
                let mut fours = pairs;
                for i in 0..4 {
                    let (low, high) = (pairs[i / 2 * 4 + i % 2], pairs[i / 2 * 4 + i % 2 + 2]);
                    fours[2 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(low, high);
                    fours[2 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(low, high);
                }
                for i in 0..4 {
                    quarter[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
                    quarter[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
                }
            }
        }
        let mut columns = rows;
        for i in 0..8 {
            columns[i] = (quarters[i], quarters[16 + i]);
            columns[8 + i] = (quarters[8 + i], quarters[24 + i]);
        }
        columns
    }
}

#[cfg(target_arch = "x86_64")]
impl Tile for Avx512 {
    const SUMS: usize = 16;

    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
        // SAFETY: the caller has AVX-512.
        unsafe {
            let mut pairs = rows;
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // fours[4 g + c]: columns c, 4 + c, 8 + c and 12 + c of rows 4 g to 4 g + 3.
            let mut fours = rows;
            for i in 0..8 {
                let (low, high) = (pairs[i / 2 * 4 + i % 2], pairs[i / 2 * 4 + i % 2 + 2]);
                fours[2 * i] = _mm512_shuffle_ps::<0b01_00_01_00>(low, high);
                fours[2 * i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(low, high);
            }
            let mut columns = rows;
            for c in 0..4 {
                let (a, b, d, e) = (fours[c], fours[4 + c], fours[8 + c], fours[12 + c]);
                let (even, more_even) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(d, e));
                let (odd, more_odd) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(d, e));
                columns[c] = _mm512_shuffle_f32x4::<0x88>(even, more_even);
                columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, more_odd);
                columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even, more_even);
                columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd, more_odd);
            }
            columns
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{SimdLevel, simd_dispatch};

    #[inline(always)]
    unsafe fn transpose_square<S: Tile>(square: &mut [[f32; LANES]; LANES]) {
        // SAFETY: rows of 16 floats, at an available level.
        unsafe {
            let mut rows = [S::splat(0.0); LANES];
            for (register, row) in rows.iter_mut().zip(square.iter()) {
                *register = S::load(row.as_ptr());
            }
            for (register, row) in S::transpose(rows).iter().zip(square) {
                S::store(row.as_mut_ptr(), *register);
            }
        }
    }
    simd_dispatch!(fn run_transpose(square: &mut [[f32; LANES]; LANES]) = transpose_square);

    #[test]
    fn squares_are_transposed() {
        for level in SimdLevel::available() {
            let mut square = std::array::from_fn(|i| std::array::from_fn(|j| (100 * i + j) as f32));
            // SAFETY: the level is available.
            unsafe { run_transpose(level, &mut square) };
            for (i, row) in square.iter().enumerate() {
                for (j, &x) in row.iter().enumerate() {
                    assert_eq!(x, (100 * j + i) as f32, "{level:?}");
                }
            }
        }
    }
}
