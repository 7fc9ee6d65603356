//! Norms, element-wise ops and products on the simulated GPU, against double precision.

#[path = "support/group.rs"]
mod group;

use group::run;
use refrain_sim::Order;

const KERNELS: [&str; 8] = ["rms_norm", "add", "sigmoid_gate", "silu_mul", "embed", "gather_rows", "gemv", "gemm"];

#[test]
fn all_cases_with_waves_of_32() {
    run(&KERNELS, 32, Order::Forward, |_, _| true);
}

#[test]
fn all_cases_with_waves_of_64_in_reverse() {
    run(&KERNELS, 64, Order::Reverse, |_, _| true);
}

#[test]
fn some_cases_in_shuffled_orders() {
    for (seed, wave) in [(0, 32), (1, 64), (2, 32)] {
        run(&KERNELS, wave, Order::Shuffled(seed), |index, _| index % 5 == seed as usize);
    }
}
