use super::*;
use crate::testing::{BF16, any_config, qwen_0_8b, qwen_4b, tinytales};
use crate::{BuildOptions, Dtype, Fp8};
use proptest::prelude::*;

// Qwen3.5-0.8B: weights of the projections, of the tied head, and everything else (norms, convolutions, gates).
const BODY: u64 = 497_614_848;
const HEAD: u64 = 248_320 * 1024;
const SMALL: u64 = 752_393_024 - BODY - HEAD;

fn program() -> Program {
    Program::build(&qwen_0_8b(), &BF16).unwrap()
}

/// The cost of all ops of some kinds.
fn cost_of(program: &Program, shape: &StepShape, kinds: &[&str]) -> Cost {
    let nodes = program.nodes.iter().filter(|node| kinds.contains(&node.op.name()));
    nodes.map(|node| program.node_cost(node, shape)).sum()
}

#[test]
fn a_decode_step_reads_every_weight_once() {
    let program = program();
    let cost = program.step_cost(&StepShape::decode(1, 1024));
    // The projections and the tied head in bf16, the rest in f32, and one row of the embedding: 1.50 GB.
    assert_eq!(cost.weight_bytes, 2 * (BODY + HEAD) + 4 * SMALL + 2 * 1024);
    assert_eq!(cost.weight_bytes as usize, program.weight_bytes() + 2 * 1024);
    assert!((cost.weight_bytes as f64 / 1e9 - 1.50).abs() < 0.01);
    // A larger batch reads no weight again, only more rows of the embedding.
    let batch = program.step_cost(&StepShape::decode(32, 1024));
    assert_eq!(batch.weight_bytes - cost.weight_bytes, 31 * 2 * 1024);
}

#[test]
fn states_have_their_published_sizes() {
    let program = program();
    // 18 GDN layers of 16 heads of 128 x 128 in f32: 18.9 MB; 6144 channels of 3 inputs in f32; 6 attention layers
    // of 2 heads of 256 in bf16: 12 KiB a token.
    let (recurrent, convolution) = (18 * 16 * 128 * 128 * 4, 18 * 6144 * 3 * 4);
    assert_eq!(program.gdn_slot_bytes(), recurrent + convolution);
    assert_eq!(recurrent, 18_874_368);
    assert_eq!(program.kv_block_bytes(1), 12 * 1024);
    assert_eq!(program.kv_block_bytes(16), 16 * 12 * 1024);
    let program = Program::build(&qwen_4b(), &BF16).unwrap();
    assert_eq!(program.kv_block_bytes(1), 32 * 1024);
    assert_eq!(program.gdn_slot_bytes(), 50_331_648 + 2 * 1_179_648);
    let options = BuildOptions { kv_cache: Dtype::F32.into(), ..BF16 };
    assert_eq!(Program::build(&qwen_4b(), &options).unwrap().kv_block_bytes(1), 64 * 1024);
    // Half of what BF16 takes, and a byte for each of the 8 layers' 4 heads of keys and of values.
    let options = BuildOptions { kv_cache: Fp8::E4m3.into(), ..BF16 };
    assert_eq!(Program::build(&qwen_4b(), &options).unwrap().kv_block_bytes(1), 16 * 1024 + 8 * 4 * 2);
}

#[test]
fn decode_moves_the_states_of_every_sequence() {
    let program = program();
    let (slot, kv) = (program.gdn_slot_bytes() as u64, 12 * 1024);
    // Each reads and writes its slot, appends one token and reads it back with the 1024 before it.
    let cost = program.step_cost(&StepShape::decode(3, 1024));
    assert_eq!(cost.state_bytes, 3 * (2 * slot + (1 + 1025) * kv));
    // A sequence that begins reads no slot.
    let cost = program.step_cost(&StepShape { segments: vec![(100, 0), (5, 64)], logit_rows: 2 });
    assert_eq!(cost.state_bytes, 3 * slot + (100 + 100 + 5 + 69) * kv);
}

#[test]
fn products_dominate_the_flops() {
    let program = program();
    // Projections: 0.995 GFLOP a token; the head only where logits are wanted.
    let shape = StepShape::prefill(8192);
    assert_eq!(cost_of(&program, &shape, &["linear"]).flops, 2 * BODY * 8192 + 2 * HEAD);
    assert_eq!((2.0 * BODY as f64 / 1e6).round(), 995.0);
    let shape = StepShape::decode(7, 4096);
    assert_eq!(cost_of(&program, &shape, &["linear"]).flops, 7 * 2 * (BODY + HEAD));
    // Everything that isn't a product, attention or the scan is below 1 %.
    let shape = StepShape::prefill(1024);
    let rest = program.step_cost(&shape).flops - cost_of(&program, &shape, &["linear", "attention", "gdn_scan"]).flops;
    assert!(rest * 100 < program.step_cost(&shape).flops, "{rest}");
}

#[test]
fn attention_is_causal() {
    let program = program();
    let flops = |segments: &[(usize, usize)]| {
        cost_of(&program, &StepShape { segments: segments.to_vec(), logit_rows: 1 }, &["attention"]).flops
    };
    // 6 layers of 8 heads of 256: 4 FLOPs for each dimension of each pair.
    let pair = 6 * 4 * 8 * 256;
    assert_eq!(flops(&[(1, 1023)]), 1024 * pair);
    assert_eq!(flops(&[(1024, 0)]), 1024 * 1025 / 2 * pair);
    assert_eq!(flops(&[(3, 10), (1, 4)]), (11 + 12 + 13 + 5) * pair);
    // However a prompt is cut, the pairs are the same.
    assert_eq!(flops(&[(700, 0)]) + flops(&[(324, 700)]), flops(&[(1024, 0)]));
}

#[test]
fn the_scan_is_chunked() {
    let program = program();
    let flops = |segments: &[(usize, usize)]| {
        cost_of(&program, &StepShape { segments: segments.to_vec(), logit_rows: 1 }, &["gdn_scan"]).flops
    };
    // For each token, value head and layer at C = 64, d_k = d_v = 128: 4 C d_k + 2 C^2 / 3 + 6 d_k d_v + 4 C d_v.
    let chunk = 4 * 64 * 64 * 128 + 2 * 64 * 64 * 64 / 3 + 6 * 64 * 128 * 128 + 4 * 64 * 64 * 128;
    assert_eq!(flops(&[(8192, 0)]), 18 * 16 * 128 * chunk);
    // One generated token: 7 FLOPs for each element of the state.
    assert_eq!(flops(&[(1, 500)]), 18 * 16 * 7 * 128 * 128);
    // Chunks begin at multiples of 64, so cutting there changes nothing and cutting elsewhere saves squares.
    assert_eq!(flops(&[(128, 0)]) + flops(&[(100, 128)]), flops(&[(228, 0)]));
    assert_eq!(flops(&[(100, 30)]), flops(&[(34, 0)]) + flops(&[(64, 0)]) + flops(&[(2, 64)]));
}

#[test]
fn activations_count_what_is_read_and_written() {
    let program = Program::build(&tinytales(), &BF16).unwrap();
    let shape = StepShape { segments: vec![(10, 0), (1, 7)], logit_rows: 2 };
    // x in f32, h out in bf16, 256 each.
    let norms = program.nodes.iter().find(|node| node.op.name() == "rms_norm").unwrap();
    assert_eq!(program.node_cost(norms, &shape).activation_bytes, 11 * 256 * (4 + 2));
    // Two rows in, two rows out, in f32.
    assert_eq!(cost_of(&program, &shape, &["gather_rows"]).activation_bytes, 2 * 2 * 256 * 4);
    // b, a, beta and decay in f32, 4 heads, 6 layers.
    assert_eq!(cost_of(&program, &shape, &["gdn_gates"]).activation_bytes, 6 * 11 * 4 * 4 * 4);
    assert_eq!(cost_of(&program, &shape, &["embed"]).weight_bytes, 11 * 256 * 2);
}

proptest! {
    /// Sequences add up: what a step moves and computes for two is what it does for each, but for the weights.
    #[test]
    fn costs_are_additive(config in any_config(), first in (1_usize..200, 0_usize..200), second in (1_usize..200, 0_usize..200)) {
        let program = Program::build(&config, &BF16).unwrap();
        let cost = |segments: &[(usize, usize)]| {
            program.step_cost(&StepShape { segments: segments.to_vec(), logit_rows: segments.len() })
        };
        let (both, mut sum) = (cost(&[first, second]), cost(&[first]));
        sum += cost(&[second]);
        prop_assert_eq!((both.activation_bytes, both.state_bytes, both.flops), (sum.activation_bytes, sum.state_bytes, sum.flops));
        prop_assert!(both.weight_bytes < sum.weight_bytes);
    }
}
