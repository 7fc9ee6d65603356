//! The program itself: a straight list of ops on named tensors whose row counts are symbols.

use crate::{CacheDtype, Op};
use refrain_model::{Dtype, TensorView, WeightSource};

/// Index into [`Program::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub usize);

/// Index into [`Program::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// Index into [`Program::states`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateId(pub usize);

/// How many rows a tensor has: known only when a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// `T`, one for each token of the step.
    Tokens,
    /// `S`, one for each row whose logits are wanted.
    Logits,
}

/// An activation: `[rows, width]`, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDef {
    /// Name, unique in the program, such as `layers.3.q`.
    pub name: String,
    /// Rows.
    pub rows: Rows,
    /// Elements in a row.
    pub width: usize,
    /// Element type.
    pub dtype: Dtype,
}

/// Some consecutive columns of a tensor: `[rows, width]` with the row stride of the whole tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The tensor.
    pub tensor: TensorId,
    /// First column.
    pub column: usize,
    /// Number of columns.
    pub width: usize,
}

impl View {
    /// The column behind the last.
    pub fn end(self) -> usize {
        self.column + self.width
    }

    /// Whether two views have a column in common.
    pub fn overlaps(self, other: View) -> bool {
        self.tensor == other.tensor && self.column < other.end() && other.column < self.end()
    }
}

/// A weight as the ops see it: one array put together from rows of checkpoint tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightDef {
    /// Name, unique in the program, such as `layers.3.qkv`.
    pub name: String,
    /// What it is.
    pub kind: WeightKind,
    /// Element type in which it is kept. Vectors and convolutions are always kept in F32.
    pub dtype: Dtype,
    /// Where its rows come from, in order; they add up to the rows of its kind.
    pub parts: Vec<WeightPart>,
}

/// What a weight is, with its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// `[outputs, inputs]` of a linear layer or an embedding.
    Matrix {
        /// Rows.
        outputs: usize,
        /// Columns.
        inputs: usize,
    },
    /// `[length]`: a norm, a bias.
    Vector {
        /// Elements.
        length: usize,
    },
    /// `[channels, taps]` of a depthwise convolution (`[channels, 1, taps]` in the checkpoint).
    Convolution {
        /// Rows.
        channels: usize,
        /// Columns.
        taps: usize,
    },
}

impl WeightKind {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        match *self {
            WeightKind::Matrix { outputs, inputs } => outputs * inputs,
            WeightKind::Vector { length } => length,
            WeightKind::Convolution { channels, taps } => channels * taps,
        }
    }
}

/// Rows of one checkpoint tensor: row `i` of the part is source row `start + i / run * stride + i % run`.
///
/// `run` and `stride` pick, for example, the query rows out of a `q_proj` that holds `[query | gate]` head by head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightPart {
    /// Canonical name in the checkpoint, such as `layers.3.self_attn.q_proj.weight`.
    pub source: String,
    /// Rows (elements, for a vector) the checkpoint tensor must have.
    pub source_rows: usize,
    /// First source row.
    pub start: usize,
    /// Rows taken.
    pub rows: usize,
    /// Consecutive rows taken at a time.
    pub run: usize,
    /// Distance between the starts of two runs.
    pub stride: usize,
}

impl WeightPart {
    /// The source row of the part's row `index`.
    pub fn source_row(&self, index: usize) -> usize {
        self.start + index / self.run * self.stride + index % self.run
    }
}

impl WeightDef {
    /// The checkpoint tensor of one of its parts.
    ///
    /// # Errors
    /// What is wrong with it: missing, or of another shape than the part needs.
    pub fn tensor<'a>(&self, part: &WeightPart, source: &'a dyn WeightSource) -> Result<TensorView<'a>, String> {
        let tensor = source.tensor(&part.source).ok_or("not in the checkpoint")?;
        let expected = match self.kind {
            WeightKind::Matrix { inputs, .. } => vec![part.source_rows, inputs],
            WeightKind::Vector { .. } => vec![part.source_rows],
            WeightKind::Convolution { taps, .. } => vec![part.source_rows, 1, taps],
        };
        let bytes = expected.iter().product::<usize>() * tensor.dtype.bytes();
        if tensor.shape != expected || tensor.data.len() != bytes {
            return Err(format!("has shape {:?}, must have {expected:?}", tensor.shape));
        }
        Ok(tensor)
    }
}

/// Memory that outlives a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDef {
    /// Name, unique in the program, such as `layers.3.kv`.
    pub name: String,
    /// What it is.
    pub kind: StateKind,
    /// Element type.
    pub dtype: CacheDtype,
}

/// What a state is, with the size of one unit of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKind {
    /// Keys and values of one attention layer, in blocks: `2 * kv_heads * head_dim` elements a token.
    KvCache {
        /// Key and value heads.
        kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// `[value_heads, key_head_dim, value_head_dim]` for each slot.
    GdnState {
        /// Value heads.
        value_heads: usize,
        /// Width of a key head.
        key_head_dim: usize,
        /// Width of a value head.
        value_head_dim: usize,
    },
    /// The last `taps - 1` inputs of the convolution for each slot: `[taps - 1, channels]`.
    ConvState {
        /// Channels.
        channels: usize,
        /// Taps of the convolution.
        taps: usize,
    },
}

/// An op with its place in the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Layer it belongs to; none for embedding, final norm and head.
    pub layer: Option<usize>,
    /// What is computed.
    pub op: Op,
}

/// A model as a straight list of ops. Built by [`Program::build`], rewritten by passes, run by backends.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Activations.
    pub tensors: Vec<TensorDef>,
    /// Weights.
    pub weights: Vec<WeightDef>,
    /// States.
    pub states: Vec<StateDef>,
    /// Ops in the order in which they run.
    pub nodes: Vec<Node>,
    /// The result, `[S, vocab]`.
    pub logits: View,
    /// Token ids must be below this.
    pub vocab_size: usize,
}

/// In which types a program keeps what it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// Matrices.
    pub weights: Dtype,
    /// What products and attention take. What products give and the residual stream are in F32: there the rounding of
    /// 16 bits would outweigh all other errors together.
    pub activations: Dtype,
    /// Keys and values.
    pub kv_cache: CacheDtype,
}

impl BuildOptions {
    /// The type of what the gated delta rule takes and gives: with activations of 16 bits it is F16, whose rounding is an
    /// eighth of BF16's. Keys and queries are normalised, so its range is no matter. With narrow heads it is F32: there
    /// is nothing to be had from tensor cores, and sums of few products even out little of the rounding.
    pub fn scanned(&self, key_head_dim: usize) -> Dtype {
        if self.activations == Dtype::F32 || key_head_dim < 64 { Dtype::F32 } else { Dtype::F16 }
    }

    /// The type of the queries of attention: that of the cached keys where both have 16 bits, for tensor cores.
    pub fn queries(&self) -> Dtype {
        match self.kv_cache {
            CacheDtype::Plain(cached) if self.activations.bytes() == 2 && cached.bytes() == 2 => cached,
            _ => self.activations,
        }
    }
}

impl Program {
    /// All ops in order, the fused ones as their [`Op::parts`].
    pub fn parts(&self) -> impl Iterator<Item = Op> + '_ {
        self.nodes.iter().flat_map(|node| node.op.parts())
    }

    /// The definition of a tensor.
    pub fn tensor(&self, id: TensorId) -> &TensorDef {
        &self.tensors[id.0]
    }

    /// The definition of a weight.
    pub fn weight(&self, id: WeightId) -> &WeightDef {
        &self.weights[id.0]
    }

    /// The definition of a state.
    pub fn state(&self, id: StateId) -> &StateDef {
        &self.states[id.0]
    }
}
