//! The product with `vdpbf16ps`: inputs rounded to bf16, pairs of products summed in f32.

use super::{Product, Rounded, Tile, lanes_of};
use crate::matrix::TILE_INPUTS;
use std::arch::x86_64::*;

/// `R` rows by `P` panels in registers: 24 sums, one row of weights at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn block<const R: usize, const P: usize>(product: &Product, x: Rounded, row: usize, panel: usize) {
    // Zeros follow the last input in panels and inputs alike; whole tiles are not needed here, whole pairs are.
    let pairs = product.matrix.inputs.div_ceil(2);
    debug_assert!(pairs * 2 <= product.matrix.inputs.next_multiple_of(TILE_INPUTS));
    // SAFETY: rows and panels lie inside the product; both hold `pairs` pairs.
    unsafe {
        let x: [*const i32; R] = std::array::from_fn(|r| x.row(row + r).cast_const().cast());
        let panels: [*const __m512i; P] = std::array::from_fn(|p| product.matrix.panel(panel + p).cast());
        let mut sums = [[_mm512_setzero_ps(); P]; R];
        for pair in 0..pairs {
            let weights: [__m512i; P] = std::array::from_fn(|p| _mm512_loadu_si512(panels[p].add(pair)));
            for (sums, x) in sums.iter_mut().zip(x) {
                let input = _mm512_set1_epi32(x.add(pair).read_unaligned());
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    let weights = std::mem::transmute::<__m512i, __m512bh>(weights);
                    *sum = _mm512_dpbf16_ps(*sum, weights, std::mem::transmute::<__m512i, __m512bh>(input));
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (p, sum) in sums.into_iter().enumerate() {
                let out = product.out_at(row + r, panel + p);
                let mask = ((1u32 << lanes_of(&product.matrix, panel + p)) - 1) as __mmask16;
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn rows_of<const P: usize>(product: &Product, tile: &Tile, x: Rounded, panel: usize) {
    let mut row = tile.first_row;
    let end = tile.first_row + tile.rows;
    // SAFETY: as in `block`.
    unsafe {
        while row + 6 <= end {
            block::<6, P>(product, x, row, panel);
            row += 6;
        }
        match end - row {
            5 => block::<5, P>(product, x, row, panel),
            4 => block::<4, P>(product, x, row, panel),
            3 => block::<3, P>(product, x, row, panel),
            2 => block::<2, P>(product, x, row, panel),
            1 => block::<1, P>(product, x, row, panel),
            _ => {}
        }
    }
}

/// Computes one tile of a product.
///
/// # Safety
/// As for [`super::run`]; the processor has AVX512-BF16, and nobody else writes this tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn run_tile(product: &Product, tile: &Tile, x: Rounded) {
    // SAFETY: as in `block`.
    unsafe {
        match tile.panels {
            4 => rows_of::<4>(product, tile, x, tile.first_panel),
            panels => (0..panels).for_each(|panel| rows_of::<1>(product, tile, x, tile.first_panel + panel)),
        }
    }
}
