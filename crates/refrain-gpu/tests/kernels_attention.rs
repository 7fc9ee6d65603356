//! Attention, the cache and the rotary embedding on the simulated GPU, against double precision.

use refrain_gpu::check::{Case, Rig, Scale, cases, failures};
use refrain_sim::{Order, SimOptions, SimRuntime};

const KERNELS: [&str; 3] = ["qk_norm_rope", "kv_append", "attention"];

/// Runs every `step`-th case of the group and tells all that fail.
fn run(wave: u32, order: Order, processors: u32, step: usize) {
    let runtime = SimRuntime::new(SimOptions { wave, order, processors, ..SimOptions::default() });
    let rig = Rig::new(runtime, 0x5EED + u64::from(wave), false).expect("a rig");
    let group: Vec<Case> =
        cases(&rig.target, Scale::Ragged).into_iter().filter(|case| KERNELS.contains(&case.kernel)).collect();
    assert!(group.len() > 20, "the group has {} cases", group.len());
    let failed = failures(&rig, group.iter().step_by(step));
    assert!(failed.is_empty(), "wave {wave}, {order:?}:\n{}", failed.join("\n"));
}

#[test]
fn waves_of_32_forward() {
    run(32, Order::Forward, 8, 1);
}

#[test]
fn waves_of_64_in_reverse() {
    run(64, Order::Reverse, 40, 1);
}

#[test]
fn shuffled() {
    run(32, Order::Shuffled(7), 40, 3);
    run(64, Order::Shuffled(8), 3, 4);
}
