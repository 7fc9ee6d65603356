//! Which instructions the matrix products use, found at run time.

use crate::SimdLevel;
use std::fmt;

/// Instruction sets for matrix products, plainest first. All of them read the same packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; any processor.
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ.
    Avx512,
    /// AVX-512 and its BF16 dot product, `vdpbf16ps`.
    Avx512Bf16,
    /// AVX-512 and the AMX tiles for BF16, which the system must let the process use.
    Amx,
}

impl Isa {
    /// The best one that this processor and system allow.
    pub fn detect() -> Self {
        match SimdLevel::detect() {
            SimdLevel::Portable => Isa::Portable,
            SimdLevel::Avx2 => Isa::Avx2,
            SimdLevel::Avx512 => Self::detect_bf16(),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn detect_bf16() -> Self {
        if !is_x86_feature_detected!("avx512bf16") {
            Isa::Avx512
        } else if crate::linear::amx::request_permission() {
            Isa::Amx
        } else {
            Isa::Avx512Bf16
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect_bf16() -> Self {
        Isa::Portable
    }

    /// Every one that this processor and system allow, plainest first.
    pub fn available() -> Vec<Self> {
        let best = Self::detect();
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx]
            .into_iter()
            .filter(|&isa| isa <= best)
            .collect()
    }

    /// The level at which everything but the matrix products runs.
    pub fn simd(self) -> SimdLevel {
        match self {
            Isa::Portable => SimdLevel::Portable,
            Isa::Avx2 => SimdLevel::Avx2,
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => SimdLevel::Avx512,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Amx => "amx-bf16",
        })
    }
}
