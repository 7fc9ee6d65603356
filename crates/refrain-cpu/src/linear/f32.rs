//! The product in f32: weights of any type are widened in registers, inputs are used as they are.

use super::{Product, Tile, lanes_of};
use crate::matrix::PANEL;
use crate::simd::{LANES, Simd, simd_dispatch};
use refrain_program::Dtype;

/// How a panel's weights are read, two inputs at a time.
trait Format {
    /// Weights of inputs `2 pair` and `2 pair + 1`.
    unsafe fn pair<S: Simd>(panel: *const u8, pair: usize) -> (S::V, S::V);
    /// Weights of the last input when their number is odd.
    unsafe fn last<S: Simd>(panel: *const u8, input: usize) -> S::V;
}

struct Bf16;
struct F16;
struct F32;

// SAFETY (all methods): the caller has the level and the input lies in the panel.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Format for Bf16 {
    #[inline(always)]
    unsafe fn pair<S: Simd>(panel: *const u8, pair: usize) -> (S::V, S::V) {
        unsafe { S::load_bf16_pairs(panel.cast::<u16>().add(pair * 2 * PANEL)) }
    }
    #[inline(always)]
    unsafe fn last<S: Simd>(panel: *const u8, input: usize) -> S::V {
        unsafe { S::load_bf16_pairs(panel.cast::<u16>().add(input * PANEL)).0 }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Format for F16 {
    #[inline(always)]
    unsafe fn pair<S: Simd>(panel: *const u8, pair: usize) -> (S::V, S::V) {
        unsafe { (Self::last::<S>(panel, 2 * pair), Self::last::<S>(panel, 2 * pair + 1)) }
    }
    #[inline(always)]
    unsafe fn last<S: Simd>(panel: *const u8, input: usize) -> S::V {
        unsafe { S::load_f16(panel.cast::<u16>().add(input * PANEL)) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Format for F32 {
    #[inline(always)]
    unsafe fn pair<S: Simd>(panel: *const u8, pair: usize) -> (S::V, S::V) {
        unsafe { (Self::last::<S>(panel, 2 * pair), Self::last::<S>(panel, 2 * pair + 1)) }
    }
    #[inline(always)]
    unsafe fn last<S: Simd>(panel: *const u8, input: usize) -> S::V {
        unsafe { S::load(panel.cast::<f32>().add(input * PANEL)) }
    }
}

/// `R` rows by `P` panels in registers.
#[inline(always)]
unsafe fn block<S: Simd, F: Format, const R: usize, const P: usize>(product: &Product, row: usize, panel: usize) {
    let inputs = product.matrix.inputs;
    // SAFETY: rows and panels lie inside the product.
    unsafe {
        let x: [*const f32; R] = std::array::from_fn(|r| product.x.row(row + r).cast_const());
        let panels: [*const u8; P] = std::array::from_fn(|p| product.matrix.panel(panel + p));
        let mut sums = [[S::splat(0.0); P]; R];
        for pair in 0..inputs / 2 {
            let mut even = [S::splat(0.0); R];
            let mut odd = [S::splat(0.0); R];
            for r in 0..R {
                even[r] = S::splat(*x[r].add(2 * pair));
                odd[r] = S::splat(*x[r].add(2 * pair + 1));
            }
            for p in 0..P {
                let (first, second) = F::pair::<S>(panels[p], pair);
                for r in 0..R {
                    sums[r][p] = S::fma(second, odd[r], S::fma(first, even[r], sums[r][p]));
                }
            }
        }
        if !inputs.is_multiple_of(2) {
            for p in 0..P {
                let weights = F::last::<S>(panels[p], inputs - 1);
                for r in 0..R {
                    sums[r][p] = S::fma(weights, S::splat(*x[r].add(inputs - 1)), sums[r][p]);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (p, sum) in sums.into_iter().enumerate() {
                let out = product.out_at(row + r, panel + p);
                match lanes_of(&product.matrix, panel + p) {
                    LANES => S::store(out, sum),
                    lanes => S::store_part(out, sum, lanes),
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn rows_of<S: Simd, F: Format, const P: usize>(product: &Product, tile: &Tile, panel: usize) {
    let mut row = tile.first_row;
    let end = tile.first_row + tile.rows;
    // SAFETY: as in `block`.
    unsafe {
        while row + 4 <= end {
            block::<S, F, 4, P>(product, row, panel);
            row += 4;
        }
        match end - row {
            3 => block::<S, F, 3, P>(product, row, panel),
            2 => block::<S, F, 2, P>(product, row, panel),
            1 => block::<S, F, 1, P>(product, row, panel),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn tile_of<S: Simd, F: Format>(product: &Product, tile: &Tile) {
    let end = tile.first_panel + tile.panels;
    let mut panel = tile.first_panel;
    // Four panels need more registers than AVX2 has, unless there is one row only.
    let wide = S::REGISTERS >= 32 || tile.rows == 1;
    // SAFETY: as in `block`.
    unsafe {
        while panel < end {
            if wide && panel + 4 <= end {
                rows_of::<S, F, 4>(product, tile, panel);
                panel += 4;
            } else {
                rows_of::<S, F, 1>(product, tile, panel);
                panel += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_with<S: Simd>(product: &Product, tile: &Tile) {
    // SAFETY: as in `block`.
    unsafe {
        match product.matrix.dtype {
            Dtype::Bf16 => tile_of::<S, Bf16>(product, tile),
            Dtype::F16 => tile_of::<S, F16>(product, tile),
            Dtype::F32 => tile_of::<S, F32>(product, tile),
        }
    }
}

simd_dispatch!(
    /// Computes one tile of a product; nobody else writes it.
    pub(super) fn run_tile(product: &Product, tile: &Tile) = tile_with
);
