//! The operands of fused ops, and the ops that each is made of.
//!
//! *Staged* is a view that held a result between the ops that were fused. What lies in it afterwards is undefined, and
//! nobody reads it: an implementation may put the result there, or keep it in registers, rounded to the type of that
//! tensor where something is said to be rounded. Backends that keep all activations in f32 don't round.

use super::{AttentionShape, GdnShape, Op};
use crate::{StateId, View, WeightId};

/// What an attention's result is gated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionGate {
    /// `[T, heads * head_dim]`.
    pub gate: View,
    /// Staged: the result before the gate, `[T, heads * head_dim]`.
    pub staged: View,
}

/// Where the input of a product comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prologue {
    /// It is used as it is.
    None {
        /// `[T, in]`.
        x: View,
    },
    /// [`Op::RmsNorm`] of it, rounded to the type of `staged`.
    RmsNorm {
        /// `[T, in]`.
        x: View,
        /// `[in]`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// Staged: the norm, `[T, in]`.
        staged: View,
    },
    /// [`Op::GatedRmsNorm`] of it, rounded to the type of `staged`.
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
        /// Staged: the gated norm, `[T, heads * head_dim]`.
        staged: View,
    },
}

impl Prologue {
    /// What is read.
    pub fn x(&self) -> View {
        match *self {
            Prologue::None { x } | Prologue::RmsNorm { x, .. } | Prologue::GatedRmsNorm { x, .. } => x,
        }
    }

    /// What the product takes: `x` itself, or the staged result.
    pub fn product_input(&self) -> View {
        match *self {
            Prologue::None { x } => x,
            Prologue::RmsNorm { staged, .. } | Prologue::GatedRmsNorm { staged, .. } => staged,
        }
    }

    fn part(&self) -> Option<Op> {
        match *self {
            Prologue::None { .. } => None,
            Prologue::RmsNorm { x, weight, eps, staged } => Some(Op::RmsNorm { x, weight, eps, out: staged }),
            Prologue::GatedRmsNorm { x, gate, weight, heads, eps, staged } => {
                Some(Op::GatedRmsNorm { x, gate, weight, heads, eps, out: staged })
            }
        }
    }
}

/// What is done to a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It is the result.
    None,
    /// `out = residual + product`.
    Add {
        /// `[T, out]`; may be the op's `out`.
        residual: View,
        /// Staged: the product, `[T, out]`.
        staged: View,
    },
    /// `out = silu(gate) * up`, where the product is `[gate | up]`.
    SiluMul {
        /// Staged: the product, `[T, 2 * out]`.
        staged: View,
    },
}

impl Epilogue {
    /// Where the product of an op with this `out` goes.
    pub fn product(&self, out: View) -> View {
        match *self {
            Epilogue::None => out,
            Epilogue::Add { staged, .. } | Epilogue::SiluMul { staged } => staged,
        }
    }

    fn part(&self, out: View) -> Option<Op> {
        match *self {
            Epilogue::None => None,
            Epilogue::Add { residual, staged } => Some(Op::Add { a: residual, b: staged, out }),
            Epilogue::SiluMul { staged } => {
                let [gate, up] = halves(staged);
                Some(Op::SiluMul { gate, up, out })
            }
        }
    }
}

/// The first and the second half of the columns of a view.
fn halves(view: View) -> [View; 2] {
    let width = view.width / 2;
    [View { width, ..view }, View { column: view.column + width, width, ..view }]
}

/// Operands of [`Op::QkNormRopeAppend`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNormRopeAppend {
    /// `[T, heads * head_dim]`.
    pub q: View,
    /// `[head_dim]`.
    pub q_weight: WeightId,
    /// The queries, normed and rotated, `[T, heads * head_dim]`; may be `q`.
    pub q_out: View,
    /// `[T, kv_heads * head_dim]`.
    pub k: View,
    /// `[head_dim]`.
    pub k_weight: WeightId,
    /// Staged: the keys, normed and rotated, `[T, kv_heads * head_dim]`; may be `k`. They are rounded to this type, then
    /// to that of the cache.
    pub k_staged: View,
    /// `[T, kv_heads * head_dim]`.
    pub v: View,
    /// The cache of this layer.
    pub state: StateId,
    /// Heads.
    pub shape: AttentionShape,
    /// Rotated dimensions, even.
    pub rotary_dim: usize,
    /// Base of the frequencies.
    pub theta: f32,
    /// Added to the mean squares.
    pub eps: f32,
}

impl QkNormRopeAppend {
    fn parts(&self) -> Vec<Op> {
        let &QkNormRopeAppend { q, q_weight, q_out, k, k_weight, k_staged, v, state, shape, rotary_dim, theta, eps } =
            self;
        let (heads, kv_heads) = (shape.num_heads, shape.num_kv_heads);
        vec![
            Op::QkNormRope { x: q, weight: q_weight, heads, rotary_dim, theta, eps, out: q_out },
            Op::QkNormRope { x: k, weight: k_weight, heads: kv_heads, rotary_dim, theta, eps, out: k_staged },
            Op::KvAppend { k: k_staged, v, state, shape },
        ]
    }
}

/// Operands of [`Op::GdnPrepare`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GdnPrepare {
    /// Queries, keys and values side by side, `[T, channels]`.
    pub x: View,
    /// `[channels, K]`.
    pub conv_weight: WeightId,
    /// The last `K - 1` inputs of each sequence.
    pub conv_state: StateId,
    /// Taps `K`.
    pub kernel: usize,
    /// Heads.
    pub shape: GdnShape,
    /// Factor on the queries after their norm.
    pub scale: f32,
    /// Added to the sums of squares.
    pub eps: f32,
    /// `[T, value_heads]`.
    pub b: View,
    /// `[T, value_heads]`.
    pub a: View,
    /// `[value_heads]`.
    pub a_log: WeightId,
    /// `[value_heads]`.
    pub dt_bias: WeightId,
    /// Queries normalised and scaled, keys normalised, values: `[T, channels]`. The convolution's result need not be
    /// rounded before the norm.
    pub out: View,
    /// `[T, value_heads]`.
    pub beta: View,
    /// `[T, value_heads]`, at most 0.
    pub decay: View,
}

impl GdnPrepare {
    /// Queries, keys and values of the result.
    pub fn qkv(&self) -> [View; 3] {
        let key_width = self.shape.num_key_heads * self.shape.key_head_dim;
        let value_width = self.shape.num_value_heads * self.shape.value_head_dim;
        let column = self.out.column;
        let at = |column, width| View { tensor: self.out.tensor, column, width };
        [at(column, key_width), at(column + key_width, key_width), at(column + 2 * key_width, value_width)]
    }

    /// Width of queries, keys and values together.
    pub fn channels(&self) -> usize {
        let GdnShape { num_key_heads, num_value_heads, key_head_dim, value_head_dim } = self.shape;
        2 * num_key_heads * key_head_dim + num_value_heads * value_head_dim
    }

    fn parts(&self) -> Vec<Op> {
        let &GdnPrepare { x, conv_weight, conv_state, kernel, shape, scale, eps, out, .. } = self;
        let &GdnPrepare { b, a, a_log, dt_bias, beta, decay, .. } = self;
        let [q, k, _] = self.qkv();
        let both = View { width: q.width + k.width, ..q };
        let (heads, scaled) = (2 * shape.num_key_heads, shape.num_key_heads);
        vec![
            Op::GdnConv { x, weight: conv_weight, state: conv_state, kernel, out },
            Op::L2Norm { x: both, heads, scaled, scale, eps, out: both },
            Op::GdnGates { b, a, a_log, dt_bias, beta, decay },
        ]
    }
}

/// `out = function(a, b)`, where each operand may be the result of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elementwise {
    /// What is computed.
    pub function: ElementwiseFunction,
    /// First operand.
    pub a: ElementwiseOperand,
    /// Second operand.
    pub b: ElementwiseOperand,
    /// `[T, width]`. Of the whole tree the result, which may be one of its operands; inside the tree staged, and the
    /// value is rounded to that type.
    pub out: View,
}

/// An element-wise function of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementwiseFunction {
    /// `a + b`.
    Add,
    /// `a * sigmoid(b)`.
    SigmoidGate,
    /// `silu(a) * b`.
    SiluMul,
}

/// An operand of an element-wise function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElementwiseOperand {
    /// `[T, width]`.
    View(View),
    /// The result of another function.
    Result(Box<Elementwise>),
}

impl ElementwiseOperand {
    /// Where it lies, or is staged.
    pub fn view(&self) -> View {
        match self {
            ElementwiseOperand::View(view) => *view,
            ElementwiseOperand::Result(inner) => inner.out,
        }
    }
}

impl Elementwise {
    /// The operands at the leaves, in order, as often as they come.
    pub fn leaves(&self) -> Vec<View> {
        let leaves = |operand: &ElementwiseOperand| match operand {
            ElementwiseOperand::View(view) => vec![*view],
            ElementwiseOperand::Result(inner) => inner.leaves(),
        };
        [leaves(&self.a), leaves(&self.b)].concat()
    }

    /// Where the results inside the tree were, those computed first first.
    pub fn staged(&self) -> Vec<View> {
        let mut parts = self.parts();
        parts.pop();
        parts.iter().flat_map(Op::writes).collect()
    }

    /// All views of the tree, to be changed.
    pub(crate) fn views_mut(&mut self) -> Vec<&mut View> {
        let mut views = Vec::new();
        for operand in [&mut self.a, &mut self.b] {
            match operand {
                ElementwiseOperand::View(view) => views.push(view),
                ElementwiseOperand::Result(inner) => views.extend(inner.views_mut()),
            }
        }
        views.push(&mut self.out);
        views
    }

    fn parts(&self) -> Vec<Op> {
        let mut parts = Vec::new();
        for operand in [&self.a, &self.b] {
            if let ElementwiseOperand::Result(inner) = operand {
                parts.extend(inner.parts());
            }
        }
        let (a, b, out) = (self.a.view(), self.b.view(), self.out);
        parts.push(match self.function {
            ElementwiseFunction::Add => Op::Add { a, b, out },
            ElementwiseFunction::SigmoidGate => Op::SigmoidGate { x: a, gate: b, out },
            ElementwiseFunction::SiluMul => Op::SiluMul { gate: a, up: b, out },
        });
        parts
    }
}

impl Op {
    /// The unfused ops that do the same one after another, through the staged views; the op itself when it isn't fused.
    pub fn parts(&self) -> Vec<Op> {
        match *self {
            Op::Attention { q, state, shape, gate: Some(AttentionGate { gate, staged }), out } => vec![
                Op::Attention { q, state, shape, gate: None, out: staged },
                Op::SigmoidGate { x: staged, gate, out },
            ],
            Op::AddRmsNorm { a, b, sum, weight, eps, out } => {
                vec![Op::Add { a, b, out: sum }, Op::RmsNorm { x: sum, weight, eps, out }]
            }
            Op::FusedLinear { prologue, weight, epilogue, out } => {
                let product = Op::Linear { x: prologue.product_input(), weight, out: epilogue.product(out) };
                prologue.part().into_iter().chain([product]).chain(epilogue.part(out)).collect()
            }
            Op::QkNormRopeAppend(ref fused) => fused.parts(),
            Op::GdnPrepare(ref fused) => fused.parts(),
            Op::GdnStep { ref prepare, state, out } => {
                let ([q, k, v], &GdnPrepare { beta, decay, shape, .. }) = (prepare.qkv(), prepare);
                let mut parts = prepare.parts();
                parts.push(Op::GdnScan { q, k, v, beta, decay, state, shape, out });
                parts
            }
            Op::Elementwise(ref tree) => tree.parts(),
            ref unfused => vec![unfused.clone()],
        }
    }
}
