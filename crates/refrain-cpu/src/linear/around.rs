//! What is done to the input and to the result of a product while they are in the cache.

use super::{ITEM_PANELS, ITEM_ROWS, Product, Tile, lanes_of};
use crate::kernels::Rows;
use crate::kernels::elementwise::{Pairwise, add, silu_mul};
use crate::matrix::{Matrix, PANEL};
use crate::simd::SimdLevel;
use std::ops::Range;

/// What is done around a product.
#[derive(Clone, Copy)]
pub(crate) struct Around<'a> {
    /// Makes the input.
    pub(crate) prologue: Option<Prologue<'a>>,
    /// What becomes of the result.
    pub(crate) epilogue: Epilogue,
}

/// Writes some rows of the product's input. Where it goes is the product's `x`, or one row of scratch whose stride is 0.
pub(crate) type Prologue<'a> = &'a (dyn Fn(Range<usize>, Rows) + Sync);

/// What becomes of the result of a product.
#[derive(Clone, Copy)]
pub(crate) enum Epilogue {
    /// It is written.
    None,
    /// `out = residual + product`.
    Add {
        /// `[rows, outputs]`; may be `out`.
        residual: Rows,
    },
    /// `out = silu(first half) * second half`.
    SiluMul,
}

/// Whether the second half of a matrix begins with a panel of its own: only then [`Epilogue::SiluMul`] can be had.
pub(crate) fn halves_are_panels(matrix: &Matrix) -> bool {
    matrix.outputs.is_multiple_of(2 * PANEL)
}

/// Floats of scratch that each worker needs: a row of inputs, or a tile of results of both halves.
pub(crate) fn scratch_floats(inputs: usize) -> usize {
    inputs.max(2 * ITEM_ROWS * ITEM_PANELS * PANEL)
}

impl Epilogue {
    /// Computes one tile and does to it what is to be done.
    ///
    /// # Safety
    /// The processor has `level`, nobody else writes this tile or uses the scratch, which has [`scratch_floats`].
    pub(super) unsafe fn finish(
        &self,
        level: SimdLevel,
        product: &Product,
        tile: &Tile,
        scratch: *mut f32,
        compute: &dyn Fn(&Product, &Tile),
    ) {
        let stride = ITEM_PANELS * PANEL;
        let rows = tile.first_row..tile.first_row + tile.rows;
        let last = tile.first_panel + tile.panels - 1;
        let width = (tile.panels - 1) * PANEL + lanes_of(&product.matrix, last);
        // Rows and panels are addressed by their numbers in the whole product.
        let in_scratch = |scratch: *mut f32, first_panel: usize| Rows {
            data: scratch.wrapping_sub(tile.first_row * stride + first_panel * PANEL),
            stride,
        };
        let column = tile.first_panel * PANEL;
        let out = product.out.at_column(column);
        match *self {
            Epilogue::None => compute(product, tile),
            Epilogue::Add { residual } => {
                let result = in_scratch(scratch, tile.first_panel);
                compute(&Product { out: result, ..*product }, tile);
                let b = result.at_column(column);
                let sum = Pairwise { a: residual.at_column(column), b, width, out };
                // SAFETY: the columns of the tile's panels exist in all three.
                unsafe { add(level, &sum, rows) };
            }
            Epilogue::SiluMul => {
                let half = product.matrix.panels() / 2;
                let gate = in_scratch(scratch, tile.first_panel);
                compute(&Product { out: gate, ..*product }, tile);
                let up = in_scratch(scratch.wrapping_add(ITEM_ROWS * stride), half + tile.first_panel);
                let second = Tile { first_panel: half + tile.first_panel, ..*tile };
                compute(&Product { out: up, ..*product }, &second);
                let up = up.at_column((half + tile.first_panel) * PANEL);
                let gated = Pairwise { a: gate.at_column(column), b: up, width: tile.panels * PANEL, out };
                // SAFETY: as above; both halves have whole panels.
                unsafe { silu_mul(level, &gated, rows) };
            }
        }
    }
}
