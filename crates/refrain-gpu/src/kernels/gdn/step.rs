//! A GDN layer between its projections: `kernels/gdn_step.cu` for sequences with one token of the recurrence in the step,
//! the kernels of [`GdnPrepare`] and [`GdnScan`] for all others.

use super::scan::RecurrencePlan;
use super::{GdnPrepare, GdnScan};
use crate::kernel::{Count, Kernel, LaunchSpec};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};

/// [`GdnPrepare`], then [`GdnScan`] of what it gives.
#[derive(Clone, Copy, Debug)]
pub struct GdnStep {
    /// Its results are written only of the tokens that the fused kernel leaves to others.
    pub prepare: GdnPrepare,
    /// Of the results of `prepare`.
    pub scan: GdnScan,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    step: StepPointers,
    x: u64,
    weight: u64,
    window: u64,
    b: u64,
    a: u64,
    a_log: u64,
    dt_bias: u64,
    state: u64,
    out: u64,
    x_stride: u32,
    b_stride: u32,
    a_stride: u32,
    out_stride: u32,
    scale: f32,
    eps: f32,
}

/// Most taps whose weights and inputs a thread holds.
const MOST_TAPS: u32 = 8;

impl GdnStep {
    /// One launch where every sequence decodes one token, as grids are empty where there is nothing else; of shapes that
    /// the fused kernel doesn't take, those of the two ops.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        if self.prepare.conv.taps > MOST_TAPS || !self.prepare.is_fused(target) {
            let parts = [self.prepare.launches(target, step), self.scan.launches(target, step)];
            return parts.into_iter().flatten().collect();
        }
        let mut launches = vec![self.step(target, step)];
        launches.extend(self.prepare.launches_of(target, step, true));
        launches.extend(self.scan.launches_of(target, step, true));
        launches
    }

    fn step(&self, target: &Target, step: &StepPointers) -> LaunchSpec {
        let GdnStep { prepare: GdnPrepare { conv, norm, gates }, scan } = self;
        let plan = RecurrencePlan::new(&scan.shape, true, target);
        let kernel = Kernel::new("gdn_step.cu", "gdn_step", RecurrencePlan::THREADS)
            .define_type("X_T", conv.x.dtype)
            .define_type("OUT_T", scan.out.dtype)
            .define("KEY_HEADS", scan.shape.num_key_heads)
            .define("VALUE_HEADS", scan.shape.num_value_heads)
            .define("KEY_DIM", scan.shape.key_head_dim)
            .define("VALUE_DIM", scan.shape.value_head_dim)
            .define("TAPS", conv.taps)
            .define("LANES", plan.lanes)
            .define("VECTOR", plan.vector)
            .define("ROWS", plan.rows);
        let arguments = Arguments {
            step: *step,
            x: conv.x.base.0,
            weight: conv.weight.0,
            window: conv.state.0,
            b: gates.b.base.0,
            a: gates.a.base.0,
            a_log: gates.a_log.0,
            dt_bias: gates.dt_bias.0,
            state: scan.state.0,
            out: scan.out.base.0,
            x_stride: conv.x.stride,
            b_stride: gates.b.stride,
            a_stride: gates.a.stride,
            out_stride: scan.out.stride,
            scale: norm.scale,
            eps: norm.eps,
        };
        LaunchSpec::on_grid(kernel, scan.grid(plan.slice(), Count::Recurrent), &arguments)
    }
}
