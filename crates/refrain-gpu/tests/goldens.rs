//! The whole backend on the simulated GPU against Hugging Face transformers: see `docs/goldens.md`. The same gates run on
//! real GPUs by `tools/gpu_proof.py`.

use refrain_gpu::{GpuBackend, GpuOptions, KernelOptions};
use refrain_program::{BuildOptions, CacheDtype, Dtype, FEW_ROWS, Fp8, PassConfig, compile};
use refrain_sim::{Order, SimOptions, SimRuntime};
use refrain_testkit::{Difference, Golden, Invariance, Prepared, Runner, check_all_ways, checkpoint, skip, target_dir};
use std::sync::Arc;

/// Prompts up to so many tokens: the simulated GPU is slow.
const LONGEST: usize = 65;

/// With `most_rows` the program is compiled for so many, and run for any number: ops are the same, however many rows.
fn check(
    name: &str,
    wave: u32,
    order: Order,
    types: fn(Dtype) -> BuildOptions,
    most_rows: Option<usize>,
    gate: fn(&Difference) -> Result<(), String>,
) {
    let mut golden = if name.ends_with("-f32") && types(Dtype::F32).activations == Dtype::Bf16 {
        Golden::load_rounded(name)
    } else {
        Golden::load(name)
    };
    golden.prompts.retain(|prompt| prompt.ids.len() <= LONGEST);
    let Some(folder) = checkpoint(&golden) else { return };
    let runtime = SimRuntime::new(SimOptions { wave, order, memory_bytes: 1 << 30, ..SimOptions::default() });
    let Prepared { checkpoint, mut program, limits, pools } = Prepared::open(&folder, 256, types);
    if let Some(most_rows) = most_rows {
        program = compile(&program, &PassConfig::default(), most_rows).program;
    }
    // Tests of one run share what they compile.
    let kernels = KernelOptions { cache_dir: Some(target_dir().join("test-kernels")), ..KernelOptions::default() };
    let options = GpuOptions { kernels, ..GpuOptions::default() };
    match GpuBackend::load(Arc::clone(&runtime) as _, &program, &checkpoint, limits, pools, &options, &|_, _| {}) {
        Ok(backend) => {
            let mut runner = Runner::new(Box::new(backend), program.vocab_size);
            check_all_ways(&golden, &mut runner, gate, Invariance::Gate);
        }
        Err(error @ refrain_device::DeviceError::NoCode { .. }) => {
            skip(&format!("{name} on the simulated GPU"), &error.to_string())
        }
        Err(error) => panic!("{error}"),
    }
}

fn in_f32(stored: Dtype) -> BuildOptions {
    BuildOptions { weights: stored, activations: Dtype::F32, kv_cache: Dtype::F32.into() }
}

fn in_bf16(_: Dtype) -> BuildOptions {
    let kv_cache = CacheDtype::of_activations(Dtype::Bf16);
    BuildOptions { weights: Dtype::Bf16, activations: Dtype::Bf16, kv_cache }
}

fn in_f32_over_e5m2(stored: Dtype) -> BuildOptions {
    BuildOptions { kv_cache: Fp8::E5m2.into(), ..in_f32(stored) }
}

fn in_bf16_over_e4m3(stored: Dtype) -> BuildOptions {
    BuildOptions { kv_cache: Fp8::E4m3.into(), ..in_bf16(stored) }
}

#[test]
fn micro_in_f32_on_waves_of_32() {
    check("micro-0-f32", 32, Order::Forward, in_f32, None, Difference::check_f32);
}

#[test]
fn micro_in_f32_on_waves_of_64() {
    check("micro-1-f32", 64, Order::Reverse, in_f32, None, Difference::check_f32);
}

#[test]
fn micro_in_bf16_on_waves_of_32() {
    check("micro-0-bf16", 32, Order::Reverse, in_bf16, None, Difference::check_bf16);
}

#[test]
fn micro_in_bf16_on_waves_of_64() {
    check("micro-1-bf16", 64, Order::Forward, in_bf16, None, Difference::check_bf16);
}

#[test]
fn micro_over_e4m3_on_waves_of_32() {
    check("micro-0-bf16", 32, Order::Forward, in_bf16_over_e4m3, None, Difference::check_fp8_cache);
}

#[test]
fn micro_over_e5m2_on_waves_of_64() {
    check("micro-1-f32", 64, Order::Reverse, in_f32_over_e5m2, None, Difference::check_fp8_cache);
}

#[test]
fn odd_shapes_in_f32_in_any_order() {
    check("odd-1-f32", 32, Order::Shuffled(7), in_f32, None, Difference::check_f32);
}

#[test]
fn compiled_for_few_rows() {
    check("micro-0-bf16", 32, Order::Forward, in_bf16, Some(FEW_ROWS), Difference::check_bf16);
}

#[test]
fn compiled_for_many_rows() {
    check("micro-1-f32", 32, Order::Forward, in_f32, Some(256), Difference::check_f32);
}

#[test]
fn compiled_over_e4m3() {
    check("micro-0-bf16", 32, Order::Forward, in_bf16_over_e4m3, Some(FEW_ROWS), Difference::check_fp8_cache);
}
