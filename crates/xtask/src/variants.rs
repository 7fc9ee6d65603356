//! Which kernels are compiled: all that programs of the models need, as they are built and compiled, with and without a
//! library of products.

use crate::architectures::targets;
use crate::models::{Model, of_tests, published};
use anyhow::{Context, Result};
use refrain_device::StepLimits;
use refrain_gpu::{Kernel, Target, measure_kernels, required_kernels};
use refrain_program::{BuildOptions, CacheDtype, CompileOptions, Dtype, Fp8, Program};
use std::collections::BTreeSet;

/// Any limits will do: code does not depend on them, which a test asserts.
const LIMITS: StepLimits =
    StepLimits { max_tokens: 8192, max_segments: 256, max_logit_rows: 256, max_model_len: 32_768 };

/// Element types of weights and activations that packs are for; the cache is of the same or of eight bits.
const TYPES: [Types; 5] = [
    Types::same(Dtype::Bf16),
    Types::same(Dtype::F16),
    Types::same(Dtype::F32),
    // --dtype float32 of what is stored in less.
    Types { weights: Dtype::Bf16, activations: Dtype::F32 },
    Types { weights: Dtype::F16, activations: Dtype::F32 },
];

#[derive(Clone, Copy, Debug)]
struct Types {
    weights: Dtype,
    activations: Dtype,
}

impl Types {
    const fn same(dtype: Dtype) -> Types {
        Types { weights: dtype, activations: dtype }
    }
}

/// The kernels of some models on some targets, in every type, and those that measure a device. Those that
/// other settings of passes need are compiled when they are used.
///
/// # Errors
/// When a model's shape is impossible.
pub fn variants(models: &[Model], targets: &[Target]) -> Result<Vec<Kernel>> {
    let mut kernels: BTreeSet<Kernel> = measure_kernels().into();
    for target in targets {
        kernels.extend(of_models(models, &TYPES, Way::Compiled, target)?);
    }
    Ok(kernels.into_iter().collect())
}

/// Whether a program is also compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Eager,
    Compiled,
}

/// The kernels that have a budget on an architecture: those of the 4B model on the card for which they are tuned, those
/// of the small shapes that tests run, also in F32, and those that measure a device. What is fused is a define more in
/// most kernels, so of compiled programs one large and one small one are enough.
///
/// # Errors
/// As [`variants`], and when the architecture is not known.
pub fn budgeted(arch: &str) -> Result<Vec<Kernel>> {
    let target = &targets(arch, &[])?[0];
    let large: Vec<Model> = published().into_iter().filter(|model| model.name == "4b").collect();
    let mut kernels: BTreeSet<Kernel> = measure_kernels().into();
    kernels.extend(of_models(&large, &TYPES[..2], Way::Eager, target)?);
    kernels.extend(of_models(&of_tests(), &TYPES[..3], Way::Eager, target)?);
    kernels.extend(of_models(&large, &TYPES[..1], Way::Compiled, target)?);
    kernels.extend(of_models(&of_tests()[..1], &[Types::same(Dtype::F32)], Way::Compiled, target)?);
    Ok(kernels.into_iter().collect())
}

fn of_models(models: &[Model], types: &[Types], way: Way, target: &Target) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    for (model, types) in models.iter().flat_map(|model| types.iter().map(move |types| (model, *types))) {
        kernels.extend(of_model(model, types, way, target, &LIMITS)?);
    }
    Ok(kernels)
}

fn of_model(model: &Model, types: Types, way: Way, target: &Target, limits: &StepLimits) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    let compile = (way == Way::Compiled).then(CompileOptions::default);
    let Types { weights, activations } = types;
    for kv_cache in [CacheDtype::of_activations(activations), activations.into(), Fp8::E4m3.into(), Fp8::E5m2.into()] {
        let options = BuildOptions { weights, activations, kv_cache };
        let program = Program::build(&model.config, &options).with_context(|| model.name)?;
        kernels.extend(required_kernels(&program, compile.as_ref(), target, limits, true));
        // Without a library of products other kernels take its place.
        kernels.extend(required_kernels(&program, compile.as_ref(), target, limits, false));
    }
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a pack would serve only those who use the limits that it was made with.
    #[test]
    fn code_does_not_depend_on_limits() {
        let small = StepLimits { max_tokens: 64, max_segments: 1, max_logit_rows: 1, max_model_len: 128 };
        let large = StepLimits { max_tokens: 32_768, max_segments: 1024, max_logit_rows: 1024, max_model_len: 262_144 };
        for model in published() {
            for target in ["sm_80", "sm_90a", "gfx906"].map(|arch| targets(arch, &[]).unwrap().remove(0)) {
                let kernels = |limits| {
                    let kernels = of_model(&model, TYPES[0], Way::Compiled, &target, limits).unwrap();
                    kernels.into_iter().collect::<BTreeSet<_>>()
                };
                let packed = kernels(&LIMITS);
                for limits in [&small, &large] {
                    let missing: Vec<_> = kernels(limits).difference(&packed).cloned().collect();
                    assert!(missing.is_empty(), "{} on {}: {missing:#?}", model.name, target.arch);
                }
            }
        }
    }
}
