//! All that comes before the gated delta rule at once: the entry `gdn_prepare` of `kernels/gdn_conv.cu`.

use super::conv::{self, Cut, GdnConv};
use super::{GdnGates, L2Norm};
use crate::kernel::{Count, Extent, Kernel, LaunchSpec};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};

/// The convolution, the norm of queries and keys in its result, and the gates.
#[derive(Clone, Copy, Debug)]
pub struct GdnPrepare {
    /// Queries, keys and values, in this order.
    pub conv: GdnConv,
    /// Of queries and keys, the first columns of the convolution's `out`, in place.
    pub norm: L2Norm,
    /// In the type of the convolution's input.
    pub gates: GdnGates,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    conv: conv::Arguments,
    b: u64,
    a: u64,
    a_log: u64,
    dt_bias: u64,
    beta: u64,
    decay: u64,
    b_stride: u32,
    a_stride: u32,
    beta_stride: u32,
    decay_stride: u32,
    queries: u32,
    scale: f32,
    eps: f32,
    reserved: u32,
}

impl GdnPrepare {
    /// The launches: one for the pieces of prefills, one for those of single tokens; of shapes whose heads no power of
    /// two of threads shares evenly, those of the three ops.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        self.launches_of(target, step, false)
    }

    /// With `scanned`, single tokens of the recurrence are left out.
    pub(super) fn launches_of(&self, target: &Target, step: &StepPointers, scanned: bool) -> Vec<LaunchSpec> {
        if !self.is_fused(target) {
            assert!(!scanned, "single tokens are left out by the fused kernel only");
            let parts = [self.conv.launches(target, step), self.norm.launches(target, step)];
            return parts.into_iter().chain([self.gates.launches(target, step)]).flatten().collect();
        }
        let singles = if scanned { Count::ScannedDecodePieces } else { Count::DecodePieces };
        vec![
            self.launch(&self.conv.cut(false, target), Count::PrefillPieces, false, step),
            self.launch(&self.conv.cut(true, target), singles, scanned, step),
        ]
    }

    /// Whether there is a kernel that does all of it.
    pub(super) fn is_fused(&self, target: &Target) -> bool {
        let lanes = self.head_dim() / self.conv.cut(true, target).vector;
        let evenly = self.head_dim().is_multiple_of(self.conv.cut(true, target).vector);
        let types = self.gates.b.dtype == self.conv.x.dtype;
        evenly && lanes.is_power_of_two() && lanes <= 32 && types && self.norm.heads == 2 * self.norm.scaled
    }

    fn head_dim(&self) -> u32 {
        self.norm.x.width / self.norm.heads
    }

    fn launch(&self, cut: &Cut, count: Count, scanned: bool, step: &StepPointers) -> LaunchSpec {
        let GdnPrepare { conv, norm, gates } = self;
        let kernel = conv.define(Kernel::new("gdn_conv.cu", "gdn_prepare", cut.threads), cut);
        let kernel = kernel
            .define("HEADS", gates.b.width)
            .define("KEY_DIM", self.head_dim())
            .define("HEAD_LANES", self.head_dim() / cut.vector)
            .define("SCANNED", u32::from(scanned));
        let arguments = Arguments {
            conv: conv.arguments(step),
            b: gates.b.base.0,
            a: gates.a.base.0,
            a_log: gates.a_log.0,
            dt_bias: gates.dt_bias.0,
            beta: gates.beta.base.0,
            decay: gates.decay.base.0,
            b_stride: gates.b.stride,
            a_stride: gates.a.stride,
            beta_stride: gates.beta.stride,
            decay_stride: gates.decay.stride,
            queries: norm.x.width / 2,
            scale: norm.scale,
            eps: norm.eps,
            reserved: 0,
        };
        // One more block for the gates.
        let grid = [Extent::Fixed(cut.blocks + 1), Extent::Fixed(cut.parts), Extent::one(count)];
        LaunchSpec::on_grid(kernel, grid, &arguments)
    }
}
