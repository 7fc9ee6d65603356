use super::*;
use crate::testing::{BF16, any_config, any_program, dense, execute, one_gdn_layer, qwen_4b, separate, tinytales};
use proptest::prelude::*;

struct DropLastOp;

impl Pass for DropLastOp {
    fn name(&self) -> &'static str {
        "drop-last-op"
    }

    fn run(&self, program: &mut Program) -> usize {
        program.nodes.pop().iter().len()
    }

    fn looks_for(&self) -> &'static str {
        "an op"
    }
}

#[test]
fn a_pass_that_breaks_the_program_is_named() {
    let program = Program::build(&tinytales(), &BF16).unwrap();
    let error = run(program.clone(), &[&RemoveDeadCode, &DropLastOp]).unwrap_err();
    assert_eq!(error.to_string(), "pass drop-last-op: logits: no op writes logits in full");
    assert_eq!(run(program.clone(), &[]).unwrap(), program);
}

/// Only the named passes.
fn only(names: &[&str]) -> PassConfig {
    let mut config = PassConfig::none();
    for name in names {
        assert!(config.set(name, true), "no pass {name}");
    }
    config
}

/// The ops that a pass takes away and those that it brings, layer by layer; all others are the same.
fn change(program: &Program, before: &[&str], names: &[&str], rows: usize) -> String {
    let program = compile(program, &only(before), rows).program;
    let Compiled { program: after, applied } = compile(&program, &only(names), rows);
    let texts =
        |program: &Program| -> Vec<String> { program.nodes.iter().map(|node| program.node_text(node, true)).collect() };
    let (old, new) = (texts(&program), texts(&after));
    let mut text = String::new();
    for (sign, lines, others) in [('-', &old, &new), ('+', &new, &old)] {
        for line in lines.iter().filter(|line| !others.contains(line)) {
            text += &format!("{sign} {line}\n");
        }
    }
    for Applied { pass, places, launches_saved, bytes_saved, .. } in applied.iter().filter(|pass| pass.places > 0) {
        let BytesSaved { per_token, per_logit_row } = bytes_saved;
        text += &format!(
            "{pass}: {places} places, {launches_saved} launches, {per_token} bytes a token, {per_logit_row} a logit row\n"
        );
    }
    text
}

fn small() -> Program {
    let mut config = tinytales();
    config.layers = vec![crate::testing::schedule(4)[0], crate::testing::schedule(4)[3]];
    Program::build(&config, &BF16).unwrap()
}

#[test]
fn fuse_gdn_prepare() {
    insta::assert_snapshot!(change(&small(), &[], &["fuse_gdn_prepare"], 100));
}

#[test]
fn fuse_gdn_decode() {
    insta::assert_snapshot!(change(&small(), &["fuse_gdn_prepare"], &["fuse_gdn_decode"], 100));
}

#[test]
fn fuse_qk_norm_rope_append() {
    insta::assert_snapshot!(change(&small(), &[], &["fuse_qk_norm_rope_append"], 100));
}

#[test]
fn fuse_sigmoid_gate() {
    insta::assert_snapshot!(change(&small(), &[], &["fuse_sigmoid_gate"], 100));
}

#[test]
fn fuse_silu_mul() {
    insta::assert_snapshot!(change(&small(), &[], &["fuse_silu_mul"], FEW_ROWS));
}

#[test]
fn fuse_norm_linear() {
    insta::assert_snapshot!(change(&small(), &[], &["fuse_norm_linear"], FEW_ROWS));
}

#[test]
fn fuse_gated_norm_linear() {
    insta::assert_snapshot!(change(&small(), &[], &["fuse_gated_norm_linear"], FEW_ROWS));
}

#[test]
fn fuse_linear_add() {
    insta::assert_snapshot!(change(&small(), &[], &["fuse_linear_add"], FEW_ROWS));
}

#[test]
fn fuse_add_rms_norm() {
    insta::assert_snapshot!(change(&small(), &[], &["fuse_add_rms_norm"], 100));
}

#[test]
fn fuse_elementwise() {
    insta::assert_snapshot!(change(&crate::testing::elementwise_chain(), &[], &["fuse_elementwise"], 100));
}

#[test]
fn all_passes_for_few_rows() {
    let compiled = compile(&small(), &PassConfig::default(), FEW_ROWS).program;
    insta::assert_snapshot!(compiled.to_string().split_once("\nbefore the layers").unwrap().1);
}

#[test]
fn all_passes_for_many_rows() {
    let compiled = compile(&small(), &PassConfig::default(), 2048).program;
    insta::assert_snapshot!(compiled.to_string().split_once("\nbefore the layers").unwrap().1);
}

#[test]
fn a_decode_step_has_a_third_of_the_launches() {
    let program = Program::build(&qwen_4b(), &BF16).unwrap();
    let few = compile(&program, &PassConfig::default(), 1).program;
    // 5 ops in each of 24 GDN layers, 6 in each of 8 attention layers, and embedding, rows, norm with head.
    assert_eq!(few.nodes.len(), 24 * 5 + 8 * 6 + 3);
    assert_eq!(program.nodes.len(), 32 * 14 + 4);
}

#[test]
fn each_pass_says_why_it_does_nothing() {
    let reasons = |program: &Program, config: &PassConfig, rows| -> Vec<String> {
        let applied = compile(program, config, rows).applied;
        applied.into_iter().filter_map(|pass| Some(format!("{}: {}", pass.pass, pass.not_applicable?))).collect()
    };
    let dense = Program::build(&dense(), &BF16).unwrap();
    let config = PassConfig { fuse_linear_add: false, ..PassConfig::default() };
    insta::assert_snapshot!(reasons(&dense, &config, 64).join("\n"));
}

#[test]
fn switches_have_the_names_of_the_passes() {
    let names: Vec<&str> = PassConfig::default().switches().into_iter().map(|(name, _)| name).collect();
    let applied = compile(&small(), &PassConfig::default(), 1).applied;
    let mut passes: Vec<&str> = applied.iter().map(|pass| pass.pass).collect();
    passes.sort_unstable();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, passes);
    for (name, on) in PassConfig::default().switches() {
        assert!(on, "{name}");
        let json = format!("{{\"{name}\": false}}");
        let config: PassConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(config.switches().into_iter().filter(|(_, on)| !on).collect::<Vec<_>>(), [(name, false)]);
    }
    let config: PassConfig = serde_json::from_str("{\"enable_qk_norm_rope_fusion\": false}").unwrap();
    assert!(!config.fuse_qk_norm_rope_append);
    let error = serde_json::from_str::<PassConfig>("{\"fuse_everything\": true}").unwrap_err().to_string();
    assert!(error.contains("fuse_everything") && error.contains("fuse_silu_mul"), "{error}");
}

fn any_switches() -> impl Strategy<Value = PassConfig> {
    prop::collection::vec(any::<bool>(), 12).prop_map(|on| {
        let mut config = PassConfig::none();
        for ((name, _), on) in PassConfig::default().switches().into_iter().zip(on) {
            config.set(name, on);
        }
        config
    })
}

/// The compiled program does the same in a memory plan of its own, and says truly what it saves.
fn check(program: &Program, config: &PassConfig, most_rows: usize, tokens: usize) {
    let expected = execute(program, &separate(program, tokens, 1), tokens, 1);
    let Compiled { program: after, applied } = compile(program, config, most_rows);
    after.validate().unwrap();
    assert_eq!(execute(&after, &after.activation_plan(tokens, 1), tokens, 1), expected);
    assert_eq!((&after.tensors, &after.weights, &after.states), (&program.tensors, &program.weights, &program.states));
    let saved: usize = applied.iter().map(|pass| pass.launches_saved).sum();
    assert_eq!(program.nodes.len() - after.nodes.len(), saved);
    assert!(applied.iter().all(|pass| (pass.places > 0) != pass.not_applicable.is_some()));
}

proptest! {
    #[test]
    fn any_program_stays_the_same(
        program in any_program(), config in any_switches(), rows in 1_usize..20, tokens in 1_usize..4,
    ) {
        check(&program, &config, rows, tokens);
        check(&program, &PassConfig::default(), rows, tokens);
    }

    #[test]
    fn any_model_stays_the_same(config in any_config(), switches in any_switches(), rows in 1_usize..20) {
        let program = Program::build(&config, &BF16).unwrap();
        check(&program, &switches, rows, 2);
        check(&program, &PassConfig::default(), rows, 2);
    }
}

#[test]
fn known_models_stay_the_same() {
    for config in [tinytales(), dense(), one_gdn_layer()] {
        let program = Program::build(&config, &BF16).unwrap();
        for rows in [1, FEW_ROWS, FEW_ROWS + 1] {
            check(&program, &PassConfig::default(), rows, 2);
        }
    }
}
