//! The short causal convolution: `kernels/gdn_conv.cu`.

use super::vector;
use crate::kernel::{Count, Extent, Kernel, LaunchSpec, Rows};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_device::DevicePtr;

/// `out[t, c] = silu(sum_j weight[j, c] x[t - taps + 1 + j, c])`, over each sequence.
#[derive(Clone, Copy, Debug)]
pub struct GdnConv {
    /// `[T, channels]`.
    pub x: Rows,
    /// `[taps, channels]` f32.
    pub weight: DevicePtr,
    /// `[slot, taps, channels]` in the type of `x`: the last inputs of each sequence, that at position `p` in entry
    /// `p % taps` (`kernels/gdn_window.h`).
    pub state: DevicePtr,
    /// Taps, 1 to 64.
    pub taps: u32,
    /// `[T, channels]`, not `x` itself. Where it is f16, what is too large for that becomes its largest number.
    pub out: Rows,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Arguments {
    step: StepPointers,
    x: u64,
    weight: u64,
    state: u64,
    out: u64,
    x_stride: u32,
    out_stride: u32,
    channels: u32,
    padding: u32,
}

/// Most taps that a thread can hold for eight channels.
const MOST_TAPS_OF_VECTORS: u32 = 8;

impl GdnConv {
    /// The launches: one for the pieces of prefills, one for those of single tokens.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let arguments = self.arguments(step);
        let prefill = self.cut(false, target);
        let single = self.cut(true, target);
        let launch = |cut: &Cut, count| {
            let kernel = self.define(Kernel::new("gdn_conv.cu", "gdn_conv", cut.threads), cut);
            LaunchSpec::on_grid(
                kernel,
                [Extent::Fixed(cut.blocks), Extent::Fixed(cut.parts), Extent::one(count)],
                &arguments,
            )
        };
        vec![launch(&prefill, Count::PrefillPieces), launch(&single, Count::DecodePieces)]
    }

    pub(super) fn arguments(&self, step: &StepPointers) -> Arguments {
        Arguments {
            step: *step,
            x: self.x.base.0,
            weight: self.weight.0,
            state: self.state.0,
            out: self.out.base.0,
            x_stride: self.x.stride,
            out_stride: self.out.stride,
            channels: self.x.width,
            padding: 0,
        }
    }

    /// How the pieces of single tokens, or the others, are cut.
    pub(super) fn cut(&self, single: bool, target: &Target) -> Cut {
        let vector = if self.taps > MOST_TAPS_OF_VECTORS { 1 } else { vector(&[&self.x, &self.out], self.x.width) };
        // A part must hold the first `taps - 1` rows of a segment.
        let rows = if self.taps <= 33 { 32 } else { 64 };
        // Small blocks, so that the weights of one token are read by many multiprocessors.
        let (threads, rows, parts) = if single { (target.wave.max(32), 1, 1) } else { (128, rows, 64 / rows) };
        Cut { single, threads, rows, parts, vector, blocks: self.x.width.div_ceil(threads * vector) }
    }

    pub(super) fn define(&self, kernel: Kernel, cut: &Cut) -> Kernel {
        kernel
            .define_type("X_T", self.x.dtype)
            .define_type("OUT_T", self.out.dtype)
            .define("TAPS", self.taps)
            .define("ROWS", cut.rows)
            .define("VECTOR", cut.vector)
            .define("SINGLE", u32::from(cut.single))
    }
}

/// How the convolution of some pieces is cut.
pub(super) struct Cut {
    pub single: bool,
    pub threads: u32,
    /// Rows of a block, and the parts of a piece that they make.
    pub rows: u32,
    pub parts: u32,
    /// Channels of a thread, and blocks for all of them.
    pub vector: u32,
    pub blocks: u32,
}
