//! The norm of queries and keys with the rotary embedding that follows it: `kernels/qk_norm_rope.cu`.

use crate::kernel::{Count, Extent, Kernel, LaunchSpec, Rows};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use refrain_device::DevicePtr;

/// `QkNormRopeArgs` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct QkNormRopeArgs {
    step: StepPointers,
    x: u64,
    out: u64,
    weight: u64,
    frequencies: u64,
    x_stride: u32,
    out_stride: u32,
    eps: f32,
    reserved: u32,
}

/// [`refrain_program::Op::QkNormRope`] on its operands. Heads are a multiple of 8 wide, at most 256; rows, strides and
/// `weight` are aligned to 8 elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNormRope {
    /// `[T, heads * head_dim]`.
    pub x: Rows,
    /// `[head_dim]` f32.
    pub weight: DevicePtr,
    /// `[rotary_dim / 2]` f32: [`frequencies`].
    pub frequencies: DevicePtr,
    /// Number of heads.
    pub heads: u32,
    /// Rotated dimensions, even.
    pub rotary_dim: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// `[T, heads * head_dim]`; may be `x` where it has that type.
    pub out: Rows,
}

/// Most threads of a block.
const THREADS: u32 = 256;

impl QkNormRope {
    /// One launch.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let head_dim = self.x.width / self.heads;
        assert!(head_dim.is_multiple_of(8) && head_dim <= 256, "heads of {head_dim} dimensions");
        let group = (head_dim / 8).next_power_of_two();
        let threads = (self.heads * group).next_multiple_of(target.wave).min(THREADS);
        let groups = threads / group;
        let per_group = self.heads.div_ceil(groups).min(2);
        let kernel = Kernel::new("qk_norm_rope.cu", "qk_norm_rope", threads)
            .define_type("X_T", self.x.dtype)
            .define_type("OUT_T", self.out.dtype)
            .define("HEADS", self.heads)
            .define("HEAD_DIM", head_dim)
            .define("ROTARY_DIM", self.rotary_dim)
            .define("GROUP", group)
            .define("PER_GROUP", per_group);
        let arguments = QkNormRopeArgs {
            step: *step,
            x: self.x.base.0,
            out: self.out.base.0,
            weight: self.weight.0,
            frequencies: self.frequencies.0,
            x_stride: self.x.stride,
            out_stride: self.out.stride,
            eps: self.eps,
            reserved: 0,
        };
        let heads = Extent::Fixed(self.heads.div_ceil(groups * per_group));
        vec![LaunchSpec::on_grid(kernel, [Extent::one(Count::Tokens), heads, Extent::Fixed(1)], &arguments)]
    }
}

/// Radians by which one position turns each pair of dimensions, `[rotary_dim / 2]`: `theta^(-2 i / rotary_dim)`, rounded
/// to f32 where Hugging Face's rotary embedding rounds.
pub fn frequencies(rotary_dim: usize, theta: f32) -> Vec<f32> {
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / rotary_dim as f32;
        1.0 / (f64::from(theta).powf(f64::from(exponent)) as f32)
    };
    (0..rotary_dim / 2).map(frequency).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one_to_nearly_one_over_theta() {
        let found = frequencies(64, 1e7);
        assert_eq!(found.len(), 32);
        assert_eq!(found[0], 1.0);
        for (i, found) in found.iter().enumerate() {
            let exact = 1e7f64.powf(-2.0 * i as f64 / 64.0);
            assert!((f64::from(*found) / exact - 1.0).abs() < 2e-6, "pair {i}: {found}, {exact}");
        }
        assert!(frequencies(0, 1e7).is_empty());
    }
}
