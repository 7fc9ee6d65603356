use super::*;
use proptest::prelude::*;

const MIB: usize = 1 << 20;

/// 1000 MiB usable, 900 of them to plan with, 300 of the model; 600 for states of 5 MiB and blocks of 1 MiB.
fn request() -> MemoryRequest {
    MemoryRequest {
        footprint: Footprint {
            weights: 200 * MIB,
            activations: 60 * MIB,
            workspace: 40 * MIB,
            graphs: 0,
            code: 0,
            held: 0,
            kv_block: MIB,
            gdn_slot: 5 * MIB,
        },
        usable_bytes: 1000 * MIB,
        utilization: 0.9,
        kv_cache_memory_bytes: None,
        num_blocks_override: None,
        max_model_len: 1600,
        max_num_seqs: None,
    }
}

#[test]
fn what_others_hold_counts_against_the_pools() {
    let mut held = request();
    held.footprint.held = 100 * MIB;
    let (alone, beside) = (plan_memory(&request()).unwrap(), plan_memory(&held).unwrap());
    let pools = |plan: &MemoryPlan| plan.pools.slots * 5 + plan.pools.blocks;
    assert!(pools(&beside) <= 500 && pools(&alone) > 500, "{beside:?}");
    assert_eq!(beside.lines[0], MemoryLine { what: "held already".to_owned(), bytes: 100 * MIB });
    held.footprint.held = 800 * MIB;
    let error = plan_memory(&held).unwrap_err().to_string();
    assert!(error.contains("800.00 MiB that the driver and others hold already"), "{error}");
}

#[test]
fn graphs_and_code_have_their_memory_before_the_pools() {
    let mut with = request();
    (with.footprint.graphs, with.footprint.code) = (64 * MIB, 16 * MIB);
    let plan = plan_memory(&with).unwrap();
    assert_eq!(plan.pools.slots * 5 + plan.pools.blocks, 600 - 80);
    let line = |what: &str, bytes| MemoryLine { what: what.to_owned(), bytes };
    let expected = [line("graphs, at most", 64 * MIB), line("device code and driver, at most", 16 * MIB)];
    assert_eq!(plan.lines[3..5], expected);
    assert_eq!(plan.total_bytes, 900 * MIB);
    with.footprint.graphs = 700 * MIB;
    let error = plan_memory(&with).unwrap_err().to_string();
    assert!(error.contains("700.00 MiB for graphs, --graph-memory-budget, 16.00 MiB for device code"), "{error}");
}

#[test]
fn the_default_number_of_sequences_is_reduced_with_a_note() {
    let plan = plan_memory(&request()).unwrap();
    // Half of 600 MiB is 60 slots.
    assert_eq!(plan.pools, PoolSizes { slots: 60, blocks: 300 });
    assert_eq!(plan.total_bytes, 900 * MIB);
    let text: Vec<String> =
        plan.lines.iter().map(|line| format!("{}: {}", line.what, human_bytes(line.bytes))).chain(plan.notes).collect();
    insta::assert_snapshot!("plan", text.join("\n"));
}

#[test]
fn blocks_are_no_more_than_the_sequences_can_fill() {
    let plan = plan_memory(&MemoryRequest { max_num_seqs: Some(2), ..request() }).unwrap();
    assert_eq!(plan.pools, PoolSizes { slots: 2, blocks: 200 });
    assert_eq!(plan.notes, Vec::<String>::new());
}

#[test]
fn kv_cache_memory_bytes_are_taken_exactly() {
    let bytes = Some(210 * MIB);
    let plan =
        plan_memory(&MemoryRequest { kv_cache_memory_bytes: bytes, max_num_seqs: Some(20), ..request() }).unwrap();
    assert_eq!(plan.pools, PoolSizes { slots: 20, blocks: 110 });
    // 690 MiB are beyond the utilization but not beyond what may be used.
    let most = MemoryRequest { kv_cache_memory_bytes: Some(700 * MIB), ..request() };
    assert!(plan_memory(&most).is_ok());
}

#[test]
fn a_block_override_is_taken_exactly() {
    let plan = plan_memory(&MemoryRequest { num_blocks_override: Some(500), ..request() }).unwrap();
    assert_eq!(plan.pools, PoolSizes { slots: 20, blocks: 500 });
}

#[test]
fn a_dense_model_has_no_slot_bytes_and_a_pure_recurrent_one_no_blocks() {
    let mut dense = request();
    dense.footprint.gdn_slot = 0;
    assert_eq!(plan_memory(&dense).unwrap().pools, PoolSizes { slots: 64, blocks: 600 });
    let mut recurrent = request();
    recurrent.footprint.kv_block = 0;
    assert_eq!(plan_memory(&recurrent).unwrap().pools, PoolSizes { slots: 60, blocks: 6000 });
    assert_eq!(largest_model_len(&MemoryRequest { max_model_len: 12345, ..recurrent }), 12345);
}

#[test]
fn errors_name_the_numbers_that_would_work() {
    let cases = [
        MemoryRequest { max_model_len: 16_000, ..request() },
        MemoryRequest { kv_cache_memory_bytes: Some(3 * MIB), ..request() },
        MemoryRequest { utilization: 0.25, ..request() },
        MemoryRequest { kv_cache_memory_bytes: Some(701 * MIB), ..request() },
        MemoryRequest { max_num_seqs: Some(101), ..request() },
        MemoryRequest { max_num_seqs: Some(65_536), ..request() },
        MemoryRequest { max_num_seqs: Some(0), ..request() },
        MemoryRequest { max_num_seqs: Some(usize::MAX), ..request() },
        MemoryRequest { num_blocks_override: Some(99), ..request() },
        MemoryRequest { num_blocks_override: Some(598), ..request() },
        MemoryRequest { utilization: f64::NAN, ..request() },
        MemoryRequest { utilization: 1.01, ..request() },
        MemoryRequest { max_model_len: 1, ..request() },
        MemoryRequest { max_model_len: usize::MAX, ..request() },
    ];
    let texts: Vec<String> = cases.iter().map(|case| plan_memory(case).unwrap_err().to_string()).collect();
    insta::assert_snapshot!("errors", texts.join("\n"));
}

#[test]
fn the_advice_of_an_error_works() {
    let too_long = MemoryRequest { max_model_len: 16_000, ..request() };
    let largest = largest_model_len(&too_long);
    assert!(plan_memory(&MemoryRequest { max_model_len: largest, ..request() }).is_ok());
    assert!(plan_memory(&MemoryRequest { max_model_len: largest + 1, ..request() }).is_err());
}

proptest! {
    #[test]
    fn every_plan_fits_and_holds_one_full_sequence(
        (weights, graphs, kv_block, gdn_slot) in (0usize..1000, 0usize..100, 0usize..50, 0usize..100),
        usable_bytes in 0usize..5000,
        utilization in 0.01f64..=1.0,
        (bytes, blocks, seqs) in (prop::option::of(0usize..3000), prop::option::of(0usize..100), prop::option::of(0usize..200)),
        max_model_len in 0usize..2000,
    ) {
        let request = MemoryRequest {
            footprint: Footprint { weights, activations: 10, workspace: 10, graphs, code: 3, held: 0, kv_block, gdn_slot },
            usable_bytes,
            utilization,
            kv_cache_memory_bytes: bytes,
            num_blocks_override: blocks,
            max_model_len,
            max_num_seqs: seqs,
        };
        if let Ok(plan) = plan_memory(&request) {
            prop_assert!(plan.total_bytes <= usable_bytes);
            let pools = plan.pools.blocks * kv_block + plan.pools.slots * gdn_slot;
            match bytes {
                Some(bytes) => prop_assert!(pools <= bytes),
                None => prop_assert!(plan.total_bytes as f64 <= usable_bytes as f64 * utilization),
            }
            prop_assert!(plan.pools.blocks * BLOCK_TOKENS >= max_model_len && plan.pools.slots == plan.max_num_seqs);
            prop_assert!(seqs.is_none_or(|seqs| seqs == plan.max_num_seqs));
            prop_assert!(blocks.is_none_or(|blocks| blocks == plan.pools.blocks));
            prop_assert_eq!(plan.total_bytes, plan.lines.iter().map(|line| line.bytes).sum::<usize>());
            prop_assert_eq!(largest_model_len(&request), max_model_len);
        }
    }
}
