//! Cases of some kernels on the simulated GPU.

use refrain_device::Runtime;
use refrain_gpu::Target;
use refrain_gpu::check::{Case, Rig, Scale, cases, failures};
use refrain_sim::{Order, SimOptions, SimRuntime};

/// Runs the cases of these kernels that `wanted` chooses, at least eight, and names those that fail.
pub fn run(kernels: &[&str], wave: u32, order: Order, wanted: impl Fn(usize, &Case) -> bool) {
    // Few processors, so that blocks take several units of a product.
    let options = SimOptions { wave, order, processors: 2, memory_bytes: 256 << 20, ..SimOptions::default() };
    let runtime = SimRuntime::new(options);
    let target = Target::from(runtime.info());
    let rig = Rig::new(runtime, u64::from(wave), false).expect("the simulated GPU starts");
    let group = cases(&target, Scale::Ragged).into_iter().filter(|case| kernels.contains(&case.kernel));
    let chosen: Vec<Case> =
        group.enumerate().filter(|(index, case)| wanted(*index, case)).map(|(_, case)| case).collect();
    assert!(chosen.len() >= 8, "only {} cases", chosen.len());
    let failures = failures(&rig, &chosen);
    assert!(failures.is_empty(), "waves of {wave}:\n{}", failures.join("\n"));
}
