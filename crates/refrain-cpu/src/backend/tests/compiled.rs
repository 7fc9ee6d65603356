//! The compiled cell gives what the eager one gives, bit for bit: what is fused does the same arithmetic in the same order.

use super::*;
use proptest::prelude::*;
use refrain_program::{Fp8, PassConfig};

/// The shapes of the embedded model's layers, smaller.
fn even() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 96,
        gdn: Some(GdnConfig {
            num_key_heads: 2,
            num_value_heads: 4,
            key_head_dim: 32,
            value_head_dim: 32,
            conv_kernel: 4,
        }),
        tie_word_embeddings: false,
        ..config()
    }
}

fn dense() -> ModelConfig {
    let attention = AttentionConfig { output_gate: false, num_heads: 4, num_kv_heads: 2, ..config().attention };
    ModelConfig { layers: vec![LayerKind::FullAttention; 2], gdn: None, attention, ..config() }
}

fn one_gdn_layer() -> ModelConfig {
    ModelConfig { layers: vec![LayerKind::Gdn], ..config() }
}

fn any_switches() -> impl Strategy<Value = PassConfig> {
    prop::collection::vec(prop::bool::weighted(0.7), 12).prop_map(|on| {
        let mut config = PassConfig::none();
        for ((name, _), on) in PassConfig::default().switches().into_iter().zip(on) {
            config.set(name, on);
        }
        config
    })
}

/// Types of weights and of caches.
type Types = (Dtype, CacheDtype);

fn types() -> Vec<Types> {
    let caches = |dtype: Dtype| [dtype.into(), Fp8::E4m3.into(), Fp8::E5m2.into()].map(|cache| (dtype, cache));
    [Dtype::F32, Dtype::Bf16].into_iter().flat_map(caches).collect()
}

fn load(config: &ModelConfig, (dtype, cache): Types, isa: Isa, threads: usize, passes: PassConfig) -> CpuBackend {
    let program = program_with(config, dtype, cache);
    let precision = if dtype == Dtype::Bf16 { Precision::Bf16 } else { Precision::F32 };
    let options = CpuOptions { threads, precision, isa: Some(isa), passes: Some(passes) };
    CpuBackend::load(&program, &Weights::new(&program), LIMITS, POOLS, &options).unwrap()
}

/// Prefill, prefill beside decode, and decode, of three sequences, in these cells in turn; all logits.
fn run_mixed(backend: &mut CpuBackend, cells: &[Cell]) -> Vec<Vec<u32>> {
    let texts = [tokens(80), tokens(50).into_iter().rev().collect(), tokens(9)];
    let part = |index: usize, range: Range<usize>| Part {
        tokens: &texts[index],
        range,
        prompt: [70, 40, 6][index],
        slot: index as u32,
    };
    let mut rows = Vec::new();
    let steps = [
        vec![part(0, 0..64), part(1, 0..9)],
        vec![part(2, 0..6), part(1, 9..40), part(0, 64..70)],
        vec![part(0, 70..71), part(2, 6..7), part(1, 40..41)],
        vec![part(0, 71..74), part(2, 7..9), part(1, 41..50)],
        vec![part(0, 74..75)],
    ];
    for (parts, cell) in steps.iter().zip(cells.iter().cycle()) {
        rows.extend(step_in(backend, parts, *cell));
    }
    assert!(rows.iter().flatten().all(|logit| logit.is_finite()));
    bits(&rows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_passes_change_no_bit(
        which in 0_usize..4, switches in any_switches(), types in prop::sample::select(types()), threads in 1_usize..4,
    ) {
        let config = [config(), even(), dense(), one_gdn_layer()][which].clone();
        let mut backend = load(&config, types, Isa::detect(), threads, switches);
        let eager = run_mixed(&mut backend, &[Cell::EAGER]);
        prop_assert_eq!(run_mixed(&mut backend, &[Cell::COMPILED]), eager);
    }
}

#[test]
fn all_passes_change_no_bit_on_any_instruction_set() {
    for config in [config(), even(), dense(), one_gdn_layer()] {
        for (types, isa) in Isa::available().into_iter().flat_map(|isa| types().into_iter().map(move |own| (own, isa)))
        {
            let mut backend = load(&config, types, isa, 2, PassConfig::default());
            assert_eq!(backend.cells(), [Cell::EAGER, Cell::COMPILED]);
            assert!(backend.programs[1].nodes.len() < backend.programs[0].nodes.len());
            let eager = run_mixed(&mut backend, &[Cell::EAGER]);
            assert_eq!(run_mixed(&mut backend, &[Cell::COMPILED]), eager, "{types:?} on {isa}");
            // A sequence may go from one to the other at any step.
            assert_eq!(run_mixed(&mut backend, &[Cell::COMPILED, Cell::EAGER]), eager, "{types:?} on {isa}");
        }
    }
}

#[test]
fn without_passes_there_is_the_eager_cell_only() {
    assert_eq!(super::load(Dtype::F32, Isa::Portable, 1).cells(), [Cell::EAGER]);
}
