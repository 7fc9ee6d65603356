//! `out = x W^T` over packed panels.
//!
//! Every output element is one sum over the inputs in ascending order in one accumulator, whatever the number of rows
//! and whichever thread computes it: a row's result never depends on the other rows. That is what makes the engine
//! batch-invariant, and the register blocking below is free to differ with the number of rows.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod around;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod f32;

pub(crate) use around::{Around, Epilogue, Prologue, halves_are_panels, scratch_floats};

use crate::Precision;
use crate::isa::Isa;
use crate::kernels::{Rows, Shared};
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
    /// `[rows, outputs]`, half as wide with [`Epilogue::SiluMul`].
    pub(crate) out: Rows,
    pub(crate) rows: usize,
}

impl Product {
    /// Where the outputs of a panel in a row go.
    #[inline(always)]
    fn out_at(&self, row: usize, panel: usize) -> *mut f32 {
        self.out.data.wrapping_add(row * self.out.stride + panel * PANEL)
    }
}

/// Memory that a product works in.
#[derive(Clone, Copy)]
pub(crate) struct Workspace {
    /// For inputs rounded to bf16: [`workspace_bytes`], 64-byte aligned.
    pub(crate) rounded: Shared<u8>,
    /// Of each worker, one behind the other.
    pub(crate) scratch: Shared<f32>,
    /// Floats of one worker, at least [`scratch_floats`] of what is around the product.
    pub(crate) scratch_floats: usize,
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

/// Rows of an item that prepares inputs.
const INPUT_ROWS: usize = 16;

/// Computes the product, and what is around it, on all threads.
///
/// # Safety
/// The processor has `isa`; the views are good for the product's rows; the workspace is as large as it says and used by
/// nobody else. With [`Epilogue::SiluMul`] the matrix has [`halves_are_panels`].
pub(crate) unsafe fn run(
    pool: &mut Pool,
    isa: Isa,
    precision: Precision,
    product: &Product,
    around: &Around<'_>,
    workspace: &Workspace,
) {
    let arithmetic = arithmetic(isa, precision, product.matrix.dtype);
    let rounded =
        Rounded { data: workspace.rounded.0.cast(), stride: product.matrix.inputs.next_multiple_of(TILE_INPUTS) };
    let worker_scratch = |worker: usize| { workspace.scratch }.0.wrapping_add(worker * workspace.scratch_floats);
    if arithmetic != Arithmetic::F32 {
        let inputs = product.matrix.inputs;
        pool.run(product.rows.div_ceil(INPUT_ROWS), &|item, worker| {
            let last = product.rows.min((item + 1) * INPUT_ROWS);
            for row in item * INPUT_ROWS..last {
                let x = match around.prologue {
                    None => product.x,
                    Some(prologue) => {
                        // One row at a time, which is still in the cache when it is rounded.
                        let one = Rows { data: worker_scratch(worker), stride: 0 };
                        prologue(row..row + 1, one);
                        one
                    }
                };
                // SAFETY: the row is the product's; no other item touches it.
                unsafe { round_row(isa.simd(), x.row(row), rounded.row(row), inputs) };
            }
        });
    } else if let Some(prologue) = around.prologue {
        pool.run(product.rows.div_ceil(INPUT_ROWS), &|item, _| {
            prologue(item * INPUT_ROWS..product.rows.min((item + 1) * INPUT_ROWS), product.x);
        });
    }
    let panels = match around.epilogue {
        Epilogue::SiluMul => product.matrix.panels() / 2,
        _ => product.matrix.panels(),
    };
    let groups = panels.div_ceil(ITEM_PANELS);
    let block = row_block(product.rows, groups, pool.threads());
    let blocks = product.rows.div_ceil(block);
    pool.run(groups * blocks, &|item, worker| {
        let (row_block, group) = (item / groups, item % groups);
        let first_row = row_block * block;
        let first_panel = group * ITEM_PANELS;
        let tile = Tile {
            first_row,
            rows: block.min(product.rows - first_row),
            first_panel,
            panels: ITEM_PANELS.min(panels - first_panel),
        };
        // SAFETY: items are disjoint in `out`; the rest is the caller's promise.
        let compute = |product: &Product, tile: &Tile| unsafe {
            match arithmetic {
                Arithmetic::F32 => f32::run_tile(isa.simd(), product, tile),
                #[cfg(target_arch = "x86_64")]
                Arithmetic::DotBf16 => bf16::run_tile(product, tile, rounded),
                #[cfg(target_arch = "x86_64")]
                Arithmetic::Tiles => amx::run_tile(product, tile, rounded),
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("arithmetic of another architecture"),
            }
        };
        // SAFETY: as above; the scratch is this worker's.
        unsafe { around.epilogue.finish(isa.simd(), product, &tile, worker_scratch(worker), &compute) };
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
