use crate::testing::{BF16, dense, tinytales};
use crate::{Fp8, Op, Program, StateId, TensorId, View, WeightId, WeightKind};
use refrain_model::Dtype;

/// The first op of a kind.
fn op<'a>(program: &'a mut Program, name: &str) -> &'a mut Op {
    &mut program.nodes.iter_mut().find(|node| node.op.name() == name).unwrap_or_else(|| panic!("no {name}")).op
}

macro_rules! edit {
    ($program:expr, $kind:ident { $($field:ident),* } => $change:expr) => {
        $program.nodes.iter_mut().find_map(|node| match &mut node.op {
            Op::$kind { $($field,)* .. } => { $change; Some(()) }
            _ => None,
        }).unwrap()
    };
}

/// Damages a sound program and wants the error to say so.
fn damaged(words: &str, damage: impl FnOnce(&mut Program)) {
    let mut program = Program::build(&tinytales(), &BF16).unwrap();
    damage(&mut program);
    let message = program.validate().unwrap_err().to_string();
    assert!(message.contains(words), "{message:?} does not say {words:?}");
}

#[test]
fn names_are_unique() {
    damaged("two tensors are named \"x\"", |program| program.tensors[3].name = "x".to_owned());
    damaged("two weights are named", |program| program.weights[3].name = "norm".to_owned());
    damaged("two states are named", |program| program.states[3].name = program.states[0].name.clone());
}

#[test]
fn definitions_are_possible() {
    damaged("tensor \"x\": has no columns", |program| program.tensors[0].width = 0);
    damaged("weight \"embed_tokens\": its parts have 8192 rows, expected 8191", |program| {
        program.weights[0].kind = WeightKind::Matrix { outputs: 8191, inputs: 256 };
    });
    damaged("takes row 8192 of embed_tokens.weight, which has 8192", |program| program.weights[0].parts[0].start = 1);
    damaged("takes rows of embed_tokens.weight twice", |program| {
        program.weights[0].parts[0].run = 2;
        program.weights[0].parts[0].stride = 1;
    });
    damaged("is bf16, vectors and convolutions are kept in f32", |program| program.weights[1].dtype = Dtype::Bf16);
    damaged("state \"layers.0.gdn_state\": is bf16", |program| program.states[1].dtype = Dtype::Bf16.into());
    damaged("which is for keys and values only", |program| program.states[0].dtype = Fp8::E4m3.into());
}

#[test]
fn ids_exist() {
    damaged("op 0 (embed): weight 999 does not exist", |program| {
        edit!(program, Embed { table } => *table = WeightId(999));
    });
    damaged("op 3 (gdn_conv): state 99 does not exist", |program| {
        edit!(program, GdnConv { state } => *state = StateId(99));
    });
    damaged("op 1 (rms_norm): tensor 999 does not exist", |program| {
        edit!(program, RmsNorm { x } => x.tensor = TensorId(999));
    });
    damaged("op 1 (rms_norm): the range of columns of x is 0..257, expected some of 0..256", |program| {
        edit!(program, RmsNorm { x } => x.width = 257);
    });
}

#[test]
fn operands_fit() {
    damaged("op 0 (embed): table embed_tokens is [8192, 256], expected [8193, 256]", |program| program.vocab_size += 1);
    damaged("(rms_norm): weight layers.0.input_layernorm is [256], expected [255]", |program| {
        edit!(program, RmsNorm { x, out } => { x.width = 255; out.width = 255 });
    });
    damaged("(linear): weight layers.0.in_proj is [1544, 256], expected [1543, 256]", |program| {
        edit!(program, Linear { out } => out.width -= 1);
    });
    damaged(
        "(gdn_conv): state layers.0.conv_state is conv [slot, 3, 1024], expected conv [slot, 4, 1024]",
        |program| {
            program.weights[3].kind = WeightKind::Convolution { channels: 1024, taps: 5 };
            edit!(program, GdnConv { kernel } => *kernel = 5);
        },
    );
    damaged("(l2_norm): width of x is 512, expected a multiple of its 3 heads", |program| {
        edit!(program, L2Norm { heads } => *heads = 3);
    });
    damaged("(gdn_gates): width of a is 3, expected 4", |program| {
        edit!(program, GdnGates { a } => a.width = 3);
    });
    damaged("(gdn_gates): type of beta is bf16, expected f32", |program| {
        let Op::GdnGates { beta, .. } = *op(program, "gdn_gates") else { panic!() };
        program.tensors[beta.tensor.0].dtype = Dtype::Bf16;
    });
    damaged("(gdn_scan): width of v is 511, expected 512", |program| {
        edit!(program, GdnScan { v } => v.width -= 1);
    });
    damaged(
        "(gdn_scan): state layers.0.conv_state is conv [slot, 3, 1024], expected gdn [slot, 4, 128, 128]",
        |program| {
            edit!(program, GdnScan { state } => *state = StateId(0));
        },
    );
    damaged("(gated_rms_norm): weight layers.0.gdn_norm is [128], expected [256]", |program| {
        edit!(program, GatedRmsNorm { heads } => *heads = 2);
    });
    damaged("(qk_norm_rope): rotary_dim is 63, expected an even number of at most 256", |program| {
        edit!(program, QkNormRope { rotary_dim } => *rotary_dim = 63);
    });
    damaged("(kv_append): width of k is 256, expected 128", |program| {
        edit!(program, KvAppend { shape } => shape.head_dim = 128);
    });
    damaged("(attention): num_heads is 2, expected a multiple of its 0 heads", |program| {
        edit!(program, Attention { shape } => shape.num_kv_heads = 0);
    });
    damaged("(gather_rows): rows of out is T, expected S", |program| {
        edit!(program, GatherRows { x, out } => *out = *x);
    });
}

#[test]
fn what_is_read_has_been_written() {
    damaged("op 0 (rms_norm) reads x, which no earlier op has written in full", |program| {
        program.nodes.remove(0);
    });
    // The convolution reads columns 0..1024 of the projections; only 1..1544 are written.
    damaged("(gdn_conv) reads layers.0.proj[0:1024], which no earlier op has written in full", |program| {
        program.weights[2].kind = WeightKind::Matrix { outputs: 1543, inputs: 256 };
        program.weights[2].parts[0].rows -= 1;
        edit!(program, Linear { out } => { out.column = 1; out.width = 1543 });
    });
}

#[test]
fn only_some_ops_work_in_place() {
    damaged("op 2 (linear) writes layers.0.h", |program| {
        program.weights[2].kind = WeightKind::Matrix { outputs: 256, inputs: 256 };
        program.weights[2].parts.truncate(1);
        program.weights[2].parts[0].rows = 256;
        edit!(program, Linear { x, out } => *out = *x);
    });
    damaged("in place means the very same columns", |program| {
        edit!(program, L2Norm { out } => out.column += 1);
    });
    damaged("its results must not overlap", |program| {
        edit!(program, GdnGates { beta, decay } => *beta = *decay);
    });
}

#[test]
fn states_are_updated_once_and_before_they_are_read() {
    damaged("(attention): state layers.3.kv is not updated yet", |program| {
        let append = program.nodes.iter().position(|node| node.op.name() == "kv_append").unwrap();
        program.nodes.remove(append);
    });
    damaged("(gdn_conv): state layers.0.conv_state is updated a second time", |program| {
        let conv = program.nodes.iter().position(|node| node.op.name() == "gdn_conv").unwrap();
        let again = program.nodes[conv].clone();
        program.nodes.insert(conv, again);
    });
}

#[test]
fn the_logits_are_what_callers_rely_on() {
    damaged("logits: tensor 999 does not exist", |program| program.logits.tensor = TensorId(999));
    damaged("logits: 8191 columns of 8192, expected the vocabulary of 8192", |program| program.logits.width -= 1);
    damaged("logits: logits is S rows bf16, expected S rows f32", |program| {
        program.tensors.last_mut().unwrap().dtype = Dtype::Bf16;
    });
    damaged("logits: no op writes logits in full", |program| {
        program.nodes.pop();
    });
    damaged("logits: 512 columns of 256, expected", |program| {
        let small = Program::build(&dense(), &BF16).unwrap();
        program.clone_from(&small);
        program.tensors[program.logits.tensor.0].width = 256;
        program.nodes.pop();
        program.logits = View { width: 512, ..program.logits };
    });
}
