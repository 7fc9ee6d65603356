//! `kernels/gemv.cu` and `kernels/gemv_mma.cu`: products of few rows, whose time is that of reading the weights.

use super::{Around, Linear, LinearArgs, is_aligned, mma_define};
use crate::kernels::linear::around::AroundArgs;
use crate::{Extent, Kernel, LaunchSpec, StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_program::Dtype;

/// Threads of a block.
const THREADS: u32 = 256;
/// Columns of a load of `gemv_mma`, and rows.
const MMA_COLUMNS: u32 = 64;
const MMA_ROWS: u32 = 4;

/// How a product of few rows is cut. The times of the shapes of a model decide; any plan is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemvPlan {
    /// `gemv_mma`: on tensor cores, the columns shared by the waves of a block.
    Mma {
        /// Rows of `x` that share one reading of the weights, at most 8.
        rows: u32,
        /// Loads of a wave along the columns: `waves * slice * 64` is at least the number of inputs.
        slice: u32,
        /// Four times this is how many outputs a block computes at a time, at most the number of outputs.
        groups: u32,
        /// Loads of 16 bytes that each thread has in flight; divides `slice * groups`.
        depth: u32,
        /// Blocks whose registers fit into a processor.
        resident: u32,
        /// Blocks that the grid has for each processor. With fewer than `resident` the blocks of the next kernels find
        /// room before this one ends, and their first loads are there when it does.
        blocks: u32,
    },
    /// `gemv`: by multiply-adds, a row of the weights for each wave.
    Fma {
        /// Rows of `x` that share one reading of the weights.
        rows: u32,
        /// Outputs that a wave computes at a time, at most the number of outputs.
        outputs: u32,
        /// Loads that each thread has in flight for each of them.
        depth: u32,
        /// Whether `x` is copied to shared memory.
        staged: bool,
        /// Blocks that a processor shall hold.
        resident: u32,
    },
}

impl GemvPlan {
    /// A plan for a product whose steps have up to `rows` rows, with what is around it.
    pub fn choose(linear: &Linear, around: &Around, target: &Target, rows: u32) -> GemvPlan {
        let outputs = linear.out.width;
        if suits_mma(linear, around, target) && outputs >= MMA_ROWS {
            let (slice, groups, depth) = cut_mma(linear.x.width, outputs, around.takes_pairs());
            let fits = |rows: &u32| mma_shared_bytes(*rows, slice, groups, linear, around) <= target.shared_bytes;
            // What is computed of several rows before the product needs registers of its own.
            let resident = match around.has_prologue() && rows > 1 {
                true => 2,
                false => GemvPlan::resident(slice * groups, groups, depth),
            };
            // One block keeps the memory busy, and leaves room for those of the next kernel. Where not even one row of x
            // fits into shared memory, it is left in the device's.
            if let Some(rows) = [rows.min(8), 4, 2, 1].into_iter().find(fits) {
                return GemvPlan::Mma { rows, slice, groups, depth, resident, blocks: resident };
            }
        }
        let wide = is_wide(linear, around);
        // From four rows on reading `x` costs more than reading the weights, so two outputs share it.
        let (outputs, most): (u32, u32) = match rows {
            _ if around.takes_pairs() => (2, if !wide || rows > 2 { 2 } else { 5 }),
            _ if !wide => (1, 4),
            1 => (1, 10),
            2 => (1, 6),
            _ if outputs >= 2 => (2, 2),
            _ => (1, 4),
        };
        let steps = linear.x.width.div_ceil(step(linear, around, target));
        // The least is loaded in vain where whole rings end where rows end.
        let depths = most.div_ceil(2).min(steps)..=most.min(steps);
        let depth = depths.rev().min_by_key(|depth| steps.next_multiple_of(*depth)).expect("the range is not empty");
        let bytes = |rows: u32| fma_shared_bytes(rows, linear, around);
        if around.has_prologue() {
            let rows = [rows, 4, 2].into_iter().find(|&rows| bytes(rows) <= target.shared_bytes / 2).unwrap_or(1);
            return GemvPlan::Fma { rows, outputs, depth, staged: true, resident: 2 };
        }
        GemvPlan::Fma { rows, outputs, depth, staged: bytes(rows) <= target.shared_bytes / 2, resident: 2 }
    }

    /// How many blocks of `gemv_mma` fit into the registers of a processor, so that compilers keep all values in them.
    pub fn resident(loads: u32, groups: u32, depth: u32) -> u32 {
        if depth + 2 * groups <= 14 && loads <= 18 { 3 } else { 2 }
    }

    fn rows(&self) -> u32 {
        match *self {
            GemvPlan::Mma { rows, .. } | GemvPlan::Fma { rows, .. } => rows,
        }
    }
}

/// Slice, groups and depth of `gemv_mma`: rings that end where units end, 15 loads in flight or some more if no more than
/// 16 rows of the matrix in a unit are needed for it, so that units can be shared evenly, else at least 8. In `pairs` two
/// rows of the matrix make an output.
fn cut_mma(inputs: u32, outputs: u32, pairs: bool) -> (u32, u32, u32) {
    let least = inputs.div_ceil(THREADS / 32 * MMA_COLUMNS);
    let share = if pairs { 2 } else { 1 };
    let cuts = (least..least + 3).flat_map(|slice| (1..=8).map(move |groups| (slice, groups)));
    let cuts = cuts.filter(|(_, groups)| groups * MMA_ROWS / share <= outputs).map(|(slice, groups)| {
        let loads = slice * groups;
        // Where slices end behind the columns, each load has a condition, which takes registers.
        let most = if slice * THREADS / 32 * MMA_COLUMNS == inputs { 18 } else { 16 };
        let depth = (1..=most).rev().find(|depth| loads.is_multiple_of(*depth));
        (slice, groups, depth.expect("one divides all"))
    });
    let deep = |&(slice, groups, depth): &(u32, u32, u32)| slice == least && groups <= 4 && depth >= 15;
    let find = |wanted: &dyn Fn(&(u32, u32, u32)) -> bool| cuts.clone().find(wanted);
    find(&deep)
        .or_else(|| find(&|(_, _, depth)| *depth >= 8))
        .or_else(|| cuts.clone().max_by_key(|(_, _, depth)| *depth))
        .expect("four outputs are at least one group")
}

fn mma_shared_bytes(rows: u32, slice: u32, groups: u32, linear: &Linear, around: &Around) -> u32 {
    let waves = THREADS / 32;
    let stride = slice * MMA_COLUMNS + if rows > 1 { 32 } else { 0 };
    let x = waves * rows * stride * linear.dtype.bytes() as u32;
    x + 2 * waves * rows * MMA_ROWS * groups * 4 + around.shared_bytes(linear)
}

fn fma_shared_bytes(rows: u32, linear: &Linear, around: &Around) -> u32 {
    let x = rows * linear.x.width * around.operand(linear).bytes() as u32;
    if around.has_prologue() { x.next_multiple_of(16) + around.shared_bytes(linear) } else { x }
}

/// Whether rows of the weight, and what is multiplied with them, can be read 16 bytes at a time.
fn is_wide(linear: &Linear, around: &Around) -> bool {
    match around.has_prologue() {
        // What a prologue makes lies in shared memory without gaps.
        true => is_aligned(linear.weight) && linear.x.width.is_multiple_of(8),
        false => linear.is_wide(),
    }
}

/// Whether tensor cores can compute it.
fn suits_mma(linear: &Linear, around: &Around, target: &Target) -> bool {
    let types = around.operand(linear) == linear.dtype && linear.dtype != Dtype::F32;
    target.mma && types && is_wide(linear, around)
}

/// Columns that a wave of `gemv` reads at a time.
fn step(linear: &Linear, around: &Around, target: &Target) -> u32 {
    target.wave * if is_wide(linear, around) { 16 / linear.dtype.bytes() as u32 } else { 1 }
}

/// A product by a kernel for few rows.
#[derive(Clone, Copy, Debug)]
pub struct Gemv {
    /// The operands. With [`super::Epilogue::SiluMul`] the weight is `[2 out, in]`.
    pub linear: Linear,
    /// What is computed before and behind it.
    pub around: Around,
    /// How it is cut.
    pub plan: GemvPlan,
}

/// The argument struct where there is something around the product.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FusedArgs {
    linear: LinearArgs,
    around: AroundArgs,
}

impl Gemv {
    /// With the plan for steps of up to `rows` rows.
    pub fn choose(linear: &Linear, around: &Around, target: &Target, rows: u32) -> Gemv {
        Gemv { linear: *linear, around: *around, plan: GemvPlan::choose(linear, around, target, rows) }
    }

    /// Whether shared memory has room for it.
    pub fn fits(&self, target: &Target) -> bool {
        self.kernel(target).0.shared_bytes <= target.shared_bytes
    }

    /// One launch. Steps with more rows than the plan has read the weights several times.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let linear = &self.linear;
        let (kernel, units, blocks) = self.kernel(target);
        // Shared memory may allow fewer blocks than registers do.
        let blocks = blocks.min(target.shared_bytes / kernel.shared_bytes.max(1)).max(1);
        let blocks = units.min(target.processors * blocks);
        let rows = Extent::Each { count: linear.count, per: self.plan.rows() };
        let grid = [Extent::Fixed(blocks), Extent::Fixed(1), rows];
        let arguments = linear.arguments(step);
        if self.around.is_none() {
            return vec![LaunchSpec::on_grid(kernel, grid, &arguments)];
        }
        let arguments = FusedArgs { linear: arguments, around: self.around.arguments() };
        vec![LaunchSpec::on_grid(self.around.define(kernel, linear), grid, &arguments)]
    }

    /// The kernel, how many blocks have something to do, and how many the grid has for each processor.
    fn kernel(&self, target: &Target) -> (Kernel, u32, u32) {
        let Gemv { linear, around, .. } = self;
        let share = if around.takes_pairs() { 2 } else { 1 };
        let kernel = |source, entry| {
            let kernel = Kernel::new(source, entry, THREADS).define_type("OUT_T", linear.out.dtype);
            kernel.define("INPUTS", linear.x.width).define("ROWS", self.plan.rows())
        };
        match self.plan {
            GemvPlan::Mma { rows, slice, groups, depth, resident, blocks } => {
                let kernel = kernel("gemv_mma.cu", "gemv_mma").define_type("T", linear.dtype);
                let kernel = match around.has_prologue() {
                    true => kernel.define_type("X_T", linear.x.dtype),
                    false => kernel,
                };
                let kernel = kernel.define("MMA", mma_define(linear.dtype)).define("SLICE", slice);
                let kernel = kernel.define("GROUPS", groups).define("DEPTH", depth).define("KX_RESIDENT", resident);
                let shared = mma_shared_bytes(rows, slice, groups, linear, around);
                (kernel.shared(shared), linear.out.width.div_ceil(MMA_ROWS * groups / share), blocks)
            }
            GemvPlan::Fma { rows, outputs, depth, staged, resident } => {
                let kernel = kernel("gemv.cu", "gemv").define_type("X_T", linear.x.dtype);
                let kernel = match around.has_prologue() {
                    true => kernel.define_type("OPERAND_T", around.operand(linear)),
                    false => kernel,
                };
                let kernel = kernel.define_type("W_T", linear.dtype).define("OUTPUTS", outputs).define("DEPTH", depth);
                let wide = is_wide(linear, around);
                let kernel = kernel.define("STAGED", u32::from(staged)).define("WIDE", u32::from(wide));
                let kernel = kernel.define("KX_RESIDENT", resident);
                let shared = if staged { fma_shared_bytes(rows, linear, around) } else { 0 };
                let units = linear.out.width.div_ceil(outputs / share);
                // More blocks than fit by the promise alone: these kernels need fewer registers than they may have.
                (kernel.shared(shared), units.div_ceil(THREADS / target.wave), resident * 2)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::linear::{Epilogue, Prologue};
    use crate::{Count, Rows};
    use refrain_device::DevicePtr;

    const ALONE: Around = Around { prologue: Prologue::None, epilogue: Epilogue::None };

    fn target(wave: u32, shared_bytes: u32) -> Target {
        Target { arch: "any".to_owned(), wave, mma: wave == 32, processors: 132, shared_bytes }
    }

    fn linear(inputs: u32, outputs: u32, dtype: Dtype) -> Linear {
        let rows = |width| Rows { base: DevicePtr(4096), stride: width, width, dtype };
        Linear { count: Count::Tokens, x: rows(inputs), weight: DevicePtr(4096), dtype, out: rows(outputs) }
    }

    #[test]
    fn plans_keep_what_kernels_rely_on() {
        let targets = [target(32, 232_448), target(32, 101_376), target(64, 65_536)];
        let sizes = (1..=80).chain((88..20_000).step_by(488)).chain([120_000, 1 << 20]);
        for (target, inputs) in targets.iter().flat_map(|target| sizes.clone().map(move |size| (target, size))) {
            for outputs in [1, 2, 3, 4, 5, 15, 16, 31, 64, 12_352] {
                for (dtype, rows) in [(Dtype::Bf16, 1), (Dtype::Bf16, 8), (Dtype::F32, 2), (Dtype::F32, 8)] {
                    let linear = linear(inputs, outputs, dtype);
                    let plan = GemvPlan::choose(&linear, &ALONE, target, rows);
                    assert!((1..=rows).contains(&plan.rows()));
                    match plan {
                        GemvPlan::Mma { rows, slice, groups, depth, .. } => {
                            assert!(slice * MMA_COLUMNS * THREADS / 32 >= inputs, "{inputs} inputs: {plan:?}");
                            assert!(
                                groups * MMA_ROWS <= outputs && depth > 0 && slice * groups % depth == 0,
                                "{plan:?}"
                            );
                            assert!(
                                mma_shared_bytes(rows, slice, groups, &linear, &ALONE) <= target.shared_bytes,
                                "{plan:?}"
                            );
                        }
                        GemvPlan::Fma { rows, outputs: unit, depth, staged, .. } => {
                            assert!(depth > 0 && unit <= outputs, "{plan:?}");
                            assert!(
                                !staged || fma_shared_bytes(rows, &linear, &ALONE) <= target.shared_bytes,
                                "{plan:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rings_are_deep_and_whole_for_the_sizes_of_models() {
        for inputs in [1024, 2048, 2560, 3584, 4096, 5120, 6144, 9216, 12_288, 17_408] {
            let (slice, groups, depth) = cut_mma(inputs, 2560, false);
            assert!((8..=18).contains(&depth) && groups <= 4, "{inputs}: {slice} {groups} {depth}");
            assert!(slice * 512 < inputs + 3 * 512, "{inputs}: {slice}");
        }
    }
}
