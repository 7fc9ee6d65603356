//! The gates of the gated delta rule: `kernels/gdn_gates.cu`.

use crate::kernel::{Count, Extent, Kernel, LaunchSpec, Rows};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_device::DevicePtr;

/// `beta = sigmoid(b)`, `decay = -exp(a_log) * softplus(a + dt_bias)`.
#[derive(Clone, Copy, Debug)]
pub struct GdnGates {
    /// `[T, value_heads]`.
    pub b: Rows,
    /// `[T, value_heads]`, in the type of `b`.
    pub a: Rows,
    /// `[value_heads]` f32.
    pub a_log: DevicePtr,
    /// `[value_heads]` f32.
    pub dt_bias: DevicePtr,
    /// `[T, value_heads]` f32.
    pub beta: Rows,
    /// `[T, value_heads]` f32, at most 0: the logarithm of the decay.
    pub decay: Rows,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    rows: u64,
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
}

impl GdnGates {
    /// The launches.
    pub fn launches(&self, _target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        const THREADS: u32 = 256;
        let heads = self.b.width;
        let rows = (THREADS / heads).max(1);
        let kernel = Kernel::new("gdn_gates.cu", "gdn_gates", THREADS)
            .define_type("X_T", self.b.dtype)
            .define("HEADS", heads)
            .define("ROWS", rows);
        let arguments = Arguments {
            rows: step.header,
            b: self.b.base.0,
            a: self.a.base.0,
            a_log: self.a_log.0,
            dt_bias: self.dt_bias.0,
            beta: self.beta.base.0,
            decay: self.decay.base.0,
            b_stride: self.b.stride,
            a_stride: self.a.stride,
            beta_stride: self.beta.stride,
            decay_stride: self.decay.stride,
        };
        vec![LaunchSpec::new(kernel, Extent::Each { count: Count::Tokens, per: rows }, &arguments)]
    }
}
