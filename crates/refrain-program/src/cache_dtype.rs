//! Element types of states.

use crate::Fp8;
use refrain_model::Dtype;
use std::fmt;

/// In which type the elements of a state are kept: one that activations can have, too, or one of eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheDtype {
    /// As they are.
    Plain(Dtype),
    /// As codes, with a scale for every row (see [`Fp8`]). For keys and values only.
    Fp8(Fp8),
}

impl CacheDtype {
    /// The type for activations of a type where nobody asks for another. With 16 bits it is F16 for BF16 as well: keys are
    /// normalised and values small, so BF16's range is of no use, while F16 rounds by an eighth of it. A value beyond its
    /// range becomes the largest that it has.
    pub fn of_activations(activations: Dtype) -> CacheDtype {
        CacheDtype::Plain(if activations == Dtype::Bf16 { Dtype::F16 } else { activations })
    }

    /// Size of one element in bytes, without its share of a scale.
    pub fn bytes(self) -> usize {
        match self {
            CacheDtype::Plain(dtype) => dtype.bytes(),
            CacheDtype::Fp8(_) => 1,
        }
    }

    /// Bytes of the scale of a row.
    pub fn scale_bytes(self) -> usize {
        match self {
            CacheDtype::Plain(_) => 0,
            CacheDtype::Fp8(_) => 1,
        }
    }
}

impl From<Dtype> for CacheDtype {
    fn from(dtype: Dtype) -> Self {
        CacheDtype::Plain(dtype)
    }
}

impl From<Fp8> for CacheDtype {
    fn from(format: Fp8) -> Self {
        CacheDtype::Fp8(format)
    }
}

impl fmt::Display for CacheDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheDtype::Plain(dtype) => dtype.fmt(f),
            CacheDtype::Fp8(format) => format.fmt(f),
        }
    }
}
