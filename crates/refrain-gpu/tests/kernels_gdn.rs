//! The kernels of Gated DeltaNet on the simulated GPU, against double precision.

use refrain_gpu::check::{Case, Rig, Scale, cases, failures};
use refrain_sim::{Order, SimOptions, SimRuntime};

const KERNELS: [&str; 5] = ["gdn_conv", "l2_norm", "gated_rms_norm", "gdn_gates", "gdn_scan"];

/// Runs the cases of the group that `wanted` chooses and names those that fail. Kernels divide their work by the number
/// of processors, and keep as much as there is room for in shared memory.
fn run(options: SimOptions, shared_bytes: u32, wanted: impl Fn(usize, &Case) -> bool) {
    let wave = options.wave;
    let runtime = SimRuntime::new(SimOptions { memory_bytes: 256 << 20, ..options });
    let mut rig = Rig::new(runtime, u64::from(wave), false).expect("the simulated GPU starts");
    rig.target.shared_bytes = rig.target.shared_bytes.min(shared_bytes);
    let group: Vec<Case> =
        cases(&rig.target, Scale::Ragged).into_iter().filter(|case| KERNELS.contains(&case.kernel)).collect();
    assert!(group.len() > 60, "the group has {} cases", group.len());
    let chosen = group.iter().enumerate().filter(|(index, case)| wanted(*index, case)).map(|(_, case)| case);
    let failures = failures(&rig, chosen);
    assert!(failures.is_empty(), "waves of {wave}:\n{}", failures.join("\n"));
}

#[test]
fn all_cases_with_waves_of_32() {
    run(SimOptions { wave: 32, processors: 2, ..SimOptions::default() }, u32::MAX, |_, _| true);
}

#[test]
fn all_cases_with_waves_of_64_in_reverse() {
    run(SimOptions { wave: 64, order: Order::Reverse, ..SimOptions::default() }, u32::MAX, |_, _| true);
}

#[test]
fn some_cases_in_shuffled_orders() {
    for wave in [32, 64] {
        let options = SimOptions { wave, order: Order::Shuffled(u64::from(wave)), ..SimOptions::default() };
        run(options, u32::MAX, |index, _| index % 5 == 1);
    }
}

#[test]
fn tensor_cores_with_little_shared_memory() {
    for (shared_bytes, name) in [(40_000, "F16, in pieces"), (80_000, "F16, mixed")] {
        let options = SimOptions { order: Order::Reverse, ..SimOptions::default() };
        run(options, shared_bytes, |_, case| case.name == name);
    }
}
