//! Which element types a checkpoint is run in.

use refrain_cpu::Precision;
use refrain_model::Dtype;
use refrain_program::BuildOptions;

/// The types of a program and the arithmetic of the CPU backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    /// Of weights, activations and the KV cache.
    pub build: BuildOptions,
    /// Of the matrix products.
    pub precision: Precision,
}

/// What `--dtype` and `--kv-cache-dtype` come to for a checkpoint whose matrices are `stored`.
///
/// `None` is `auto`: the checkpoint's own type. Float32 is a way of computing: weights stay in the type they are stored
/// in, since widening them loses and gains nothing. Activations are always F32 on a CPU.
pub fn choose(dtype: Option<Dtype>, kv_cache: Option<Dtype>, stored: Dtype) -> Types {
    let wanted = dtype.unwrap_or(stored);
    let weights = if wanted == Dtype::F32 { stored } else { wanted };
    let precision = if wanted == Dtype::Bf16 { Precision::Bf16 } else { Precision::F32 };
    let build = BuildOptions { weights, activations: Dtype::F32, kv_cache: kv_cache.unwrap_or(wanted) };
    Types { build, precision }
}

/// The name of a type as the flags spell it.
pub fn flag_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dtype::{Bf16, F16, F32};

    #[test]
    fn weights_are_never_widened() {
        // (flag, stored) -> (weights, arithmetic, cache)
        let cases = [
            ((None, Bf16), (Bf16, Precision::Bf16, Bf16)),
            ((None, F16), (F16, Precision::F32, F16)),
            ((None, F32), (F32, Precision::F32, F32)),
            ((Some(F32), Bf16), (Bf16, Precision::F32, F32)),
            ((Some(F32), F16), (F16, Precision::F32, F32)),
            ((Some(Bf16), F32), (Bf16, Precision::Bf16, Bf16)),
            ((Some(F16), Bf16), (F16, Precision::F32, F16)),
        ];
        for ((flag, stored), (weights, precision, kv_cache)) in cases {
            let types = choose(flag, None, stored);
            assert_eq!((types.build.weights, types.precision, types.build.kv_cache), (weights, precision, kv_cache));
            assert_eq!(types.build.activations, F32);
        }
        assert_eq!(choose(None, Some(F32), Bf16).build.kv_cache, F32);
    }
}
