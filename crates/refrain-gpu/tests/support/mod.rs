//! A small model on the simulated GPU, which does its work late, with a graph for up to four sequences that decode.

use refrain_device::{DeviceError, GraphMode};
use refrain_gpu::{GpuBackend, GpuOptions, GraphOptions, KernelOptions};
use refrain_program::{BuildOptions, Dtype};
use refrain_sim::{SimOptions, SimRuntime};
use refrain_testkit::{Golden, Prepared, checkpoint, skip, target_dir};
use std::sync::Arc;

/// The model in f32 with its vocabulary size, and the device. `None` where its checkpoint can't be made, or no kernel
/// compiled, which is said.
pub fn load(test: &str) -> Option<(GpuBackend, usize, Arc<SimRuntime>)> {
    let folder = checkpoint(&Golden::load("micro-0-f32"))?;
    let runtime = SimRuntime::new(SimOptions { memory_bytes: 1 << 30, late: true, ..SimOptions::default() });
    let types = |stored| BuildOptions { weights: stored, activations: Dtype::F32, kv_cache: Dtype::F32.into() };
    let Prepared { checkpoint, program, limits, pools } = Prepared::open(&folder, 256, types);
    let kernels = KernelOptions { cache_dir: Some(target_dir().join("test-kernels")), ..KernelOptions::default() };
    let (mode, decode_sizes) = (GraphMode::FullDecodeOnly, Some(vec![4]));
    let graphs = GraphOptions { mode, decode_sizes, ..GraphOptions::default() };
    let options = GpuOptions { kernels, graphs, ..GpuOptions::default() };
    match GpuBackend::load(runtime.clone(), &program, &checkpoint, limits, pools, &options, &|_, _| {}) {
        Ok(backend) => Some((backend, program.vocab_size, runtime)),
        Err(error @ DeviceError::NoCode { .. }) => {
            skip(test, &error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}
