//! `out = x weight^T`: a kernel for few rows ([`Gemv`]) and one for many ([`Tiled`]), and which is best for how many. The
//! one for few rows can also do what comes before and behind the product ([`Around`]).

mod around;
mod gemv;
mod tiled;

pub use around::{Around, Epilogue, Prologue};
pub use gemv::{Gemv, GemvPlan};
pub use tiled::{Tile, Tiled};

use super::rows::{are_wide, is_aligned, row_count};
use crate::{Count, LaunchSpec, Rows, StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_device::DevicePtr;
use refrain_program::Dtype;

/// The operands of a product.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// What the rows are.
    pub count: Count,
    /// `[rows, in]`.
    pub x: Rows,
    /// `[out, in]`, without gaps.
    pub weight: DevicePtr,
    /// Type of the weight.
    pub dtype: Dtype,
    /// `[rows, out]` in any type; not `x`.
    pub out: Rows,
}

/// The argument struct of all of these kernels.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinearArgs {
    rows: u64,
    x: u64,
    weight: u64,
    out: u64,
    x_stride: u32,
    out_stride: u32,
    outputs: u32,
    padding: u32,
}

impl Linear {
    fn arguments(&self, step: &StepPointers) -> LinearArgs {
        LinearArgs {
            rows: row_count(step, self.count),
            x: self.x.base.0,
            weight: self.weight.0,
            out: self.out.base.0,
            x_stride: self.x.stride,
            out_stride: self.out.stride,
            outputs: self.out.width,
            padding: 0,
        }
    }

    /// Whether rows of `x` and of the weight can be read 16 bytes at a time.
    fn is_wide(&self) -> bool {
        are_wide(&[self.x]) && is_aligned(self.weight)
    }

    /// Whether tensor cores can compute it.
    fn suits_mma(&self, target: &Target) -> bool {
        target.mma && self.is_wide() && self.x.dtype == self.dtype && self.dtype != Dtype::F32
    }
}

/// The instruction of tensor cores for a type, as kernels name it.
fn mma_define(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "kx_mma_bf16",
        Dtype::F16 => "kx_mma_f16",
        Dtype::F32 => panic!("tensor cores take no f32"),
    }
}

/// Most rows for [`Gemv`]. One more launch for every eight rows reads the weights again; above, a tile of rows shares
/// them.
pub const GEMV_ROWS: u32 = 8;

/// For how many rows there is a [`Gemv`], in steps of at most `end`.
fn few_rows(end: u32) -> Vec<u32> {
    [1, 2, 4].into_iter().filter(|rows| *rows < end).chain([end.min(GEMV_ROWS)]).collect()
}

/// What computes a product in steps of at most `end` rows, for up to how many, ascending. With a `library` of products the
/// list ends where that takes over, else its last entry has no end.
pub fn variants(
    linear: &Linear,
    target: &Target,
    step: &StepPointers,
    library: bool,
    end: u32,
) -> Vec<(u32, Vec<LaunchSpec>)> {
    let few = few_rows(end)
        .into_iter()
        .map(|rows| (rows, Gemv::choose(linear, &Around::default(), target, rows).launches(target, step)));
    let many = Tile::choices(linear, target, end).into_iter().map(|(most, tile)| {
        let tiled = Tiled { linear: *linear, tile };
        (most, tiled.launches(target, step))
    });
    if library { few.collect() } else { few.chain(many).collect() }
}

/// What computes a product with what is around it in steps of at most `end` rows, for up to how many, ascending; the last
/// has no end. `None` where not even one row of it fits into shared memory.
pub fn fused_variants(
    linear: &Linear,
    around: &Around,
    target: &Target,
    step: &StepPointers,
    end: u32,
) -> Option<Vec<(u32, Vec<LaunchSpec>)>> {
    let few = few_rows(end);
    let last = few[few.len() - 1];
    let variant = |rows| {
        let gemv = Gemv::choose(linear, around, target, rows);
        gemv.fits(target).then(|| (if rows == last { u32::MAX } else { rows }, gemv.launches(target, step)))
    };
    few.into_iter().map(variant).collect()
}
