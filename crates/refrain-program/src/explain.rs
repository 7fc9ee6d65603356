//! What a program is and what it needs, for people (`Display`) and for scripts (`Serialize`).

use crate::{ActivationPlan, Ceilings, Estimate, Op, PassConfig, Program, Rows, StepShape, TensorId, WeightKind};
use serde::Serialize;
use std::num::NonZeroUsize;

mod compiled;
mod text;

pub use compiled::{CompiledSteps, PassEffect};

/// What an explanation is for.
#[derive(Clone, Debug)]
pub struct ExplainOptions {
    /// The model's name.
    pub model: String,
    /// Tokens of the prompt that is prefilled in one step, and then the context at which a token is decoded.
    pub tokens: NonZeroUsize,
    /// Tokens in one KV block.
    pub block_tokens: usize,
    /// The ceilings of the machine; `None` leaves out what rests on them.
    pub ceilings: Option<Ceilings>,
    /// Where the ceilings come from, for the heading: `measured on this machine`; or why there are none.
    pub ceilings_source: String,
    /// Which passes run.
    pub passes: PassConfig,
    /// Numbers of rows with which the ranges of compiled programs end.
    pub endpoints: Vec<u32>,
    /// Whether products are fused with what is around them for any number of rows: so on a CPU.
    pub fuses_any_product: bool,
}

/// The explanation of a program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The model's name.
    pub model: String,
    /// One letter for each layer: `G` for GDN, `A` for full attention, `-` for neither.
    pub schedule: String,
    /// Elements of all weights.
    pub parameters: usize,
    /// Rows of the logits.
    pub vocab_size: usize,
    /// The ops, identical layers folded into one section.
    pub sections: Vec<Section>,
    /// What must lie in memory.
    pub memory: Memory,
    /// The ceilings of the machine, if they are known.
    pub ceilings: Option<Ceilings>,
    /// Where the ceilings come from, or why there are none.
    pub ceilings_source: String,
    /// The prompt in one step, under the ceilings.
    pub prefill: Option<Estimate>,
    /// One token of one sequence behind that prompt, under the ceilings.
    pub decode: Option<Estimate>,
    /// What the passes make of the program.
    pub compiled: Vec<CompiledSteps>,
}

/// Ops that stand together: what is outside the layers, or layers that do the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Section {
    /// The layers that consist of these ops; empty for what is outside the layers.
    pub layers: Vec<usize>,
    /// What the layers mix tokens with, such as `GDN, 2 key heads of 128, 4 value heads of 128`, or where the ops stand.
    pub title: String,
    /// The ops of one layer, a line each.
    pub ops: Vec<String>,
}

/// What must lie in memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Bytes of all weights.
    pub weight_bytes: usize,
    /// Element type of the matrices, more than one when they differ.
    pub matrix_dtypes: String,
    /// Tokens for which the activations are planned.
    pub tokens: usize,
    /// Bytes of the arena of all activations.
    pub activation_bytes: usize,
    /// What they would need without sharing memory.
    pub unshared_activation_bytes: usize,
    /// Bytes of keys and values of one token, all layers.
    pub kv_token_bytes: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Bytes of one block, all layers.
    pub kv_block_bytes: usize,
    /// Bytes of the GDN states of one sequence, all layers.
    pub gdn_slot_bytes: usize,
    /// The op while which the most activation bytes are live; the first of them.
    pub fullest: FullestMoment,
}

/// The moment that decides how large the arena must be at least.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FullestMoment {
    /// Index of the op.
    pub op: usize,
    /// Its kind.
    pub kind: &'static str,
    /// Its layer.
    pub layer: Option<usize>,
    /// Bytes live while it runs.
    pub bytes: usize,
    /// The tensors live while it runs, largest first.
    pub tensors: Vec<PlacedTensor>,
}

/// A tensor in the arena.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlacedTensor {
    /// Its name.
    pub name: String,
    /// Its shape and type, such as `[T, 1544] bf16`.
    pub shape: String,
    /// Its offset in the arena in bytes.
    pub offset: usize,
    /// Its size in bytes.
    pub bytes: usize,
}

/// Explains a validated program.
pub fn explain(program: &Program, options: &ExplainOptions) -> Explanation {
    let tokens = options.tokens.get();
    let estimate = |shape: StepShape| options.ceilings.map(|ceilings| program.estimate(&shape, &ceilings));
    Explanation {
        model: options.model.clone(),
        schedule: schedule(program),
        parameters: program.weights.iter().map(|weight| weight.kind.elements()).sum(),
        vocab_size: program.vocab_size,
        sections: sections(program),
        memory: memory(program, tokens, options.block_tokens),
        ceilings: options.ceilings,
        ceilings_source: options.ceilings_source.clone(),
        prefill: estimate(StepShape::prefill(tokens)),
        decode: estimate(StepShape::decode(1, tokens)),
        compiled: compiled::compiled(program, options),
    }
}

fn schedule(program: &Program) -> String {
    let layers = program.nodes.iter().filter_map(|node| node.layer).max().map_or(0, |last| last + 1);
    let mut letters = vec!['-'; layers];
    for node in &program.nodes {
        match (node.layer, &node.op) {
            (Some(layer), Op::GdnScan { .. }) => letters[layer] = 'G',
            (Some(layer), Op::Attention { .. }) => letters[layer] = 'A',
            _ => {}
        }
    }
    letters.into_iter().collect()
}

/// The ops in their order, except that a layer that does the same as an earlier one joins it.
fn sections(program: &Program) -> Vec<Section> {
    let mut sections: Vec<(Vec<String>, Section)> = Vec::new();
    for nodes in program.nodes.chunk_by(|a, b| a.layer == b.layer) {
        let in_full: Vec<String> = nodes.iter().map(|node| program.node_text(node, true)).collect();
        let layer = nodes[0].layer;
        let same = sections.iter_mut().find(|(text, section)| *text == in_full && !section.layers.is_empty());
        match (same, layer) {
            (Some((_, section)), Some(layer)) => section.layers.push(layer),
            _ => {
                let title = match layer {
                    Some(_) => nodes.iter().find_map(|node| mixer(&node.op)).unwrap_or_default(),
                    None if sections.is_empty() => "Before the layers".to_owned(),
                    None => "After the layers".to_owned(),
                };
                let ops = nodes.iter().map(|node| program.node_text(node, false)).collect();
                sections.push((in_full, Section { layers: layer.into_iter().collect(), title, ops }));
            }
        }
    }
    sections.into_iter().map(|(_, section)| section).collect()
}

fn mixer(op: &Op) -> Option<String> {
    match op {
        Op::GdnScan { shape, .. } => Some(format!(
            "GDN, {} key heads of {}, {} value heads of {}",
            shape.num_key_heads, shape.key_head_dim, shape.num_value_heads, shape.value_head_dim
        )),
        Op::Attention { shape, .. } => Some(format!(
            "full attention, {} query heads, {} key and value heads of {}",
            shape.num_heads, shape.num_kv_heads, shape.head_dim
        )),
        _ => None,
    }
}

fn memory(program: &Program, tokens: usize, block_tokens: usize) -> Memory {
    let plan = program.activation_plan(tokens, 1);
    let mut dtypes: Vec<String> = Vec::new();
    for weight in program.weights.iter().filter(|weight| matches!(weight.kind, WeightKind::Matrix { .. })) {
        let dtype = weight.dtype.to_string();
        if !dtypes.contains(&dtype) {
            dtypes.push(dtype);
        }
    }
    let ids = (0..program.tensors.len()).map(TensorId);
    Memory {
        weight_bytes: program.weight_bytes(),
        matrix_dtypes: dtypes.join(", "),
        tokens,
        activation_bytes: plan.bytes,
        unshared_activation_bytes: ids.map(|id| program.tensor_bytes(id, tokens, 1)).sum(),
        kv_token_bytes: program.kv_block_bytes(1),
        block_tokens,
        kv_block_bytes: program.kv_block_bytes(block_tokens),
        gdn_slot_bytes: program.gdn_slot_bytes(),
        fullest: fullest_moment(program, &plan, tokens),
    }
}

fn fullest_moment(program: &Program, plan: &ActivationPlan, tokens: usize) -> FullestMoment {
    let lifetimes = program.lifetimes();
    let live_at = |op: usize| {
        let live = move |id: &TensorId, lifetimes: &[Option<crate::Lifetime>]| {
            lifetimes[id.0].is_some_and(|lifetime| (lifetime.first..=lifetime.last).contains(&op))
        };
        (0..program.tensors.len()).map(TensorId).filter(|id| live(id, &lifetimes)).collect::<Vec<_>>()
    };
    let bytes_at = |op: usize| live_at(op).into_iter().map(|id| program.tensor_bytes(id, tokens, 1)).sum::<usize>();
    let (mut op, mut bytes) = (0, 0);
    for index in 0..program.nodes.len() {
        let live = bytes_at(index);
        if live > bytes {
            (op, bytes) = (index, live);
        }
    }
    let mut tensors: Vec<PlacedTensor> = live_at(op).into_iter().map(|id| placed(program, plan, id, tokens)).collect();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.bytes));
    let node = program.nodes.get(op);
    let (kind, layer) = node.map_or(("none", None), |node| (node.op.name(), node.layer));
    FullestMoment { op, kind, layer, bytes, tensors }
}

fn placed(program: &Program, plan: &ActivationPlan, id: TensorId, tokens: usize) -> PlacedTensor {
    let tensor = program.tensor(id);
    let rows = if tensor.rows == Rows::Tokens { tokens } else { 1 };
    PlacedTensor {
        name: tensor.name.clone(),
        shape: format!("[{rows}, {}] {}", tensor.width, tensor.dtype),
        offset: plan.offsets[id.0],
        bytes: program.tensor_bytes(id, tokens, 1),
    }
}

#[cfg(test)]
mod tests;
