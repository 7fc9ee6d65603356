//! Choosing tokens on the simulated GPU, against the definition in double precision.

use refrain_device::Runtime;
use refrain_gpu::Target;
use refrain_gpu::check::{Case, Rig, Scale, cases, failures};
use refrain_sim::{Order, SimOptions, SimRuntime};

/// Runs the cases of this group that `wanted` chooses, and names those that fail.
fn run(wave: u32, order: Order, seed: u64, wanted: impl Fn(usize) -> bool) {
    let options = SimOptions { wave, order, memory_bytes: 256 << 20, ..SimOptions::default() };
    let runtime = SimRuntime::new(options);
    let target = Target::from(runtime.info());
    let rig = Rig::new(runtime, seed, false).expect("the simulated GPU starts");
    let group = cases(&target, Scale::Ragged).into_iter().filter(|case| case.kernel == "sample");
    let chosen: Vec<Case> = group.enumerate().filter(|(index, _)| wanted(*index)).map(|(_, case)| case).collect();
    assert!(!chosen.is_empty());
    let failures = failures(&rig, &chosen);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn all_cases_with_waves_of_32() {
    run(32, Order::Forward, 1, |_| true);
}

#[test]
fn all_cases_with_waves_of_64_in_reverse() {
    run(64, Order::Reverse, 2, |_| true);
}

#[test]
fn small_vocabularies_in_shuffled_orders() {
    for (seed, wave) in [(3, 32), (4, 64), (5, 32)] {
        run(wave, Order::Shuffled(seed), seed, |index| index < 3);
    }
}
