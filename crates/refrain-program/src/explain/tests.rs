use super::*;
use crate::testing::{BF16, any_config, dense, one_gdn_layer, qwen_4b, qwen_27b, tinytales};
use proptest::prelude::*;

fn options(tokens: usize) -> ExplainOptions {
    ExplainOptions {
        model: "test".to_owned(),
        tokens: NonZeroUsize::new(tokens).unwrap(),
        block_tokens: 16,
        ceilings: Some(Ceilings { bytes_per_second: 20e9, flops_per_second: 1.5e12 }),
        ceilings_source: "assumed".to_owned(),
        passes: PassConfig { fuse_gdn_decode: false, ..PassConfig::default() },
        endpoints: vec![8],
        fuses_any_product: false,
    }
}

fn explained(program: &Program, tokens: usize) -> Explanation {
    explain(program, &options(tokens))
}

#[test]
fn without_ceilings_only_the_times_are_missing() {
    let program = Program::build(&tinytales(), &BF16).unwrap();
    let why = "nothing measures it".to_owned();
    let explanation = explain(&program, &ExplainOptions { ceilings: None, ceilings_source: why, ..options(100) });
    let text = explanation.to_string();
    assert!(text.contains("No roofline: nothing measures it\n") && !text.contains("op by op"), "{text}");
    assert!(text.contains("For prefill of 100 tokens: "), "{text}");
    let json = serde_json::to_value(&explanation).unwrap();
    assert!(json["ceilings"].is_null() && json["prefill"].is_null() && json["compiled"][0]["seconds"].is_null());
}

#[test]
fn tinytales_is_explained() {
    insta::assert_snapshot!(explained(&Program::build(&tinytales(), &BF16).unwrap(), 8192));
}

#[test]
fn a_large_model_fits_the_terminal() {
    let text = explained(&Program::build(&qwen_4b(), &BF16).unwrap(), 32768).to_string();
    insta::assert_snapshot!(text);
    let larger = explained(&Program::build(&qwen_27b(), &BF16).unwrap(), 262_144).to_string();
    for line in text.lines().chain(larger.lines()) {
        assert!(line.chars().count() <= 100, "{line}");
        assert_eq!(line.trim_end(), line);
    }
}

#[test]
fn models_with_one_kind_of_layer_are_explained() {
    let text = explained(&Program::build(&dense(), &BF16).unwrap(), 100).to_string();
    assert!(
        text.contains("2: 0 GDN (G), 2 full attention (A)") && text.contains("Layers 0-1: full attention"),
        "{text}"
    );
    let explanation = explained(&Program::build(&one_gdn_layer(), &BF16).unwrap(), 1);
    assert_eq!((explanation.schedule.as_str(), explanation.memory.kv_token_bytes), ("G", 0));
    assert!(explanation.to_string().contains("Layer 0: GDN, 3 key heads of 32, 3 value heads of 16"));
}

#[test]
fn layers_that_differ_are_not_folded() {
    let mut program = Program::build(&tinytales(), &BF16).unwrap();
    let node = program.nodes.iter_mut().filter(|node| node.layer == Some(5)).nth(3).unwrap();
    match &mut node.op {
        Op::L2Norm { scale, .. } => *scale = 2.0,
        op => panic!("{op:?}"),
    }
    let sections = explained(&program, 10).sections;
    let layers: Vec<&[usize]> = sections.iter().map(|section| section.layers.as_slice()).collect();
    let expected: [&[usize]; 5] = [&[], &[0, 1, 2, 4, 6], &[3, 7], &[5], &[]];
    assert_eq!(layers, expected);
}

#[test]
fn scripts_can_read_it() {
    let explanation = explained(&Program::build(&tinytales(), &BF16).unwrap(), 8192);
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["schedule"], "GGGAGGGA");
    assert_eq!(json["memory"]["kv_token_bytes"], 2048);
    assert_eq!(json["sections"][1]["layers"], serde_json::json!([0, 1, 2, 4, 5, 6]));
    assert_eq!(json["decode"]["bound"], "memory");
    let passes = json["compiled"][1]["passes"].as_array().unwrap();
    let pass = passes.iter().find(|pass| pass["pass"] == "fuse_add_rms_norm").unwrap();
    // 15 sums with a norm after them, each read once less in f32 by 8192 tokens.
    assert_eq!((&pass["places"], &pass["step_bytes_saved"]), (&15.into(), &(15 * 256 * 4 * 8192).into()));
    assert_eq!(json["decode"]["cost"]["weight_bytes"], explanation.decode.unwrap().cost.weight_bytes);
}

/// Of a prompt everything goes chunk by chunk, and the fused step has nothing to do.
#[test]
fn what_only_decoding_saves_is_not_counted_for_a_prompt() {
    let program = Program::build(&tinytales(), &BF16).unwrap();
    let with_all = ExplainOptions { passes: PassConfig::default(), ..options(100) };
    let (on, off) = (explain(&program, &with_all).compiled, explained(&program, 100).compiled);
    assert_eq!((on[0].ops, on[1].ops), (off[0].ops - 6, off[1].ops));
    assert_eq!(on[1].seconds, off[1].seconds);
    let why = |steps: &CompiledSteps| steps.passes[1].applied.not_applicable.clone();
    assert_eq!(why(&on[1]).unwrap(), "only where a sequence decodes one token");
    assert_eq!(why(&off[1]).unwrap(), "switched off");
    assert_eq!(why(&on[0]), None);
}

proptest! {
    /// The arena holds the fullest moment, and sharing never needs more than separate memory, but for the alignment.
    #[test]
    fn the_arena_is_between_the_bounds(config in any_config(), tokens in 1_usize..300) {
        let program = Program::build(&config, &BF16).unwrap();
        let memory = explained(&program, tokens).memory;
        let live: usize = memory.fullest.tensors.iter().map(|tensor| tensor.bytes).sum();
        prop_assert_eq!(memory.fullest.bytes, live);
        prop_assert!(memory.activation_bytes >= live);
        prop_assert!(memory.activation_bytes <= memory.unshared_activation_bytes + 64 * program.tensors.len());
        for tensor in &memory.fullest.tensors {
            prop_assert!(tensor.offset + tensor.bytes <= memory.activation_bytes);
        }
    }
}
