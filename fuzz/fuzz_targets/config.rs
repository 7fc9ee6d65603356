//! The JSON files of a stranger's model folder: an error, or a configuration that a program can be built for (or that
//! is refused with a reason).
#![no_main]

use libfuzzer_sys::fuzz_target;
use refrain_model::{Dtype, GenerationConfig, ModelConfig};
use refrain_program::{BuildOptions, Program};

fuzz_target!(|json: &str| {
    let _ = GenerationConfig::from_json(json);
    let Ok(config) = ModelConfig::from_json(json) else { return };
    if config.layers.len() <= 64 {
        let options = BuildOptions { weights: Dtype::Bf16, activations: Dtype::F32, kv_cache: Dtype::Bf16.into() };
        let _ = Program::build(&config, &options);
    }
});
