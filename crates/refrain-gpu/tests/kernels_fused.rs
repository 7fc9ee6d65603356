//! Kernels that do several ops at once, on the simulated GPU, against double precision.

use refrain_device::Runtime;
use refrain_gpu::Target;
use refrain_gpu::check::{Case, Rig, Scale, cases};
use refrain_sim::{Order, SimOptions, SimRuntime};

const KERNELS: [&str; 6] =
    ["fused_linear", "gdn_prepare", "gdn_step", "add_rms_norm", "qk_norm_rope_append", "generated"];

/// Runs the cases of this group that `wanted` chooses, and names those that fail.
fn run(wave: u32, order: Order, wanted: impl Fn(usize, &Case) -> bool) {
    // Few processors, so that blocks take several units of a product.
    let options = SimOptions { wave, order, processors: 2, memory_bytes: 256 << 20, ..SimOptions::default() };
    let runtime = SimRuntime::new(options);
    let target = Target::from(runtime.info());
    let rig = Rig::new(runtime, u64::from(wave), false).expect("the simulated GPU starts");
    let group = cases(&target, Scale::Ragged).into_iter().filter(|case| KERNELS.contains(&case.kernel));
    let chosen: Vec<Case> =
        group.enumerate().filter(|(index, case)| wanted(*index, case)).map(|(_, case)| case).collect();
    assert!(chosen.len() >= 8, "only {} cases", chosen.len());
    let mut failures = Vec::new();
    for case in chosen {
        match (case.run)(&rig) {
            Ok(outcome) if outcome.passes() => {}
            Ok(outcome) => failures.push(format!(
                "{} {}: error {:.2e}, allowed {:.2e}",
                case.kernel, case.name, outcome.error, outcome.tolerance
            )),
            Err(error) => failures.push(format!("{} {}: {error}", case.kernel, case.name)),
        }
    }
    assert!(failures.is_empty(), "waves of {wave}:\n{}", failures.join("\n"));
}

#[test]
fn all_cases_with_waves_of_32() {
    run(32, Order::Forward, |_, _| true);
}

#[test]
fn all_cases_with_waves_of_64_in_reverse() {
    run(64, Order::Reverse, |_, _| true);
}

#[test]
fn some_cases_in_shuffled_orders() {
    for (seed, wave) in [(0, 32), (1, 64)] {
        run(wave, Order::Shuffled(seed), |index, _| index % 4 == seed as usize);
    }
}
