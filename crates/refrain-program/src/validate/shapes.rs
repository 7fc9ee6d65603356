//! The shapes of the operands of each kind of op.

use super::Check;
use crate::{
    AttentionShape, Epilogue, GdnShape, Op, ProgramError, Rows, StateId, StateKind, View, WeightId, WeightKind,
};
use refrain_model::Dtype;

/// An operand with its name in the op.
type Operand = (&'static str, View);

impl Check<'_> {
    /// The shapes of a fused op are those of its parts, once they can be taken apart.
    pub(super) fn shapes(&self, op: &Op) -> Result<(), ProgramError> {
        match *op {
            Op::FusedLinear { epilogue: Epilogue::SiluMul { staged }, out, .. } => {
                self.width("the product", staged, 2 * out.width)?;
            }
            Op::GdnPrepare(prepare) | Op::GdnStep { prepare, .. } => {
                self.width("out", prepare.out, prepare.channels())?;
                self.width("b", prepare.b, prepare.shape.num_value_heads)?;
            }
            _ => {}
        }
        op.parts().iter().try_for_each(|part| self.part_shapes(part))
    }

    fn part_shapes(&self, op: &Op) -> Result<(), ProgramError> {
        match *op {
            Op::Embed { table, out } => {
                self.rows(Rows::Tokens, &[("out", out)])?;
                self.weight("table", table, matrix(self.program.vocab_size, out.width))
            }
            Op::RmsNorm { x, weight, out, .. } => {
                self.same_shape(&[("x", x), ("out", out)])?;
                self.weight("weight", weight, WeightKind::Vector { length: x.width })
            }
            Op::Linear { x, weight, out } => {
                self.same_rows(&[("x", x), ("out", out)])?;
                self.weight("weight", weight, matrix(out.width, x.width))
            }
            Op::GdnConv { x, weight, state, kernel, out } => {
                self.rows(Rows::Tokens, &[("x", x), ("out", out)])?;
                self.same_shape(&[("x", x), ("out", out)])?;
                self.weight("weight", weight, WeightKind::Convolution { channels: x.width, taps: kernel })?;
                self.state_kind(state, StateKind::ConvState { channels: x.width, taps: kernel })
            }
            Op::L2Norm { x, heads, out, .. } => {
                self.same_shape(&[("x", x), ("out", out)])?;
                self.head_dim("x", x, heads).map(drop)
            }
            Op::GdnGates { b, a, a_log, dt_bias, beta, decay } => {
                self.same_shape(&[("b", b), ("a", a), ("beta", beta), ("decay", decay)])?;
                self.dtype(Dtype::F32, &[("beta", beta), ("decay", decay)])?;
                self.weight("a_log", a_log, WeightKind::Vector { length: b.width })?;
                self.weight("dt_bias", dt_bias, WeightKind::Vector { length: b.width })
            }
            Op::GdnScan { q, k, v, beta, decay, state, shape, out } => {
                self.gdn(&shape, [q, k, v, beta, decay, out])?;
                let GdnShape { num_value_heads: value_heads, key_head_dim, value_head_dim, .. } = shape;
                self.state_kind(state, StateKind::GdnState { value_heads, key_head_dim, value_head_dim })
            }
            Op::GatedRmsNorm { x, gate, weight, heads, out, .. } => {
                self.same_shape(&[("x", x), ("gate", gate), ("out", out)])?;
                let length = self.head_dim("x", x, heads)?;
                self.weight("weight", weight, WeightKind::Vector { length })
            }
            Op::QkNormRope { x, weight, heads, rotary_dim, out, .. } => {
                self.rows(Rows::Tokens, &[("x", x), ("out", out)])?;
                self.same_shape(&[("x", x), ("out", out)])?;
                let length = self.head_dim("x", x, heads)?;
                if !rotary_dim.is_multiple_of(2) || rotary_dim > length {
                    return self.mismatch("rotary_dim", rotary_dim, format!("an even number of at most {length}"));
                }
                self.weight("weight", weight, WeightKind::Vector { length })
            }
            Op::KvAppend { k, v, state, shape } => {
                self.rows(Rows::Tokens, &[("k", k), ("v", v)])?;
                self.width("k", k, shape.num_kv_heads * shape.head_dim)?;
                self.width("v", v, shape.num_kv_heads * shape.head_dim)?;
                self.kv_cache(state, &shape)
            }
            Op::Attention { q, state, shape, out, .. } => {
                self.rows(Rows::Tokens, &[("q", q), ("out", out)])?;
                self.width("q", q, shape.num_heads * shape.head_dim)?;
                self.width("out", out, shape.num_heads * shape.head_dim)?;
                self.kv_cache(state, &shape)
            }
            Op::SigmoidGate { x, gate, out } => self.same_shape(&[("x", x), ("gate", gate), ("out", out)]),
            Op::SiluMul { gate, up, out } => self.same_shape(&[("gate", gate), ("up", up), ("out", out)]),
            Op::Add { a, b, out } => self.same_shape(&[("a", a), ("b", b), ("out", out)]),
            Op::GatherRows { x, out } => {
                self.rows(Rows::Tokens, &[("x", x)])?;
                self.rows(Rows::Logits, &[("out", out)])?;
                self.width("out", out, x.width)
            }
            Op::AddRmsNorm { .. }
            | Op::FusedLinear { .. }
            | Op::QkNormRopeAppend(_)
            | Op::GdnPrepare(_)
            | Op::GdnStep { .. }
            | Op::Elementwise(_) => unreachable!("no part is fused"),
        }
    }

    fn gdn(&self, shape: &GdnShape, [q, k, v, beta, decay, out]: [View; 6]) -> Result<(), ProgramError> {
        let operands = [("q", q), ("k", k), ("v", v), ("beta", beta), ("decay", decay), ("out", out)];
        self.rows(Rows::Tokens, &operands)?;
        self.dtype(Dtype::F32, &[("beta", beta), ("decay", decay)])?;
        let &GdnShape { num_key_heads, num_value_heads, key_head_dim, value_head_dim } = shape;
        self.divides("num_value_heads", num_value_heads, num_key_heads)?;
        let (key_width, value_width) = (num_key_heads * key_head_dim, num_value_heads * value_head_dim);
        let widths = [key_width, key_width, value_width, num_value_heads, num_value_heads, value_width];
        operands.into_iter().zip(widths).try_for_each(|((name, view), width)| self.width(name, view, width))
    }

    fn kv_cache(&self, state: StateId, shape: &AttentionShape) -> Result<(), ProgramError> {
        let &AttentionShape { num_heads, num_kv_heads: kv_heads, head_dim, .. } = shape;
        self.divides("num_heads", num_heads, kv_heads)?;
        self.state_kind(state, StateKind::KvCache { kv_heads, head_dim })
    }

    fn rows_of(&self, view: View) -> Rows {
        self.program.tensor(view.tensor).rows
    }

    fn rows(&self, expected: Rows, operands: &[Operand]) -> Result<(), ProgramError> {
        match operands.iter().find(|(_, view)| self.rows_of(*view) != expected) {
            None => Ok(()),
            Some((name, view)) => self.mismatch(&format!("rows of {name}"), self.rows_of(*view), expected),
        }
    }

    fn same_rows(&self, operands: &[Operand]) -> Result<(), ProgramError> {
        self.rows(self.rows_of(operands[0].1), operands)
    }

    fn same_shape(&self, operands: &[Operand]) -> Result<(), ProgramError> {
        self.same_rows(operands)?;
        operands.iter().try_for_each(|(name, view)| self.width(name, *view, operands[0].1.width))
    }

    fn width(&self, name: &str, view: View, expected: usize) -> Result<(), ProgramError> {
        if view.width == expected {
            return Ok(());
        }
        self.mismatch(&format!("width of {name}"), view.width, expected)
    }

    fn dtype(&self, expected: Dtype, operands: &[Operand]) -> Result<(), ProgramError> {
        let dtype = |view: View| self.program.tensor(view.tensor).dtype;
        match operands.iter().find(|(_, view)| dtype(*view) != expected) {
            None => Ok(()),
            Some((name, view)) => self.mismatch(&format!("type of {name}"), dtype(*view), expected),
        }
    }

    /// The width of one of `heads` heads.
    fn head_dim(&self, name: &str, view: View, heads: usize) -> Result<usize, ProgramError> {
        self.divides(&format!("width of {name}"), view.width, heads)?;
        Ok(view.width / heads)
    }

    fn divides(&self, what: &str, value: usize, divisor: usize) -> Result<(), ProgramError> {
        if value > 0 && divisor > 0 && value.is_multiple_of(divisor) {
            return Ok(());
        }
        self.mismatch(what, value, format!("a multiple of its {divisor} heads"))
    }

    fn weight(&self, name: &str, id: WeightId, expected: WeightKind) -> Result<(), ProgramError> {
        let weight = self.program.weight(id);
        if weight.kind == expected {
            return Ok(());
        }
        self.mismatch(&format!("{name} {}", weight.name), weight.kind, expected)
    }

    fn state_kind(&self, id: StateId, expected: StateKind) -> Result<(), ProgramError> {
        let state = self.program.state(id);
        if state.kind == expected {
            return Ok(());
        }
        self.mismatch(&format!("state {}", state.name), state.kind, expected)
    }
}

fn matrix(outputs: usize, inputs: usize) -> WeightKind {
    WeightKind::Matrix { outputs, inputs }
}
