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
    /// `[slot, taps - 1, channels]` in the type of `x`: the last inputs of each sequence, oldest first.
    pub state: DevicePtr,
    /// Taps, 1 to 64.
    pub taps: u32,
    /// `[T, channels]`, not `x` itself. Where it is f16, what is too large for that becomes its largest number.
    pub out: Rows,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
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
        let vector = if self.taps > MOST_TAPS_OF_VECTORS { 1 } else { vector(&[&self.x, &self.out], self.x.width) };
        let arguments = Arguments {
            step: *step,
            x: self.x.base.0,
            weight: self.weight.0,
            state: self.state.0,
            out: self.out.base.0,
            x_stride: self.x.stride,
            out_stride: self.out.stride,
            channels: self.x.width,
            padding: 0,
        };
        let launch = |single: bool, threads: u32, rows: u32, parts: u32, count: Count| {
            let kernel = Kernel::new("gdn_conv.cu", "gdn_conv", threads)
                .define_type("X_T", self.x.dtype)
                .define_type("OUT_T", self.out.dtype)
                .define("TAPS", self.taps)
                .define("ROWS", rows)
                .define("VECTOR", vector)
                .define("SINGLE", u32::from(single));
            let blocks = Extent::Fixed(self.x.width.div_ceil(threads * vector));
            LaunchSpec::on_grid(kernel, [blocks, Extent::Fixed(parts), Extent::one(count)], &arguments)
        };
        // A part must hold the first `taps - 1` rows of a segment.
        let rows = if self.taps <= 33 { 32 } else { 64 };
        vec![
            launch(false, 128, rows, 64 / rows, Count::PrefillPieces),
            // Small blocks, so that the weights of one token are read by many multiprocessors.
            launch(true, target.wave.max(32), 1, 1, Count::DecodePieces),
        ]
    }
}
