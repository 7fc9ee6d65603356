//! Which kernels are compiled: all that programs of the models need, with and without a library of products.

use crate::models::{Model, of_tests, published};
use anyhow::{Context, Result};
use refrain_device::StepLimits;
use refrain_gpu::{Kernel, Target, measure_kernels, required_kernels};
use refrain_program::{BuildOptions, Dtype, Program};
use std::collections::BTreeSet;

/// Any limits will do: code does not depend on them, which a test asserts.
const LIMITS: StepLimits =
    StepLimits { max_tokens: 8192, max_segments: 256, max_logit_rows: 256, max_model_len: 32_768 };

/// Element types of weights, activations and cache.
const TYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// The kernels of some models on a target, for weights in either type of 16 bits, and those that measure a device.
///
/// # Errors
/// When a model's shape is impossible.
pub fn variants(models: &[Model], target: &Target) -> Result<Vec<Kernel>> {
    let mut kernels: BTreeSet<Kernel> = measure_kernels().into();
    for model in models {
        for dtype in TYPES {
            kernels.extend(of_model(model, dtype, target, &LIMITS)?);
        }
    }
    Ok(kernels.into_iter().collect())
}

/// The kernels that have a budget: those of the 4B model, which is what the kernels are made for, and of the small
/// shapes that tests run.
///
/// # Errors
/// As [`variants`].
pub fn budgeted(target: &Target) -> Result<Vec<Kernel>> {
    let mut models: Vec<Model> = published().into_iter().filter(|model| model.name == "4b").collect();
    models.extend(of_tests());
    variants(&models, target)
}

fn of_model(model: &Model, dtype: Dtype, target: &Target, limits: &StepLimits) -> Result<Vec<Kernel>> {
    let options = BuildOptions { weights: dtype, activations: dtype, kv_cache: dtype };
    let program = Program::build(&model.config, &options).with_context(|| model.name)?;
    let mut kernels = required_kernels(&program, target, limits, true);
    // Without a library of products other kernels take its place.
    kernels.extend(required_kernels(&program, target, limits, false));
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architectures::target;

    /// Else a pack would serve only those who use the limits and the card that it was made with.
    #[test]
    fn code_depends_neither_on_limits_nor_on_the_number_of_processors() {
        let small = StepLimits { max_tokens: 64, max_segments: 1, max_logit_rows: 1, max_model_len: 128 };
        let large = StepLimits { max_tokens: 32_768, max_segments: 1024, max_logit_rows: 1024, max_model_len: 262_144 };
        for model in published() {
            for arch in ["sm_80", "sm_90a", "gfx906"] {
                let target = target(arch).unwrap();
                let many = Target { processors: 144, ..target.clone() };
                let kernels = |target, limits| {
                    let kernels = of_model(&model, Dtype::Bf16, target, limits).unwrap();
                    kernels.into_iter().collect::<BTreeSet<_>>()
                };
                let packed = kernels(&target, &LIMITS);
                for (target, limits) in [(&target, &small), (&target, &large), (&many, &LIMITS)] {
                    let missing: Vec<_> = kernels(target, limits).difference(&packed).cloned().collect();
                    assert!(missing.is_empty(), "{} on {arch}: {missing:#?}", model.name);
                }
            }
        }
    }
}
