//! `out = x W^T` over packed panels.
//!
//! Every output element is one sum over the inputs in ascending order in one accumulator, whatever the number of rows
//! and whichever thread computes it: a row's result never depends on the other rows. That is what makes the engine
//! batch-invariant, and the register blocking below is free to differ with the number of rows.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod f32;

use crate::Precision;
use crate::isa::Isa;
use crate::kernels::Rows;
use crate::matrix::{Matrix, PANEL, TILE_INPUTS};
use crate::pool::Pool;
use crate::simd::{LANES, Simd, simd_dispatch};
use refrain_program::{Dtype, Op, Program};

/// Panels that one item computes: enough streams of weights in flight to fill the memory's bandwidth.
const ITEM_PANELS: usize = 4;

/// Most rows that one item computes: their inputs stay in the cache while the weights pass by.
const ITEM_ROWS: usize = 256;

/// What one product reads and writes: `rows` rows.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// `[rows, inputs]`.
    pub(crate) x: Rows,
    pub(crate) matrix: Matrix,
    /// `[rows, outputs]`.
    pub(crate) out: Rows,
    pub(crate) rows: usize,
}

/// One item of a product: some rows of some panels.
#[derive(Clone, Copy)]
struct Tile {
    first_row: usize,
    rows: usize,
    first_panel: usize,
    panels: usize,
}

/// Rows that the AMX kernel reads at a time; the workspace is padded to it.
const TILE_ROWS: usize = 32;

/// Which arithmetic a product uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    /// f32 inputs, weights widened in registers.
    F32,
    /// Inputs rounded to bf16, `vdpbf16ps`.
    DotBf16,
    /// Inputs rounded to bf16, AMX tiles.
    Tiles,
}

fn arithmetic(isa: Isa, precision: Precision, dtype: Dtype) -> Arithmetic {
    match (precision, dtype, isa) {
        (Precision::Bf16, Dtype::Bf16, Isa::Amx) => Arithmetic::Tiles,
        (Precision::Bf16, Dtype::Bf16, Isa::Avx512Bf16) => Arithmetic::DotBf16,
        _ => Arithmetic::F32,
    }
}

/// What the products of `program` compute with, for people.
pub(crate) fn describe(isa: Isa, precision: Precision, program: &Program) -> String {
    let weights = program.nodes.iter().find_map(|node| match node.op {
        Op::Linear { weight, .. } => Some(program.weight(weight).dtype),
        _ => None,
    });
    let dtype = weights.unwrap_or(Dtype::F32);
    match arithmetic(isa, precision, dtype) {
        Arithmetic::F32 => format!("f32 on {}, {dtype} weights", isa.simd()),
        Arithmetic::DotBf16 | Arithmetic::Tiles => format!("bf16 on {isa}"),
    }
}

/// Bytes of workspace for inputs rounded to bf16: whole AMX tiles of rows and inputs.
pub(crate) fn workspace_bytes(rows: usize, inputs: usize) -> usize {
    rows.next_multiple_of(TILE_ROWS) * inputs.next_multiple_of(TILE_INPUTS) * 2
}

/// Computes the product on all threads.
///
/// # Safety
/// The processor has `isa`; the views are good for the product's rows; `workspace` is 64-byte aligned, good for
/// [`workspace_bytes`], and used by nobody else.
pub(crate) unsafe fn run(pool: &mut Pool, isa: Isa, precision: Precision, product: &Product, workspace: *mut u8) {
    let arithmetic = arithmetic(isa, precision, product.matrix.dtype);
    let workspace = Rounded { data: workspace.cast(), stride: product.matrix.inputs.next_multiple_of(TILE_INPUTS) };
    if arithmetic != Arithmetic::F32 {
        let inputs = product.matrix.inputs;
        let block = 16;
        pool.run(product.rows.div_ceil(block), &|item, _| {
            let last = product.rows.min((item + 1) * block);
            for row in item * block..last {
                // SAFETY: the row is the product's; no other item touches it.
                unsafe { round_row(isa.simd(), product.x.row(row), workspace.row(row), inputs) };
            }
        });
    }
    let groups = product.matrix.panels().div_ceil(ITEM_PANELS);
    let block = row_block(product.rows, groups, pool.threads());
    let blocks = product.rows.div_ceil(block);
    pool.run(groups * blocks, &|item, _| {
        let (row_block, group) = (item / groups, item % groups);
        let first_row = row_block * block;
        let first_panel = group * ITEM_PANELS;
        let tile = Tile {
            first_row,
            rows: block.min(product.rows - first_row),
            first_panel,
            panels: ITEM_PANELS.min(product.matrix.panels() - first_panel),
        };
        // SAFETY: items are disjoint in `out`; the rest is the caller's promise.
        unsafe {
            match arithmetic {
                Arithmetic::F32 => f32::run_tile(isa.simd(), product, &tile),
                #[cfg(target_arch = "x86_64")]
                Arithmetic::DotBf16 => bf16::run_tile(product, &tile, workspace),
                #[cfg(target_arch = "x86_64")]
                Arithmetic::Tiles => amx::run_tile(product, &tile, workspace),
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("arithmetic of another architecture"),
            }
        }
    });
}

/// Rows of an item: [`ITEM_ROWS`], or fewer where there would be too few items for the threads.
fn row_block(rows: usize, groups: usize, threads: usize) -> usize {
    let mut block = ITEM_ROWS;
    while block > 32 && groups * rows.div_ceil(block) < 4 * threads {
        block /= 2;
    }
    block
}

/// Inputs rounded to bf16: `[rows, stride]`, zeros after the last input.
#[derive(Clone, Copy)]
struct Rounded {
    data: *mut u16,
    stride: usize,
}

// SAFETY: items of a job write disjoint rows, and readers come in a later job.
unsafe impl Sync for Rounded {}

impl Rounded {
    fn row(&self, index: usize) -> *mut u16 {
        self.data.wrapping_add(index * self.stride)
    }
}

#[inline(always)]
unsafe fn round_row_with<S: Simd>(x: *const f32, to: *mut u16, inputs: usize) {
    let padded = inputs.next_multiple_of(TILE_INPUTS);
    for at in (0..padded).step_by(LANES) {
        // SAFETY: `x` is good for `inputs` floats, `to` for the padded number.
        unsafe {
            let value = match inputs.saturating_sub(at) {
                0 => S::splat(0.0),
                left if left < LANES => S::load_part(x.add(at), left),
                _ => S::load(x.add(at)),
            };
            S::store_bf16(to.add(at), value);
        }
    }
}
simd_dispatch!(fn round_row(x: *const f32, to: *mut u16, inputs: usize) = round_row_with);

/// Floats of a panel's 16 outputs that exist.
fn lanes_of(matrix: &Matrix, panel: usize) -> usize {
    PANEL.min(matrix.outputs - panel * PANEL)
}

#[cfg(test)]
mod tests;
