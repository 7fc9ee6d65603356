//! Which element types a checkpoint is run in.

use refrain_cpu::Precision;
use refrain_model::Dtype;
use refrain_program::{BuildOptions, CacheDtype, Program, StateKind};

use super::Device;

/// What `--dtype` and `--kv-cache-dtype` come to for a checkpoint whose matrices are `stored`.
///
/// `None` is `auto`: the checkpoint's own type. Float32 is a way of computing: weights stay in the type they are stored
/// in, since widening them loses and gains nothing. Activations are always F32 on a CPU, and of the wanted type on a GPU.
pub fn choose(dtype: Option<Dtype>, kv_cache: Option<CacheDtype>, stored: Dtype, device: &Device) -> BuildOptions {
    let wanted = dtype.unwrap_or(stored);
    let weights = if wanted == Dtype::F32 { stored } else { wanted };
    let (activations, own) = match device {
        Device::Cpu(_) => (Dtype::F32, wanted.into()),
        Device::Gpu(..) => (wanted, CacheDtype::of_activations(wanted)),
    };
    BuildOptions { weights, activations, kv_cache: kv_cache.unwrap_or(own) }
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

/// The type of keys and values as the flag spells it, with what it means.
pub fn describe_kv_cache(dtype: CacheDtype, program: &Program) -> String {
    let name = match dtype {
        CacheDtype::Plain(dtype) => flag_name(dtype).to_owned(),
        CacheDtype::Fp8(format) => format!("{format}, a scale for each token and head"),
    };
    let attends = program.states.iter().any(|state| matches!(state.kind, StateKind::KvCache { .. }));
    if attends { name } else { format!("{name}; not applicable, the model has no attention layers") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dtype::{Bf16, F16, F32};
    use refrain_cpu::CpuOptions;
    use refrain_program::Fp8;

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
            assert_eq!((types.weights, arithmetic_of, types.kv_cache), (weights, arithmetic, kv_cache.into()));
            assert_eq!(types.activations, F32);
            for wanted in [F32.into(), CacheDtype::Fp8(Fp8::E4m3)] {
                assert_eq!(choose(flag, Some(wanted), stored, &device).kv_cache, wanted);
            }
        }
    }
}
