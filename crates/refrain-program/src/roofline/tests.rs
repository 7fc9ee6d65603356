use super::*;
use crate::testing::{BF16, qwen_0_8b, qwen_4b};

/// Measured on an H100: copies at 3.0 TB/s, bf16 products at 798 TFLOP/s.
const H100: Ceilings = Ceilings { bytes_per_second: 3.0e12, flops_per_second: 798e12 };

#[test]
fn decode_of_the_4b_is_bound_by_its_weights() {
    let program = Program::build(&qwen_4b(), &BF16).unwrap();
    let estimate = program.estimate(&StepShape::decode(1, 1024), &H100);
    // 8.41 GB of weights, 103 MB of states read and written, 33.6 MB of keys and values: 2.85 ms.
    assert_eq!(estimate.bound, Bound::Memory);
    assert!((estimate.floor_seconds * 1e3 - 2.85).abs() < 0.01, "{}", estimate.floor_seconds);
    assert!((estimate.cost.weight_bytes as f64 / 1e9 - 8.41).abs() < 0.01);
    assert!(estimate.ops.iter().all(|op| op.bound == Bound::Memory));
    assert_eq!((estimate.ops[0].name.as_str(), estimate.ops[0].count), ("linear gate_up", 32));
    // 128 sequences at 8192 tokens: 8.41 GB of weights, 13.5 GB of states, 34.4 GB of keys and values: 18.76 ms.
    let estimate = program.estimate(&StepShape::decode(128, 8192), &H100);
    assert!((estimate.floor_seconds * 1e3 - 18.76).abs() < 0.01, "{}", estimate.floor_seconds);
    assert_eq!(estimate.ops[0].name, "attention");
}

#[test]
fn prefill_is_bound_by_compute() {
    let program = Program::build(&qwen_4b(), &BF16).unwrap();
    let estimate = program.estimate(&StepShape::prefill(8192), &H100);
    // 63.9 TFLOP, of which 58.5 in products, 4.4 in attention, 1.05 in the scan: 80.1 ms; element-wise ops on top.
    assert_eq!(estimate.bound, Bound::Compute);
    assert!((estimate.floor_seconds * 1e3 - 80.1).abs() < 0.3, "{}", estimate.floor_seconds);
    assert!(estimate.seconds > estimate.floor_seconds && estimate.seconds < 1.4 * estimate.floor_seconds);
    let flops = |name: &str| {
        let ops = estimate.ops.iter().filter(|op| op.name.starts_with(name));
        ops.map(|op| op.cost.flops).sum::<u64>() as f64 / 1e12
    };
    assert!((flops("linear") - 58.5).abs() < 0.1, "{}", flops("linear"));
    assert!((flops("attention") - 4.4).abs() < 0.1, "{}", flops("attention"));
    assert!((flops("gdn_scan") - 1.05).abs() < 0.01, "{}", flops("gdn_scan"));
    let silu = estimate.ops.iter().find(|op| op.name == "silu_mul").unwrap();
    assert_eq!(silu.bound, Bound::Memory);
}

#[test]
fn the_parts_add_up() {
    let program = Program::build(&qwen_0_8b(), &BF16).unwrap();
    for shape in [StepShape::prefill(300), StepShape::decode(5, 77)] {
        let estimate = program.estimate(&shape, &H100);
        assert_eq!(estimate.cost, program.step_cost(&shape));
        assert_eq!(estimate.ops.iter().map(|op| op.cost).sum::<Cost>(), estimate.cost);
        assert_eq!(estimate.ops.iter().map(|op| op.count).sum::<usize>(), program.nodes.len());
        assert!((estimate.ops.iter().map(|op| op.seconds).sum::<f64>() / estimate.seconds - 1.0).abs() < 1e-12);
        assert!(estimate.ops.windows(2).all(|pair| pair[0].seconds >= pair[1].seconds));
        assert!(estimate.floor_seconds <= estimate.seconds);
        assert!(estimate.ops.iter().any(|op| op.name == "linear head" && op.count == 1));
    }
}

#[test]
fn the_ceilings_meet_at_the_ridge() {
    let ceilings = Ceilings { bytes_per_second: 10.0, flops_per_second: 100.0 };
    assert_eq!(ceilings.time(10, 99), (1.0, Bound::Memory));
    assert_eq!(ceilings.time(10, 200), (2.0, Bound::Compute));
}
