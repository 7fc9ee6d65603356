//! What each op costs in a step: bytes it must move and floating-point operations it must do.

use crate::{GdnShape, Node, Op, Program, Rows, StateDef, StateId, StateKind, View, WeightId};
use std::iter::Sum;
use std::ops::AddAssign;

/// Tokens in one chunk of the chunked GDN scan; chunks begin at multiples of it.
pub const SCAN_CHUNK: usize = 64;

/// The sizes of a step on which its cost depends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// For each sequence its tokens in this step, and its tokens before this step.
    pub segments: Vec<(usize, usize)>,
    /// Rows that want logits.
    pub logit_rows: usize,
}

impl StepShape {
    /// One prompt of so many tokens, in one piece, wanting the logits of its last token.
    pub fn prefill(tokens: usize) -> StepShape {
        StepShape { segments: vec![(tokens, 0)], logit_rows: 1 }
    }

    /// One token of each of `sequences` sequences, each with so many tokens before it.
    pub fn decode(sequences: usize, context: usize) -> StepShape {
        StepShape { segments: vec![(1, context); sequences], logit_rows: sequences }
    }

    /// Tokens in the step.
    pub fn tokens(&self) -> usize {
        self.segments.iter().map(|(tokens, _)| tokens).sum()
    }

    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens(),
            Rows::Logits => self.logit_rows,
        }
    }
}

/// What an op, or a whole step, must move and compute. Bytes are those of every operand once, as if nothing stayed in
/// a cache between two ops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Weights read.
    pub weight_bytes: u64,
    /// Activations read and written.
    pub activation_bytes: u64,
    /// Keys, values, GDN and convolution states read and written.
    pub state_bytes: u64,
    /// Floating-point operations; a multiply-add is two, an exponential is one.
    pub flops: u64,
}

impl Cost {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes + self.state_bytes
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.weight_bytes += other.weight_bytes;
        self.activation_bytes += other.activation_bytes;
        self.state_bytes += other.state_bytes;
        self.flops += other.flops;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |mut total, cost| {
            total += cost;
            total
        })
    }
}

impl Program {
    /// Bytes of all weights as the program keeps them; a tied table counts once.
    pub fn weight_bytes(&self) -> usize {
        self.weights.iter().map(|weight| weight.kind.elements() * weight.dtype.bytes()).sum()
    }

    /// Bytes of one KV block of so many tokens, for all attention layers.
    pub fn kv_block_bytes(&self, block_tokens: usize) -> usize {
        let caches = self.states.iter().filter(|state| matches!(state.kind, StateKind::KvCache { .. }));
        caches.map(|state| state.unit_bytes() * block_tokens).sum()
    }

    /// Bytes of the recurrent and convolution states of one sequence, for all GDN layers.
    pub fn gdn_slot_bytes(&self) -> usize {
        let slots = self.states.iter().filter(|state| !matches!(state.kind, StateKind::KvCache { .. }));
        slots.map(StateDef::unit_bytes).sum()
    }

    /// What a step of that shape costs.
    pub fn step_cost(&self, shape: &StepShape) -> Cost {
        self.nodes.iter().map(|node| self.node_cost(node, shape)).sum()
    }

    /// What one op costs in a step of that shape.
    pub fn node_cost(&self, node: &Node, shape: &StepShape) -> Cost {
        Cost {
            weight_bytes: self.op_weight_bytes(&node.op, shape) as u64,
            activation_bytes: self.op_activation_bytes(&node.op, shape) as u64,
            state_bytes: self.op_state_bytes(&node.op, shape) as u64,
            flops: self.op_flops(&node.op, shape),
        }
    }

    /// Weights are read once, except that an embedding reads a row for each token.
    fn op_weight_bytes(&self, op: &Op, shape: &StepShape) -> usize {
        let bytes = |id: WeightId| self.weight(id).dtype.bytes();
        match *op {
            Op::Embed { table, out } => shape.tokens() * out.width * bytes(table),
            _ => op.weights().into_iter().map(|id| self.weight(id).kind.elements() * bytes(id)).sum(),
        }
    }

    fn op_activation_bytes(&self, op: &Op, shape: &StepShape) -> usize {
        let gathers = matches!(op, Op::GatherRows { .. });
        let bytes = |view: View| {
            let tensor = self.tensor(view.tensor);
            let rows = if gathers { shape.logit_rows } else { shape.rows(tensor.rows) };
            rows * view.width * tensor.dtype.bytes()
        };
        op.reads().into_iter().chain(op.writes()).map(bytes).sum()
    }

    /// Keys and values of every sequence are read once in a step, whatever number of queries it has. The states of a
    /// sequence that begins are not read.
    fn op_state_bytes(&self, op: &Op, shape: &StepShape) -> usize {
        let bytes = |state: StateId| {
            let def = self.state(state);
            let units = |&(tokens, before): &(usize, usize)| match (&def.kind, op) {
                (StateKind::KvCache { .. }, Op::Attention { .. }) => before + tokens,
                (StateKind::KvCache { .. }, _) => tokens,
                _ if before == 0 => 1,
                _ => 2,
            };
            def.unit_bytes() * shape.segments.iter().map(units).sum::<usize>()
        };
        op.states().into_iter().map(bytes).sum()
    }

    fn op_flops(&self, op: &Op, shape: &StepShape) -> u64 {
        op.parts().iter().map(|part| self.part_flops(part, shape)).sum()
    }

    fn part_flops(&self, op: &Op, shape: &StepShape) -> u64 {
        let elements = |view: View| shape.rows(self.tensor(view.tensor).rows) * view.width;
        let flops = match *op {
            Op::Embed { .. } | Op::KvAppend { .. } | Op::GatherRows { .. } => 0,
            Op::Linear { x, out, .. } => 2 * elements(out) * x.width,
            // K products and K - 1 sums, and a SiLU: negate, exponential, add, divide, multiply.
            Op::GdnConv { out, kernel, .. } => elements(out) * (2 * kernel - 1 + 5),
            // Square, sum, scale, and weight or factor.
            Op::RmsNorm { x, .. } | Op::L2Norm { x, .. } => 4 * elements(x),
            // A norm, a SiLU and a product.
            Op::GatedRmsNorm { x, .. } => (4 + 6) * elements(x),
            // A norm, and for every rotated element two products and a sum.
            Op::QkNormRope { x, heads, rotary_dim, .. } => {
                4 * elements(x) + 3 * elements(View { width: heads * rotary_dim, ..x })
            }
            // A sigmoid (4); bias, softplus (exponential, sum, logarithm) and factor (5).
            Op::GdnGates { b, .. } => (4 + 5) * elements(b),
            Op::GdnScan { shape: heads, .. } => return scan_flops(&heads, shape),
            // Scores and values: two products of head_dim for every pair of a query and a key before it.
            Op::Attention { shape: heads, .. } => return attention_flops(heads.num_heads * heads.head_dim, shape),
            Op::SigmoidGate { x, .. } => 5 * elements(x),
            Op::SiluMul { gate, .. } => 6 * elements(gate),
            Op::Add { a, .. } => elements(a),
            Op::AddRmsNorm { .. }
            | Op::FusedLinear { .. }
            | Op::QkNormRopeAppend(_)
            | Op::GdnPrepare(_)
            | Op::GdnStep { .. }
            | Op::Elementwise(_) => unreachable!("no part is fused"),
        };
        flops as u64
    }
}

impl StateDef {
    /// Bytes of one unit, with the scales of its rows.
    pub fn unit_bytes(&self) -> usize {
        let rows = match self.kind {
            StateKind::KvCache { kv_heads, .. } => 2 * kv_heads,
            StateKind::GdnState { .. } | StateKind::ConvState { .. } => 0,
        };
        self.kind.elements() * self.dtype.bytes() + rows * self.dtype.scale_bytes()
    }
}

impl StateKind {
    /// Elements of one unit: one token of a KV cache, one slot of the others.
    pub fn elements(&self) -> usize {
        match *self {
            StateKind::KvCache { kv_heads, head_dim } => 2 * kv_heads * head_dim,
            StateKind::GdnState { value_heads, key_head_dim, value_head_dim } => {
                value_heads * key_head_dim * value_head_dim
            }
            StateKind::ConvState { channels, taps } => (taps - 1) * channels,
        }
    }
}

/// Query `i` of a segment attends to all tokens before the segment and to `i + 1` of its own.
fn attention_flops(width: usize, shape: &StepShape) -> u64 {
    let pairs = |&(tokens, before): &(usize, usize)| (tokens * before + tokens * (tokens + 1) / 2) as u64;
    4 * width as u64 * shape.segments.iter().map(pairs).sum::<u64>()
}

/// A single token takes one step of the recurrence, more take the chunked form.
fn scan_flops(heads: &GdnShape, shape: &StepShape) -> u64 {
    let per_head = |&(tokens, before): &(usize, usize)| {
        if tokens == 1 {
            // Decay (1), S^T k (2), rank-one update (2) and S^T q (2) for every element of the state.
            return 7 * heads.key_head_dim * heads.value_head_dim;
        }
        let head = tokens.min(before.next_multiple_of(SCAN_CHUNK) - before);
        let (whole, tail) = ((tokens - head) / SCAN_CHUNK, (tokens - head) % SCAN_CHUNK);
        chunk_flops(heads, head) + whole * chunk_flops(heads, SCAN_CHUNK) + chunk_flops(heads, tail)
    };
    heads.num_value_heads as u64 * shape.segments.iter().map(per_head).sum::<usize>() as u64
}

/// One chunk of `c` tokens of one value head, with products counted as full squares.
fn chunk_flops(heads: &GdnShape, c: usize) -> usize {
    let (dk, dv) = (heads.key_head_dim, heads.value_head_dim);
    let scores = 2 * 2 * c * c * dk; // K K^T and Q K^T
    let inverse = 2 * c * c * c / 3; // of a unit triangular matrix
    let state = 3 * 2 * c * dk * dv; // K S, Q S and the update of S
    let values = 2 * 2 * c * c * dv; // inverse times values, scores times new values
    scores + inverse + state + values
}

#[cfg(test)]
mod tests;
