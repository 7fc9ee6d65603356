//! What the tests share: configurations, random programs, and a symbolic execution that shows whether two programs, or
//! two memory plans, do the same.

use crate::{
    ActivationPlan, AttentionShape, BuildOptions, CacheDtype, Node, Op, Program, Rows, StateDef, StateId, StateKind,
    TensorDef, TensorId, View, WeightDef, WeightId, WeightKind, WeightPart,
};
use proptest::prelude::*;
use refrain_model::{AttentionConfig, Dtype, GdnConfig, LayerKind, ModelConfig};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

pub const BF16: BuildOptions =
    BuildOptions { weights: Dtype::Bf16, activations: Dtype::Bf16, kv_cache: CacheDtype::Plain(Dtype::Bf16) };

/// Three GDN layers, then one of full attention, and so on.
pub fn schedule(layers: usize) -> Vec<LayerKind> {
    (1..=layers).map(|layer| if layer % 4 == 0 { LayerKind::FullAttention } else { LayerKind::Gdn }).collect()
}

/// The embedded model.
pub fn tinytales() -> ModelConfig {
    ModelConfig {
        hidden_size: 256,
        intermediate_size: 768,
        vocab_size: 8192,
        max_position_embeddings: 8192,
        layers: schedule(8),
        attention: AttentionConfig {
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 256,
            rotary_dim: 64,
            rope_theta: 1e6,
            output_gate: true,
        },
        gdn: Some(GdnConfig {
            num_key_heads: 2,
            num_value_heads: 4,
            key_head_dim: 128,
            value_head_dim: 128,
            conv_kernel: 4,
        }),
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        eos_token_ids: vec![8185],
        dtype: Some(Dtype::Bf16),
        architecture: "Qwen3_5ForCausalLM".to_owned(),
    }
}

/// The shape of Qwen3.5-0.8B.
pub fn qwen_0_8b() -> ModelConfig {
    ModelConfig {
        hidden_size: 1024,
        intermediate_size: 3584,
        vocab_size: 248_320,
        max_position_embeddings: 262_144,
        layers: schedule(24),
        attention: AttentionConfig { num_heads: 8, num_kv_heads: 2, rope_theta: 1e7, ..tinytales().attention },
        gdn: Some(GdnConfig { num_key_heads: 16, num_value_heads: 16, ..tinytales().gdn.unwrap() }),
        ..tinytales()
    }
}

/// The shape of Qwen3.5-4B.
pub fn qwen_4b() -> ModelConfig {
    ModelConfig {
        hidden_size: 2560,
        intermediate_size: 9216,
        layers: schedule(32),
        attention: AttentionConfig { num_heads: 16, num_kv_heads: 4, ..qwen_0_8b().attention },
        gdn: Some(GdnConfig { num_value_heads: 32, ..qwen_0_8b().gdn.unwrap() }),
        ..qwen_0_8b()
    }
}

/// The shape of Qwen3.5-27B.
pub fn qwen_27b() -> ModelConfig {
    ModelConfig {
        hidden_size: 5120,
        intermediate_size: 17408,
        layers: schedule(64),
        attention: AttentionConfig { num_heads: 24, ..qwen_4b().attention },
        gdn: Some(GdnConfig { num_value_heads: 48, ..qwen_4b().gdn.unwrap() }),
        tie_word_embeddings: false,
        ..qwen_4b()
    }
}

/// No GDN layers, no output gate, an untied head.
pub fn dense() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 160,
        vocab_size: 512,
        layers: vec![LayerKind::FullAttention; 2],
        attention: AttentionConfig {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 32,
            rotary_dim: 32,
            rope_theta: 1e4,
            output_gate: false,
        },
        gdn: None,
        tie_word_embeddings: false,
        ..tinytales()
    }
}

/// One GDN layer with an odd number of heads.
pub fn one_gdn_layer() -> ModelConfig {
    ModelConfig {
        hidden_size: 48,
        intermediate_size: 80,
        vocab_size: 300,
        layers: vec![LayerKind::Gdn],
        gdn: Some(GdnConfig {
            num_key_heads: 3,
            num_value_heads: 3,
            key_head_dim: 32,
            value_head_dim: 16,
            conv_kernel: 4,
        }),
        ..tinytales()
    }
}

/// Small models of any schedule and odd sizes.
pub fn any_config() -> impl Strategy<Value = ModelConfig> {
    let layers = prop::collection::vec(prop_oneof![Just(LayerKind::Gdn), Just(LayerKind::FullAttention)], 1..5);
    let attention = (1_usize..4, 1_usize..4, 1_usize..20, any::<bool>());
    let gdn = (1_usize..4, 1_usize..4, 1_usize..20, 1_usize..20, 1_usize..6);
    (layers, attention, gdn, 1_usize..50, 1_usize..50, any::<bool>()).prop_map(
        |(layers, (kv_heads, group, half, output_gate), (keys, times, dk, dv, conv_kernel), hidden, width, tied)| {
            ModelConfig {
                hidden_size: hidden,
                intermediate_size: width,
                vocab_size: 17,
                layers,
                attention: AttentionConfig {
                    num_heads: kv_heads * group,
                    num_kv_heads: kv_heads,
                    head_dim: 2 * half,
                    rotary_dim: 2 * half.div_ceil(2),
                    rope_theta: 1e4,
                    output_gate,
                },
                gdn: Some(GdnConfig {
                    num_key_heads: keys,
                    num_value_heads: keys * times,
                    key_head_dim: dk,
                    value_head_dim: dv,
                    conv_kernel,
                }),
                tie_word_embeddings: tied,
                ..tinytales()
            }
        },
    )
}

/// Sound programs of random ops, with tensors that nobody reads, written in parts, and updated in place.
pub fn any_program() -> impl Strategy<Value = Program> {
    let choice = (0_usize..8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_usize..40, any::<bool>());
    (prop::collection::vec(choice, 0..30), any::<prop::sample::Index>()).prop_map(|(choices, result)| {
        let mut random = Random::new();
        for (kind, first, second, width, flag) in choices {
            let x = *first.get(&random.values);
            let same: Vec<View> = random.values.iter().copied().filter(|view| view.width == x.width).collect();
            random.push(kind, x, *second.get(&same), width, flag);
        }
        let x = *result.get(&random.values);
        random.finish(x)
    })
}

/// A chain of element-wise ops before the head: `silu(x + y) * y + x`, gated.
pub fn elementwise_chain() -> Program {
    let mut random = Random::new();
    let x = random.values[0];
    let weight = random.weight(WeightKind::Matrix { outputs: 48, inputs: 24 });
    let proj = random.value(48, true);
    let (y, gate) = (View { width: 24, ..proj }, View { column: 24, width: 24, ..proj });
    random.node(Op::Linear { x, weight, out: proj });
    let [sum, act, result] = [false, true, false].map(|single| random.value(24, single));
    random.node(Op::Add { a: x, b: y, out: sum });
    random.node(Op::SiluMul { gate: sum, up: y, out: act });
    random.node(Op::Add { a: act, b: x, out: x });
    random.node(Op::SigmoidGate { x, gate, out: result });
    random.finish(result)
}

struct Random {
    program: Program,
    /// Whole tensors of token rows that have been written.
    values: Vec<View>,
}

impl Random {
    fn new() -> Random {
        let logits = View { tensor: TensorId(0), column: 0, width: 0 };
        let (tensors, weights, states, nodes) = (vec![], vec![], vec![], vec![]);
        let program = Program { tensors, weights, states, nodes, logits, vocab_size: 11 };
        let mut random = Random { program, values: Vec::new() };
        let table = random.weight(WeightKind::Matrix { outputs: 11, inputs: 24 });
        let out = random.value(24, true);
        random.node(Op::Embed { table, out });
        random
    }

    fn push(&mut self, kind: usize, x: View, y: View, width: usize, flag: bool) {
        let half = x.width / 2;
        let left = View { width: half.max(1), ..x };
        let right = View { column: x.width - left.width, ..left };
        match kind {
            0 => {
                let weight = self.weight(WeightKind::Vector { length: x.width });
                let out = self.value(x.width, flag);
                self.node(Op::RmsNorm { x, weight, eps: 1e-6, out });
            }
            1 => {
                let weight = self.weight(WeightKind::Matrix { outputs: width, inputs: left.width });
                let out = self.value(width, flag);
                self.node(Op::Linear { x: left, weight, out });
            }
            2 => {
                let out = if flag { x } else { self.value(x.width, false) };
                self.node(Op::Add { a: x, b: y, out });
            }
            3 => {
                let out = self.value(left.width, flag);
                self.node(Op::SiluMul { gate: left, up: right, out });
            }
            4 => self.node(Op::L2Norm { x: right, heads: 1, scaled: 1, scale: 0.5, eps: 1e-6, out: right }),
            5 => {
                let out = self.value(2 * width, flag);
                let weight = self.weight(WeightKind::Matrix { outputs: width, inputs: x.width });
                let (left, right) = (View { width, ..out }, View { column: width, width, ..out });
                self.node(Op::Linear { x, weight, out: left });
                self.node(Op::Linear { x: y, weight, out: right });
            }
            6 => {
                let a_log = self.weight(WeightKind::Vector { length: left.width });
                let (beta, decay) = (self.value(left.width, true), self.value(left.width, true));
                self.node(Op::GdnGates { b: left, a: right, a_log, dt_bias: a_log, beta, decay });
            }
            _ => {
                let shape = AttentionShape { num_heads: 1, num_kv_heads: 1, head_dim: x.width, scale: 1.0 };
                let kind = StateKind::KvCache { kv_heads: 1, head_dim: x.width };
                let name = format!("state{}", self.program.states.len());
                self.program.states.push(StateDef { name, kind, dtype: Dtype::Bf16.into() });
                let state = StateId(self.program.states.len() - 1);
                let out = self.value(x.width, flag);
                self.node(Op::KvAppend { k: x, v: y, state, shape });
                self.node(Op::Attention { q: x, state, shape, gate: None, out });
            }
        }
    }

    fn finish(mut self, x: View) -> Program {
        let last = self.tensor(Rows::Logits, x.width, Dtype::Bf16);
        self.node(Op::GatherRows { x, out: last });
        let weight = self.weight(WeightKind::Matrix { outputs: 11, inputs: x.width });
        let logits = self.tensor(Rows::Logits, 11, Dtype::F32);
        self.node(Op::Linear { x: last, weight, out: logits });
        self.program.logits = logits;
        self.program
    }

    fn value(&mut self, width: usize, single: bool) -> View {
        let view = self.tensor(Rows::Tokens, width, if single { Dtype::F32 } else { Dtype::Bf16 });
        self.values.push(view);
        view
    }

    fn tensor(&mut self, rows: Rows, width: usize, dtype: Dtype) -> View {
        let name = format!("tensor{}", self.program.tensors.len());
        self.program.tensors.push(TensorDef { name, rows, width, dtype });
        View { tensor: TensorId(self.program.tensors.len() - 1), column: 0, width }
    }

    fn weight(&mut self, kind: WeightKind) -> WeightId {
        let name = format!("weight{}", self.program.weights.len());
        let (WeightKind::Matrix { outputs: rows, .. }
        | WeightKind::Vector { length: rows }
        | WeightKind::Convolution { channels: rows, .. }) = kind;
        let source = name.clone();
        let part = WeightPart { source, source_rows: rows, start: 0, rows, run: rows, stride: rows };
        self.program.weights.push(WeightDef { name, kind, dtype: Dtype::F32, parts: vec![part] });
        WeightId(self.program.weights.len() - 1)
    }

    fn node(&mut self, op: Op) {
        self.program.nodes.push(Node { layer: None, op });
    }
}

/// What a program computes, as hashes: every row of the logits, and every state by its name.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub logits: Vec<u64>,
    pub states: BTreeMap<String, u64>,
}

/// Executes the program on hashes in an arena laid out by `plan`: every written element becomes a hash of the op and of
/// all that it reads in that row. Results are spoilt before the operands are read, so that a plan that lets an op write
/// over its own operands changes the outcome, as does one that lets any later op do so. A fused op does what its parts
/// do, and spoils what it stages.
pub fn execute(program: &Program, plan: &ActivationPlan, tokens: usize, logit_rows: usize) -> Outcome {
    let (arena, states) = (vec![0; plan.bytes], BTreeMap::new());
    let mut machine = Machine { program, plan, tokens, logit_rows, arena, states };
    for node in &program.nodes {
        let reads = node.op.reads();
        let staged = node.op.staged();
        let results = [node.op.writes(), staged.clone()].concat();
        results.into_iter().filter(|out| !reads.contains(out)).for_each(|out| machine.spoil(out));
        node.op.parts().iter().for_each(|part| machine.part(part));
        staged.into_iter().for_each(|view| machine.spoil(view));
    }
    let logits = (0..logit_rows).map(|row| machine.read(program.logits, row)).collect();
    Outcome { logits, states: machine.states }
}

/// Every tensor for itself.
pub fn separate(program: &Program, tokens: usize, logit_rows: usize) -> ActivationPlan {
    let mut bytes = 0;
    let offsets = (0..program.tensors.len()).map(|id| {
        let offset = bytes;
        bytes += program.tensor_bytes(TensorId(id), tokens, logit_rows);
        offset
    });
    ActivationPlan { offsets: offsets.collect(), bytes }
}

struct Machine<'a> {
    program: &'a Program,
    plan: &'a ActivationPlan,
    tokens: usize,
    logit_rows: usize,
    states: BTreeMap<String, u64>,
    /// A hash for each byte.
    arena: Vec<u64>,
}

impl Machine<'_> {
    /// An op that isn't fused.
    fn part(&mut self, op: &Op) {
        let (reads, writes) = (op.reads(), op.writes());
        let names: Vec<&String> = op.weights().iter().map(|id| &self.program.weight(*id).name).collect();
        let rows = self.rows(*writes.first().or(reads.first()).expect("every op has an operand"));
        for row in 0..rows {
            let gathers = matches!(op, Op::GatherRows { .. });
            let from = if gathers { self.tokens - self.logit_rows + row } else { row };
            let mut operands: Vec<u64> = reads.iter().map(|view| self.read(*view, from)).collect();
            if matches!(op, Op::Add { .. }) {
                // Sums are the same in either order.
                operands.sort_unstable();
            }
            let mut value = hash(&(op.name(), &names, row, operands));
            if let Some(&state) = op.states().first() {
                let content = self.states.entry(self.program.state(state).name.clone()).or_default();
                value = hash(&(value, *content));
                if op.updates_state() {
                    *content = value;
                }
            }
            for (index, &out) in writes.iter().enumerate() {
                self.write(out, row, hash(&(value, index)));
            }
        }
    }

    fn spoil(&mut self, view: View) {
        (0..self.rows(view)).for_each(|row| self.write(view, row, hash(&("spoilt", row))));
    }

    fn rows(&self, view: View) -> usize {
        match self.program.tensor(view.tensor).rows {
            Rows::Tokens => self.tokens,
            Rows::Logits => self.logit_rows,
        }
    }

    fn element(&self, view: View, row: usize, column: usize) -> std::ops::Range<usize> {
        let tensor = self.program.tensor(view.tensor);
        let start = self.plan.offsets[view.tensor.0] + (row * tensor.width + column) * tensor.dtype.bytes();
        start..start + tensor.dtype.bytes()
    }

    fn write(&mut self, view: View, row: usize, value: u64) {
        for column in view.column..view.end() {
            let bytes = self.element(view, row, column);
            self.arena[bytes].fill(hash(&(value, column)));
        }
    }

    fn read(&self, view: View, row: usize) -> u64 {
        let columns = view.column..view.end();
        columns.fold(0, |value, column| hash(&(value, &self.arena[self.element(view, row, column)])))
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
