//! The ops a program is made of. Each says in its first line what it computes; [`Op::reads`], [`Op::writes`] and the
//! weight and state accessors are all that the passes, the memory plan and the costs need to know about it.

use crate::{StateId, View, WeightId};

/// How the heads of one full-attention layer are laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; each serves `num_heads / num_kv_heads` query heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on the scores, `head_dim^-0.5`.
    pub scale: f32,
}

/// How the heads of one Gated DeltaNet layer are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GdnShape {
    /// Query and key heads.
    pub num_key_heads: usize,
    /// Value heads; value head `h` uses query and key head `h / (num_value_heads / num_key_heads)`.
    pub num_value_heads: usize,
    /// Width of one query or key head.
    pub key_head_dim: usize,
    /// Width of one value head.
    pub value_head_dim: usize,
}

/// One operation. `rows` are the rows of its output: tokens, or the rows that want logits.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out[t] = table[token[t]]`, the embedding of every token of the step.
    Embed {
        /// `[vocab, hidden]`.
        table: WeightId,
        /// `[T, hidden]`.
        out: View,
    },
    /// `out = x * rsqrt(mean(x^2) + eps) * (1 + weight)`, row by row: the zero-centred norm of the family.
    RmsNorm {
        /// `[T, width]`.
        x: View,
        /// `[width]`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// `[T, width]`.
        out: View,
    },
    /// `out = x weight^T`.
    Linear {
        /// `[T, in]`.
        x: View,
        /// `[out, in]`.
        weight: WeightId,
        /// `[T, out]`.
        out: View,
    },
    /// `out[t, c] = silu(sum_j weight[c, j] x[t - K + 1 + j, c])`: causal depthwise convolution over the sequence, whose
    /// last `K - 1` inputs are the state.
    GdnConv {
        /// `[T, channels]`.
        x: View,
        /// `[channels, K]`.
        weight: WeightId,
        /// The last `K - 1` inputs of each sequence.
        state: StateId,
        /// Taps `K`.
        kernel: usize,
        /// `[T, channels]`.
        out: View,
    },
    /// `out = x * rsqrt(sum(x^2) + eps)`, head by head, and times `scale` for the first `scaled` heads.
    L2Norm {
        /// `[T, heads * head_dim]`.
        x: View,
        /// Number of heads.
        heads: usize,
        /// How many of them, from the first, are scaled.
        scaled: usize,
        /// Factor after the norm.
        scale: f32,
        /// Added to the sum of squares.
        eps: f32,
        /// `[T, heads * head_dim]`.
        out: View,
    },
    /// `beta = sigmoid(b)`, `decay = -exp(a_log) * softplus(a + dt_bias)` (the logarithm of the decay), per value head.
    GdnGates {
        /// `[T, value_heads]`.
        b: View,
        /// `[T, value_heads]`.
        a: View,
        /// `[value_heads]`.
        a_log: WeightId,
        /// `[value_heads]`.
        dt_bias: WeightId,
        /// `[T, value_heads]`.
        beta: View,
        /// `[T, value_heads]`, at most 0.
        decay: View,
    },
    /// The gated delta rule, `S <- e^decay S; d = beta (v - S^T k); S <- S + k d^T; out = S^T q`, chunked for prompt
    /// tokens and one by one for generated ones (Yang et al., arXiv 2412.06464).
    GdnScan {
        /// `[T, key_heads * key_head_dim]`, normalised and scaled.
        q: View,
        /// `[T, key_heads * key_head_dim]`, normalised.
        k: View,
        /// `[T, value_heads * value_head_dim]`.
        v: View,
        /// `[T, value_heads]`.
        beta: View,
        /// `[T, value_heads]`.
        decay: View,
        /// `[value_heads, key_head_dim, value_head_dim]` f32 for each sequence.
        state: StateId,
        /// Heads.
        shape: GdnShape,
        /// `[T, value_heads * value_head_dim]`.
        out: View,
    },
    /// `out = weight * x * rsqrt(mean(x^2) + eps) * silu(gate)`, head by head: plain weight, norm before the gate.
    GatedRmsNorm {
        /// `[T, heads * head_dim]`.
        x: View,
        /// `[T, heads * head_dim]`.
        gate: View,
        /// `[head_dim]`.
        weight: WeightId,
        /// Number of heads.
        heads: usize,
        /// Added to the mean square.
        eps: f32,
        /// `[T, heads * head_dim]`.
        out: View,
    },
    /// The zero-centred RMS norm of every head, then rotary embedding of its first `rotary_dim` dimensions by the
    /// token's position (rotate-half pairs `(i, i + rotary_dim / 2)`).
    QkNormRope {
        /// `[T, heads * head_dim]`.
        x: View,
        /// `[head_dim]`.
        weight: WeightId,
        /// Number of heads.
        heads: usize,
        /// Rotated dimensions, even.
        rotary_dim: usize,
        /// Base of the frequencies.
        theta: f32,
        /// Added to the mean square.
        eps: f32,
        /// `[T, heads * head_dim]`.
        out: View,
    },
    /// Writes the step's keys and values into the blocks of their sequences.
    KvAppend {
        /// `[T, kv_heads * head_dim]`.
        k: View,
        /// `[T, kv_heads * head_dim]`.
        v: View,
        /// The cache of this layer.
        state: StateId,
        /// Heads.
        shape: AttentionShape,
    },
    /// Causal softmax attention of every query over its sequence's cached keys and values.
    Attention {
        /// `[T, heads * head_dim]`.
        q: View,
        /// The cache of this layer, which already holds the step's own keys and values.
        state: StateId,
        /// Heads.
        shape: AttentionShape,
        /// `[T, heads * head_dim]`.
        out: View,
    },
    /// `out = x * sigmoid(gate)`.
    SigmoidGate {
        /// `[T, width]`.
        x: View,
        /// `[T, width]`.
        gate: View,
        /// `[T, width]`.
        out: View,
    },
    /// `out = silu(gate) * up`.
    SiluMul {
        /// `[T, width]`.
        gate: View,
        /// `[T, width]`.
        up: View,
        /// `[T, width]`.
        out: View,
    },
    /// `out = a + b`.
    Add {
        /// `[T, width]`.
        a: View,
        /// `[T, width]`.
        b: View,
        /// `[T, width]`.
        out: View,
    },
    /// `out[s] = x[logit_row[s]]`: the rows whose logits are wanted.
    GatherRows {
        /// `[T, width]`.
        x: View,
        /// `[S, width]`.
        out: View,
    },
}

impl Op {
    /// Short name, as the text form, the costs and the profiles print it.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Linear { .. } => "linear",
            Op::GdnConv { .. } => "gdn_conv",
            Op::L2Norm { .. } => "l2_norm",
            Op::GdnGates { .. } => "gdn_gates",
            Op::GdnScan { .. } => "gdn_scan",
            Op::GatedRmsNorm { .. } => "gated_rms_norm",
            Op::QkNormRope { .. } => "qk_norm_rope",
            Op::KvAppend { .. } => "kv_append",
            Op::Attention { .. } => "attention",
            Op::SigmoidGate { .. } => "sigmoid_gate",
            Op::SiluMul { .. } => "silu_mul",
            Op::Add { .. } => "add",
            Op::GatherRows { .. } => "gather_rows",
        }
    }

    /// Activations it reads.
    pub fn reads(&self) -> Vec<View> {
        match *self {
            Op::Embed { .. } => vec![],
            Op::RmsNorm { x, .. }
            | Op::Linear { x, .. }
            | Op::GdnConv { x, .. }
            | Op::L2Norm { x, .. }
            | Op::QkNormRope { x, .. }
            | Op::GatherRows { x, .. } => vec![x],
            Op::GdnGates { b, a, .. } => vec![b, a],
            Op::GdnScan { q, k, v, beta, decay, .. } => vec![q, k, v, beta, decay],
            Op::GatedRmsNorm { x, gate, .. } | Op::SigmoidGate { x, gate, .. } => vec![x, gate],
            Op::KvAppend { k, v, .. } => vec![k, v],
            Op::Attention { q, .. } => vec![q],
            Op::SiluMul { gate, up, .. } => vec![gate, up],
            Op::Add { a, b, .. } => vec![a, b],
        }
    }

    /// Activations it writes. A view that is also read in full is updated in place, element by element or head by head.
    pub fn writes(&self) -> Vec<View> {
        match *self {
            Op::KvAppend { .. } => vec![],
            Op::GdnGates { beta, decay, .. } => vec![beta, decay],
            Op::Embed { out, .. }
            | Op::RmsNorm { out, .. }
            | Op::Linear { out, .. }
            | Op::GdnConv { out, .. }
            | Op::L2Norm { out, .. }
            | Op::GdnScan { out, .. }
            | Op::GatedRmsNorm { out, .. }
            | Op::QkNormRope { out, .. }
            | Op::Attention { out, .. }
            | Op::SigmoidGate { out, .. }
            | Op::SiluMul { out, .. }
            | Op::Add { out, .. }
            | Op::GatherRows { out, .. } => vec![out],
        }
    }

    /// Weights it reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match *self {
            Op::Embed { table, .. } => vec![table],
            Op::RmsNorm { weight, .. }
            | Op::Linear { weight, .. }
            | Op::GdnConv { weight, .. }
            | Op::GatedRmsNorm { weight, .. }
            | Op::QkNormRope { weight, .. } => vec![weight],
            Op::GdnGates { a_log, dt_bias, .. } => vec![a_log, dt_bias],
            _ => vec![],
        }
    }

    /// The state it reads or writes.
    pub fn state(&self) -> Option<StateId> {
        match *self {
            Op::GdnConv { state, .. }
            | Op::GdnScan { state, .. }
            | Op::KvAppend { state, .. }
            | Op::Attention { state, .. } => Some(state),
            _ => None,
        }
    }

    /// Whether it changes its state. Attention only reads the cache that [`Op::KvAppend`] has filled.
    pub fn updates_state(&self) -> bool {
        matches!(self, Op::GdnConv { .. } | Op::GdnScan { .. } | Op::KvAppend { .. })
    }

    /// Whether a view it writes may be one that it reads: true for the ops that work element by element or head by
    /// head.
    pub fn works_in_place(&self) -> bool {
        matches!(
            self,
            Op::L2Norm { .. }
                | Op::GatedRmsNorm { .. }
                | Op::QkNormRope { .. }
                | Op::SigmoidGate { .. }
                | Op::SiluMul { .. }
                | Op::Add { .. }
        )
    }
}
