use super::*;

fn inputs() -> PlanInputs {
    PlanInputs {
        model_max_len: 8192,
        max_model_len: None,
        max_num_seqs: None,
        max_num_batched_tokens: None,
        throughput: false,
        usable_bytes: 1 << 30,
        utilization: 0.9,
        kv_cache_memory_bytes: None,
        num_blocks_override: None,
    }
}

/// 100 MiB of weights, 16 KiB for a KV block and 1 MiB for a slot.
fn footprint(limits: &StepLimits) -> Footprint {
    Footprint {
        weights: 100 << 20,
        activations: limits.max_tokens << 10,
        workspace: 1 << 20,
        graphs: 0,
        code: 0,
        held: 0,
        kv_block: 16 << 10,
        gdn_slot: 1 << 20,
    }
}

fn error(inputs: &PlanInputs) -> String {
    plan(inputs, footprint).unwrap_err().to_string()
}

#[test]
fn defaults_where_memory_is_plenty() {
    let planned = plan(&inputs(), footprint).unwrap();
    assert_eq!(planned.limits, step_limits(64, 2048, 8192));
    assert_eq!(planned.max_model_len_origin, Origin::File("config.json"));
    assert_eq!(planned.max_num_seqs_origin, Origin::Default);
    assert_eq!(planned.max_num_batched_tokens_origin, Origin::Default);
}

#[test]
fn throughput_doubles_the_tokens_of_a_step_which_nobody_may_give_then() {
    let inputs = PlanInputs { throughput: true, ..inputs() };
    let planned = plan(&inputs, footprint).unwrap();
    assert_eq!(planned.limits, step_limits(64, 4096, 8192));
    assert!(matches!(planned.max_num_batched_tokens_origin, Origin::Derived(_)));
    let given = PlanInputs { max_num_batched_tokens: Some(512), ..inputs };
    let message = error(&given);
    assert!(message.contains("--performance-mode: throughput ") && message.contains("--max-num-batched-tokens 512"));
}

#[test]
fn automatic_length_gives_way_to_memory_and_says_so() {
    // 120 MiB less weights and the step's memory hold a few slots and less than 8192 tokens.
    let tight = PlanInputs { usable_bytes: 120 << 20, utilization: 1.0, model_max_len: 1 << 20, ..inputs() };
    let planned = plan(&tight, footprint).unwrap();
    assert!(planned.limits.max_model_len < 1 << 20 && planned.limits.max_model_len >= MIN_AUTO_MODEL_LEN);
    assert!(matches!(planned.max_model_len_origin, Origin::Derived(_)));
    assert!(planned.memory.total_bytes <= 120 << 20);
    // The same length asked for is an error that names what fits.
    let asked = PlanInputs { max_model_len: Some(1 << 20), ..tight.clone() };
    let message = error(&asked);
    assert!(message.contains("max_model_len") || message.contains("max-model-len"), "{message}");
}

#[test]
fn a_length_beyond_the_models_is_refused() {
    let message = error(&PlanInputs { max_model_len: Some(8193), ..inputs() });
    assert!(message.contains("--max-model-len") && message.contains("8192"), "{message}");
    assert!(plan(&PlanInputs { max_model_len: Some(8192), ..inputs() }, footprint).is_ok());
}

#[test]
fn sequences_and_tokens_of_a_step_fit_each_other() {
    let sizes = |seqs, batched| {
        let planned = plan(&PlanInputs { max_num_seqs: seqs, max_num_batched_tokens: batched, ..inputs() }, footprint)?;
        Ok::<_, LoadError>((planned.limits.max_segments, planned.limits.max_tokens))
    };
    assert_eq!(sizes(Some(1), None).unwrap(), (1, 2048));
    assert_eq!(sizes(None, Some(100)).unwrap(), (36, 100));
    assert_eq!(sizes(None, Some(65)).unwrap(), (1, 65));
    assert_eq!(sizes(Some(36), Some(100)).unwrap(), (36, 100));
    for (seqs, batched) in [(Some(37), 100), (None, 64), (None, 1)] {
        let message = sizes(seqs, Some(batched)).unwrap_err().to_string();
        let least = seqs.unwrap_or(1) + 64;
        assert!(message.contains(&format!("at least {least}")), "{message}");
    }
    let many = plan(&PlanInputs { max_num_seqs: Some(3000), usable_bytes: 1 << 40, ..inputs() }, footprint).unwrap();
    assert_eq!(many.limits.max_tokens, 3064);
    assert!(matches!(many.max_num_batched_tokens_origin, Origin::Derived(_)));
}

/// Each sequence takes 64 KiB of workspace beside its slot, as those of GPUs do, and graphs take 64 MiB.
fn growing(limits: &StepLimits) -> Footprint {
    Footprint { workspace: limits.max_segments << 16, graphs: 64 << 20, ..footprint(limits) }
}

/// The values that an error says would fit, by flag.
fn fitting(inputs: &PlanInputs, footprint: fn(&StepLimits) -> Footprint) -> Vec<(String, usize)> {
    let Err(LoadError::Memory { fits, .. }) = plan(inputs, footprint) else { panic!("{inputs:?} fits") };
    let value = |text: &str| crate::cli::values::human_readable_int(text).unwrap();
    fits.iter().map(|text| text.split_once(' ').unwrap()).map(|(flag, text)| (flag.to_owned(), value(text))).collect()
}

#[test]
fn the_number_of_sequences_that_is_said_to_fit_is_the_largest_that_does() {
    let with = |seqs| PlanInputs { max_num_seqs: Some(seqs), max_model_len: Some(256), ..inputs() };
    // More slots than fit; more workspace than memory.
    for asked in [800, 60_000] {
        let fits = fitting(&with(asked), growing);
        let (flag, most) = &fits[0];
        assert_eq!(flag, "--max-num-seqs");
        assert!(plan(&with(*most), growing).is_ok() && plan(&with(most + 1), growing).is_err(), "{asked}: {most}");
    }
    let message = plan(&with(60_000), growing).unwrap_err().to_string();
    assert!(message.starts_with("not enough memory: ") && message.contains("enough with --max-num-seqs "), "{message}");
    // A default that is too many is named, too.
    let small = PlanInputs { usable_bytes: 169 << 20, utilization: 1.0, max_model_len: Some(256), ..inputs() };
    let fits = fitting(&small, growing);
    assert!(fits[0].0 == "--max-num-seqs" && fits[0].1 < 64, "{fits:?}");
    // Nothing helps where not even one fits.
    assert_eq!(fitting(&PlanInputs { usable_bytes: 50 << 20, ..inputs() }, growing), []);
}

#[test]
fn tokens_of_a_step_and_memory_for_graphs_that_would_fit_are_named() {
    let with = |tokens| PlanInputs { max_num_batched_tokens: Some(tokens), ..inputs() };
    let fits = fitting(&with(2 << 20), growing);
    let [(flag, most)] = &fits[..] else { panic!("{fits:?}") };
    assert_eq!(flag, "--max-num-batched-tokens");
    assert!(plan(&with(*most), growing).is_ok() && plan(&with(most + 1), growing).is_err(), "{most}");
    let large = |limits: &StepLimits| Footprint { graphs: 5 << 30, ..growing(limits) };
    let fits = fitting(&inputs(), large);
    let [(flag, most)] = &fits[..] else { panic!("{fits:?}") };
    assert_eq!(flag, "--graph-memory-budget");
    let graphs = |bytes| move |limits: &StepLimits| Footprint { graphs: bytes, ..growing(limits) };
    assert!(plan(&inputs(), graphs(*most)).is_ok() && plan(&inputs(), graphs(most + (1 << 20))).is_err(), "{most}");
}
