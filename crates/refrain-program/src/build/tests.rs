use super::*;
use crate::testing::{BF16, any_config, dense, one_gdn_layer, qwen_0_8b, qwen_4b, tinytales};
use proptest::prelude::*;
use refrain_model::{Checkpoint, WeightSource};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn weight<'a>(program: &'a Program, name: &str) -> &'a WeightDef {
    program.weights.iter().find(|weight| weight.name == name).unwrap_or_else(|| panic!("no weight {name}"))
}

proptest! {
    #[test]
    fn any_schedule_builds_and_validates(config in any_config()) {
        Program::build(&config, &BF16).unwrap().validate().unwrap();
    }

    /// Nothing of the checkpoint is left out or taken twice.
    #[test]
    fn every_row_of_every_source_is_taken_once(config in any_config()) {
        let program = Program::build(&config, &BF16).unwrap();
        let mut rows: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for part in program.weights.iter().flat_map(|weight| &weight.parts) {
            let taken = rows.entry(part.source.clone()).or_insert_with(|| vec![0; part.source_rows]);
            (0..part.rows).for_each(|row| taken[part.source_row(row)] += 1);
        }
        for (source, taken) in rows {
            prop_assert!(taken.iter().all(|times| *times == 1), "{} {:?}", source, taken);
        }
    }
}

#[test]
fn parameters_add_up_to_the_published_models() {
    let parameters = |config: &ModelConfig| -> usize {
        let program = Program::build(config, &BF16).unwrap();
        program.weights.iter().map(|weight| weight.kind.elements()).sum()
    };
    // The text models of Qwen3.5-0.8B and Qwen3.5-4B: 0.752 and 4.206 billion.
    assert_eq!(parameters(&qwen_0_8b()), 752_393_024);
    assert_eq!(parameters(&qwen_4b()), 4_205_751_296);
    assert_eq!(parameters(&ModelConfig { tie_word_embeddings: false, ..qwen_4b() }), 4_205_751_296 + 248_320 * 2560);
}

#[test]
fn queries_and_gates_are_taken_head_by_head() {
    let program = Program::build(&tinytales(), &BF16).unwrap();
    let qkv = weight(&program, "layers.3.qkv");
    assert_eq!(qkv.kind, WeightKind::Matrix { outputs: 2 * 512 + 2 * 256, inputs: 256 });
    let [q, gate, k, v] = qkv.parts.as_slice() else { panic!("{:?}", qkv.parts) };
    assert_eq!((q.source.as_str(), q.source_rows, q.rows), ("layers.3.self_attn.q_proj.weight", 1024, 512));
    // Two heads of 256 in a checkpoint of [query 0 | gate 0 | query 1 | gate 1].
    assert_eq!([0, 255, 256, 511].map(|row| q.source_row(row)), [0, 255, 512, 767]);
    assert_eq!([0, 255, 256, 511].map(|row| gate.source_row(row)), [256, 511, 768, 1023]);
    assert_eq!((k.source.as_str(), k.rows), ("layers.3.self_attn.k_proj.weight", 256));
    assert_eq!((v.source.as_str(), v.rows), ("layers.3.self_attn.v_proj.weight", 256));

    let dense = Program::build(&dense(), &BF16).unwrap();
    let qkv = weight(&dense, "layers.0.qkv");
    assert_eq!(qkv.parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [128, 64, 64]);
    assert!(!dense.nodes.iter().any(|node| matches!(node.op, Op::SigmoidGate { .. })));
}

#[test]
fn gdn_projections_are_packed_in_order() {
    let program = Program::build(&tinytales(), &BF16).unwrap();
    let in_proj = weight(&program, "layers.0.in_proj");
    let parts: Vec<(&str, usize)> = in_proj.parts.iter().map(|part| (part.source.as_str(), part.rows)).collect();
    assert_eq!(
        parts,
        [
            ("layers.0.linear_attn.in_proj_qkv.weight", 2 * 256 + 512),
            ("layers.0.linear_attn.in_proj_z.weight", 512),
            ("layers.0.linear_attn.in_proj_b.weight", 4),
            ("layers.0.linear_attn.in_proj_a.weight", 4),
        ]
    );
    let gates = program.nodes.iter().find_map(|node| match node.op {
        Op::GdnGates { b, a, .. } => Some((b.column, b.width, a.column, a.width)),
        _ => None,
    });
    assert_eq!(gates, Some((1536, 4, 1540, 4)));
}

#[test]
fn tied_models_share_one_table() {
    let tables = |config: &ModelConfig| {
        let program = Program::build(config, &BF16).unwrap();
        match (&program.nodes[0].op, &program.nodes.last().unwrap().op) {
            (Op::Embed { table, .. }, Op::Linear { weight, .. }) => (*table, *weight),
            other => panic!("{other:?}"),
        }
    };
    let (table, head) = tables(&tinytales());
    assert_eq!(table, head);
    let (table, head) = tables(&dense());
    assert_ne!(table, head);
}

#[test]
fn types_are_as_asked() {
    let options = BuildOptions { weights: Dtype::Bf16, activations: Dtype::F32, kv_cache: Dtype::F16.into() };
    let program = Program::build(&tinytales(), &options).unwrap();
    for weight in &program.weights {
        let matrix = matches!(weight.kind, WeightKind::Matrix { .. });
        assert_eq!(weight.dtype, if matrix { Dtype::Bf16 } else { Dtype::F32 }, "{}", weight.name);
    }
    assert!(program.tensors.iter().all(|tensor| tensor.dtype == Dtype::F32));
    for state in &program.states {
        let cache = matches!(state.kind, StateKind::KvCache { .. });
        assert_eq!(state.dtype, CacheDtype::Plain(if cache { Dtype::F16 } else { Dtype::F32 }), "{}", state.name);
    }
}

#[test]
fn impossible_configurations_are_named() {
    type Break = fn(&mut ModelConfig);
    let cases: [(&str, Break); 12] = [
        ("vocab_size is 0", |config| config.vocab_size = 0),
        ("hidden_size is 18446744073709551615", |config| config.hidden_size = usize::MAX),
        ("intermediate_size is 0", |config| config.intermediate_size = 0),
        ("number of layers is 0", |config| config.layers.clear()),
        ("rms_norm_eps is NaN", |config| config.rms_norm_eps = f32::NAN),
        ("num_attention_heads is 2, expected a multiple of num_key_value_heads = 3", |config| {
            config.attention.num_kv_heads = 3;
        }),
        ("rotary_dim is 3, expected an even number", |config| config.attention.rotary_dim = 3),
        ("rotary_dim is 258, expected an even number of at most head_dim = 256", |config| {
            config.attention.rotary_dim = 258;
        }),
        ("rope_theta is -1", |config| config.attention.rope_theta = -1.0),
        ("linear_num_value_heads is 4, expected a multiple of linear_num_key_heads = 3", |config| {
            config.gdn.as_mut().unwrap().num_key_heads = 3;
        }),
        ("linear_conv_kernel_dim is 0", |config| config.gdn.as_mut().unwrap().conv_kernel = 0),
        ("gdn is absent, expected the linear_* fields", |config| config.gdn = None),
    ];
    for (words, damage) in cases {
        let mut config = tinytales();
        damage(&mut config);
        let message = Program::build(&config, &BF16).unwrap_err().to_string();
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
}

#[test]
fn what_no_layer_uses_is_not_checked() {
    let mut config = one_gdn_layer();
    config.attention.num_kv_heads = 0;
    Program::build(&config, &BF16).unwrap();
    let mut config = dense();
    config.gdn = Some(GdnConfig { num_key_heads: 0, ..tinytales().gdn.unwrap() });
    Program::build(&config, &BF16).unwrap();
}

/// The embedded model's own files: every tensor a program names is there with its shape, and none is left over.
#[test]
fn the_program_of_tinytales_takes_every_tensor_of_its_checkpoint() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tinytales");
    let json = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = ModelConfig::from_json(&json).unwrap();
    assert_eq!(config, tinytales());
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let program = Program::build(&config, &BF16).unwrap();
    let mut left: BTreeSet<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    for weight in &program.weights {
        for part in &weight.parts {
            let tensor = checkpoint.tensor(&part.source).unwrap_or_else(|| panic!("no {}", part.source));
            let shape = match weight.kind {
                WeightKind::Matrix { inputs, .. } => vec![part.source_rows, inputs],
                WeightKind::Vector { .. } => vec![part.source_rows],
                WeightKind::Convolution { taps, .. } => vec![part.source_rows, 1, taps],
            };
            assert_eq!(tensor.shape, shape, "{}", part.source);
            left.remove(part.source.as_str());
        }
    }
    assert!(left.is_empty(), "{left:?}");
}
