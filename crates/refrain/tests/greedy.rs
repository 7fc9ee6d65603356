//! The whole engine on the simulated GPU answers as it does on a CPU: the same tokens for greedy requests in F32, op by op,
//! and with everything that is compiled and recorded when nobody says otherwise.

use indicatif::ProgressBar;
use refrain::load::{DeviceChoice, GpuSettings, LoadError, LoadOptions, ModeRequest, load};
use refrain_device::DeviceError;
use refrain_engine::{Event, Request, RequestStream, SamplingParams};
use refrain_model::Dtype;
use refrain_testkit::{random_checkpoint, skip, target_dir};
use std::path::Path;

/// The answers to prompts of several lengths that are all there at once; none where there is no compiler for kernels.
fn answers(model: &Path, device: DeviceChoice, enforce_eager: bool) -> Option<Vec<Vec<u32>>> {
    let options = LoadOptions {
        model: Some(model.to_str().expect("a name of letters").to_owned()),
        skip_tokenizer_init: true,
        dtype: Some(Dtype::F32),
        max_model_len: Some(256),
        max_num_seqs: Some(4),
        max_num_batched_tokens: Some(128),
        modes: ModeRequest { enforce_eager, ..ModeRequest::default() },
        device,
        // Tests of one run share what they compile.
        gpu: GpuSettings { kernel_cache_dir: Some(target_dir().join("test-kernels")), ..GpuSettings::default() },
        ..LoadOptions::default()
    };
    let loaded = match load(&options, &ProgressBar::hidden()) {
        Ok(loaded) => loaded,
        Err(LoadError::Device(error @ DeviceError::NoCode { .. })) => {
            skip("the engine on the simulated GPU", &error.to_string());
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    for setting in ["kernels", "gpu_products", "kernel_pack_dir"] {
        assert_eq!(loaded.report.settings.get(setting).is_some(), device == DeviceChoice::Sim, "{setting}");
    }
    let vocab_size = loaded.program.vocab_size as u32;
    let submit = |length: u32| {
        let prompt = (0..length).map(|place| (place * place * 31 + length) % vocab_size).collect();
        let sampling =
            SamplingParams { temperature: 0.0, max_tokens: 12, ignore_eos: true, ..SamplingParams::default() };
        loaded.engine.submit(Request { id: length.to_string(), prompt, sampling, priority: 0 }).expect("it is taken")
    };
    let streams: Vec<RequestStream> = [1, 9, 64, 70, 130].map(submit).into();
    let tokens = |mut stream: RequestStream| {
        let events = std::iter::from_fn(|| stream.blocking_next());
        events.filter_map(|event| if let Event::Token { token, .. } = event { Some(token) } else { None }).collect()
    };
    Some(streams.into_iter().map(tokens).collect())
}

#[test]
fn the_simulated_gpu_answers_as_a_cpu_does() {
    let Some(model) = random_checkpoint("micro-0-f32") else { return };
    let cpu = answers(&model, DeviceChoice::Cpu, true).expect("a CPU compiles no kernels");
    assert!(cpu.iter().all(|answer| answer.len() == 12), "{cpu:?}");
    for enforce_eager in [true, false] {
        let Some(sim) = answers(&model, DeviceChoice::Sim, enforce_eager) else { return };
        assert_eq!(sim, cpu, "enforce_eager {enforce_eager}");
    }
}
