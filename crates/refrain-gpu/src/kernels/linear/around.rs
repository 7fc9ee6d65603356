//! The ops before and behind a product of few rows, when they are part of its kernel: `kernels/gemv_around.h`.

use super::Linear;
use crate::kernels::rows::{are_wide, is_aligned};
use crate::{Kernel, Rows};
use bytemuck::{Pod, Zeroable};
use refrain_device::DevicePtr;
use refrain_program::Dtype;

/// The op that makes what the matrix is multiplied with from `x` of the product. Its result is rounded to `operand`.
#[derive(Clone, Copy, Debug, Default)]
pub enum Prologue {
    /// None: `x` itself.
    #[default]
    None,
    /// `x * rsqrt(mean(x^2) + eps) * (1 + weight)`, row by row.
    RmsNorm {
        /// `[in]` f32.
        weight: DevicePtr,
        /// Added to the mean square.
        eps: f32,
        /// Type of the result.
        operand: Dtype,
    },
    /// `weight * x * rsqrt(mean(x^2) + eps) * silu(gate)`, head by head.
    GatedRmsNorm {
        /// `[rows, in]`.
        gate: Rows,
        /// `[in / heads]` f32.
        weight: DevicePtr,
        /// Number of heads.
        heads: u32,
        /// Added to the mean square.
        eps: f32,
        /// Type of the result.
        operand: Dtype,
    },
}

/// The op that takes the products.
#[derive(Clone, Copy, Debug, Default)]
pub enum Epilogue {
    /// None: `out = product`.
    #[default]
    None,
    /// `out = residual + product`.
    Add {
        /// `[rows, out]`; may be `out` where it has that type.
        residual: Rows,
    },
    /// `out = silu(product of the first half of the matrix) * product of the second half`: the matrix has twice as many
    /// rows as `out` has columns.
    SiluMul,
}

/// Both; neither by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around {
    /// Before the product.
    pub prologue: Prologue,
    /// Behind it.
    pub epilogue: Epilogue,
}

/// `Around` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct AroundArgs {
    norm: u64,
    gate: u64,
    residual: u64,
    gate_stride: u32,
    residual_stride: u32,
    eps: f32,
    padding: u32,
}

impl Around {
    /// Whether the product is alone.
    pub fn is_none(&self) -> bool {
        matches!(self, Around { prologue: Prologue::None, epilogue: Epilogue::None })
    }

    /// Whether something is computed before the product.
    pub(super) fn has_prologue(&self) -> bool {
        !matches!(self.prologue, Prologue::None)
    }

    /// Whether a unit of outputs needs rows of both halves of the matrix.
    pub(super) fn takes_pairs(&self) -> bool {
        matches!(self.epilogue, Epilogue::SiluMul)
    }

    /// Type of what the matrix is multiplied with.
    pub(super) fn operand(&self, linear: &Linear) -> Dtype {
        match self.prologue {
            Prologue::None => linear.x.dtype,
            Prologue::RmsNorm { operand, .. } | Prologue::GatedRmsNorm { operand, .. } => operand,
        }
    }

    /// Elements that the prologue takes at once.
    fn vector(&self, linear: &Linear) -> u32 {
        let wide = match self.prologue {
            Prologue::None => false,
            Prologue::RmsNorm { weight, .. } => are_wide(&[linear.x]) && is_aligned(weight),
            Prologue::GatedRmsNorm { gate, weight, heads, .. } => {
                let heads_are_wide = (linear.x.width / heads).is_multiple_of(8);
                are_wide(&[linear.x, gate]) && is_aligned(weight) && heads_are_wide
            }
        };
        if wide { 8 } else { 1 }
    }

    /// Shared memory that the prologue needs for itself.
    pub(super) fn shared_bytes(&self, linear: &Linear) -> u32 {
        match self.prologue {
            Prologue::RmsNorm { .. } if self.vector(linear) == 8 => linear.x.width * 4,
            _ => 0,
        }
    }

    /// A kernel with the constants of both.
    pub(super) fn define(&self, kernel: Kernel, linear: &Linear) -> Kernel {
        let kernel = match self.prologue {
            Prologue::None => kernel,
            Prologue::RmsNorm { .. } => kernel.define("PROLOGUE", "RMS_NORM"),
            Prologue::GatedRmsNorm { gate, heads, .. } => {
                kernel.define("PROLOGUE", "GATED_RMS_NORM").define_type("GATE_T", gate.dtype).define("HEADS", heads)
            }
        };
        let kernel = match self.has_prologue() {
            true => kernel.define("PROLOGUE_VECTOR", self.vector(linear)),
            false => kernel,
        };
        match self.epilogue {
            Epilogue::None => kernel,
            Epilogue::Add { residual } => kernel.define("EPILOGUE", "ADD").define_type("RESIDUAL_T", residual.dtype),
            Epilogue::SiluMul => kernel.define("EPILOGUE", "SILU_MUL"),
        }
    }

    pub(super) fn arguments(&self) -> AroundArgs {
        let mut arguments = AroundArgs::default();
        match self.prologue {
            Prologue::None => {}
            Prologue::RmsNorm { weight, eps, .. } => (arguments.norm, arguments.eps) = (weight.0, eps),
            Prologue::GatedRmsNorm { gate, weight, eps, .. } => {
                (arguments.norm, arguments.eps) = (weight.0, eps);
                (arguments.gate, arguments.gate_stride) = (gate.base.0, gate.stride);
            }
        }
        if let Epilogue::Add { residual } = self.epilogue {
            (arguments.residual, arguments.residual_stride) = (residual.base.0, residual.stride);
        }
        arguments
    }
}
