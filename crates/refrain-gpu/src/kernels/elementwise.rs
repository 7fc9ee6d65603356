//! `kernels/elementwise.cu`: ops that take element by element, and copies of rows.

use super::rows::{are_wide, row_count};
use crate::{Count, Extent, Kernel, LaunchSpec, Rows, StepPointers, Target};
use bytemuck::{NoUninit, Pod, Zeroable};
use refrain_device::DevicePtr;
use refrain_program::Dtype;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PairArgs {
    rows: u64,
    a: u64,
    b: u64,
    out: u64,
    a_stride: u32,
    b_stride: u32,
    out_stride: u32,
    width: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PickArgs {
    rows: u64,
    index: u64,
    chosen: u64,
    from: u64,
    out: u64,
    from_stride: u32,
    out_stride: u32,
    width: u32,
    padding: u32,
}

/// `out = a + b`.
#[derive(Clone, Copy, Debug)]
pub struct Add {
    /// What the rows are.
    pub count: Count,
    /// `[rows, width]`.
    pub a: Rows,
    /// `[rows, width]`.
    pub b: Rows,
    /// `[rows, width]`; may be `a` or `b` where it has that type.
    pub out: Rows,
}

/// `out = x * sigmoid(gate)`.
#[derive(Clone, Copy, Debug)]
pub struct SigmoidGate {
    /// What the rows are.
    pub count: Count,
    /// `[rows, width]`.
    pub x: Rows,
    /// `[rows, width]`.
    pub gate: Rows,
    /// `[rows, width]`; may be `x` or `gate` where it has that type.
    pub out: Rows,
}

/// `out = silu(gate) * up`.
#[derive(Clone, Copy, Debug)]
pub struct SiluMul {
    /// What the rows are.
    pub count: Count,
    /// `[rows, width]`.
    pub gate: Rows,
    /// `[rows, width]`.
    pub up: Rows,
    /// `[rows, width]`; may be `gate` or `up` where it has that type.
    pub out: Rows,
}

/// `out[t] = table[token[t]]` for the tokens of the step, those among them that the step before has chosen.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    /// `[vocab, width]`, without gaps.
    pub table: DevicePtr,
    /// Type of the table.
    pub dtype: Dtype,
    /// What the step before has chosen, as [`crate::kernels::sample`] leaves it.
    pub chosen: DevicePtr,
    /// `[T, width]`.
    pub out: Rows,
}

/// `out[s] = x[logit_row[s]]`: the rows whose logits are wanted.
#[derive(Clone, Copy, Debug)]
pub struct GatherRows {
    /// `[T, width]`.
    pub x: Rows,
    /// `[S, width]` in the type of `x`.
    pub out: Rows,
}

/// Threads of a block, rows and lanes of its tile.
const THREADS: u32 = 256;
const TILE_ROWS: u32 = 8;
const TILE_LANES: u32 = 64;

impl Add {
    /// One launch.
    ///
    /// # Panics
    /// When the operands don't agree.
    pub fn launches(&self, _: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        pairwise("add", self.count, [self.a, self.b, self.out], step)
    }
}

impl SigmoidGate {
    /// One launch.
    ///
    /// # Panics
    /// When the operands don't agree.
    pub fn launches(&self, _: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        pairwise("sigmoid_gate", self.count, [self.x, self.gate, self.out], step)
    }
}

impl SiluMul {
    /// One launch.
    ///
    /// # Panics
    /// When the operands don't agree.
    pub fn launches(&self, _: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        pairwise("silu_mul", self.count, [self.gate, self.up, self.out], step)
    }
}

impl Embed {
    /// One launch.
    pub fn launches(&self, _: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let width = self.out.width;
        let table = Rows { base: self.table, stride: width, width, dtype: self.dtype };
        pick("embed", Count::Tokens, (step.tokens, self.chosen), table, self.out, step)
    }
}

impl GatherRows {
    /// One launch.
    ///
    /// # Panics
    /// When the operands don't agree.
    pub fn launches(&self, _: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let GatherRows { x, out } = *self;
        assert!(x.width == out.width && x.dtype == out.dtype, "rows from {x:?} to {out:?}");
        pick("gather_rows", Count::LogitRows, (step.logit_rows, DevicePtr(0)), x, out, step)
    }
}

fn pairwise(entry: &'static str, count: Count, [a, b, out]: [Rows; 3], step: &StepPointers) -> Vec<LaunchSpec> {
    assert!(a.width == out.width && b.width == out.width, "{entry} of {a:?} and {b:?} to {out:?}");
    let arguments = PairArgs {
        rows: row_count(step, count),
        a: a.base.0,
        b: b.base.0,
        out: out.base.0,
        a_stride: a.stride,
        b_stride: b.stride,
        out_stride: out.stride,
        width: out.width,
    };
    let types = [("X_T", a.dtype), ("B_T", b.dtype), ("OUT_T", out.dtype)];
    launch(entry, count, are_wide(&[a, b, out]), &types, out.width, &arguments)
}

/// `index` is the list of rows, with what carried tokens in it name.
fn pick(
    entry: &'static str,
    count: Count,
    (index, chosen): (u64, DevicePtr),
    from: Rows,
    out: Rows,
    step: &StepPointers,
) -> Vec<LaunchSpec> {
    let arguments = PickArgs {
        rows: row_count(step, count),
        index,
        chosen: chosen.0,
        from: from.base.0,
        out: out.base.0,
        from_stride: from.stride,
        out_stride: out.stride,
        width: out.width,
        padding: 0,
    };
    let types = [("X_T", out.dtype), ("W_T", from.dtype)];
    launch(entry, count, are_wide(&[from, out]), &types, out.width, &arguments)
}

/// Tiles of rows along x, of columns along y.
fn launch(
    entry: &'static str,
    count: Count,
    wide: bool,
    types: &[(&'static str, Dtype)],
    width: u32,
    arguments: &impl NoUninit,
) -> Vec<LaunchSpec> {
    let vector = if wide { 8 } else { 1 };
    let kernel = Kernel::new("elementwise.cu", entry, THREADS).define("VECTOR", vector);
    let kernel = types.iter().fold(kernel, |kernel, (name, dtype)| kernel.define_type(name, *dtype));
    let columns = Extent::Fixed(width.div_ceil(TILE_LANES * vector));
    let rows = Extent::Each { count, per: TILE_ROWS };
    vec![LaunchSpec::on_grid(kernel, [rows, columns, Extent::Fixed(1)], arguments)]
}
