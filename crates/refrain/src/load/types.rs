//! Which element types a checkpoint is run in.

use refrain_cpu::Precision;
use refrain_model::Dtype;
use refrain_program::BuildOptions;

use super::Device;

/// What `--dtype` and `--kv-cache-dtype` come to for a checkpoint whose matrices are `stored`.
///
/// `None` is `auto`: the checkpoint's own type. Float32 is a way of computing: weights stay in the type they are stored
/// in, since widening them loses and gains nothing. Activations are always F32 on a CPU, and of the wanted type on a GPU.
pub fn choose(dtype: Option<Dtype>, kv_cache: Option<Dtype>, stored: Dtype, device: &Device) -> BuildOptions {
    let wanted = dtype.unwrap_or(stored);
    let weights = if wanted == Dtype::F32 { stored } else { wanted };
    let activations = match device {
        Device::Cpu(_) => Dtype::F32,
        Device::Gpu(..) => wanted,
    };
    BuildOptions { weights, activations, kv_cache: kv_cache.unwrap_or(wanted) }
}

/// The arithmetic of the CPU backend's products for a type.
pub fn precision(wanted: Dtype) -> Precision {
    if wanted == Dtype::Bf16 { Precision::Bf16 } else { Precision::F32 }
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
    use refrain_cpu::CpuOptions;

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
        for ((flag, stored), (weights, arithmetic, kv_cache)) in cases {
            let arithmetic_of = precision(flag.unwrap_or(stored));
            let device = Device::Cpu(CpuOptions { threads: 1, precision: arithmetic_of, isa: None, passes: None });
            let types = choose(flag, None, stored, &device);
            assert_eq!((types.weights, arithmetic_of, types.kv_cache), (weights, arithmetic, kv_cache));
            assert_eq!(types.activations, F32);
            assert_eq!(choose(flag, Some(F32), stored, &device).kv_cache, F32);
        }
    }
}
