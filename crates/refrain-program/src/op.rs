//! The ops a program is made of. Each says in its first line what it computes; [`Op::reads`], [`Op::writes`],
//! [`Op::staged`] and the weight and state accessors are all that the passes, the memory plan and the costs need to know
//! about it. The last ones are made by passes only: each does what [`Op::parts`] do one after another.

use crate::{StateId, View, WeightId};

mod fused;
mod operands;

pub use fused::{
    AttentionGate, Elementwise, ElementwiseFunction, ElementwiseOperand, Epilogue, GdnPrepare, Prologue,
    QkNormRopeAppend,
};

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
    /// Causal softmax attention of every query over its sequence's cached keys and values; with a gate
    /// `out = attention * sigmoid(gate)`, made by a pass.
    Attention {
        /// `[T, heads * head_dim]`.
        q: View,
        /// The cache of this layer, which already holds the step's own keys and values.
        state: StateId,
        /// Heads.
        shape: AttentionShape,
        /// What the result is gated with before it is rounded.
        gate: Option<AttentionGate>,
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
    /// `sum = a + b`, `out = rms_norm(sum)` of [`Op::RmsNorm`], row by row.
    AddRmsNorm {
        /// `[T, width]`.
        a: View,
        /// `[T, width]`.
        b: View,
        /// `[T, width]`; may be `a` or `b`. The norm takes it as it is stored.
        sum: View,
        /// `[width]`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// `[T, width]`.
        out: View,
    },
    /// `out = epilogue(prologue(x) weight^T)`: a product with what is done to its input and to its result.
    FusedLinear {
        /// Where the input comes from, `[T, in]`.
        prologue: Prologue,
        /// `[out, in]`; with a SiLU product its first half gives the gate, its second half what is gated.
        weight: WeightId,
        /// What is done to the product.
        epilogue: Epilogue,
        /// `[T, out]`, half as wide with a SiLU product. It must not overlap what the prologue reads.
        out: View,
    },
    /// Queries and keys normed and rotated ([`Op::QkNormRope`]), the keys written with the values into the cache
    /// ([`Op::KvAppend`]).
    QkNormRopeAppend(QkNormRopeAppend),
    /// What comes between the input projection of a GDN layer and its scan: [`Op::GdnConv`], [`Op::L2Norm`] of queries
    /// and keys, [`Op::GdnGates`].
    GdnPrepare(GdnPrepare),
    /// [`Op::GdnPrepare`], then [`Op::GdnScan`] of what it gives.
    GdnStep {
        /// What is prepared; its results are staged.
        prepare: GdnPrepare,
        /// `[value_heads, key_head_dim, value_head_dim]` f32 for each sequence.
        state: StateId,
        /// `[T, value_heads * value_head_dim]`.
        out: View,
    },
    /// A tree of element-wise ops, evaluated in f32.
    Elementwise(Elementwise),
}
