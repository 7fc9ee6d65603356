//! The operands of an op, to be changed.

use crate::{Op, StateId, View, WeightId};

/// All its views, read and written. A view updated in place comes twice.
pub(crate) fn views_mut(op: &mut Op) -> Vec<&mut View> {
    match op {
        Op::Embed { out, .. } => vec![out],
        Op::RmsNorm { x, out, .. }
        | Op::Linear { x, out, .. }
        | Op::GdnConv { x, out, .. }
        | Op::L2Norm { x, out, .. }
        | Op::QkNormRope { x, out, .. }
        | Op::GatherRows { x, out } => vec![x, out],
        Op::GdnGates { b, a, beta, decay, .. } => vec![b, a, beta, decay],
        Op::GdnScan { q, k, v, beta, decay, out, .. } => vec![q, k, v, beta, decay, out],
        Op::GatedRmsNorm { x, gate, out, .. } | Op::SigmoidGate { x, gate, out } => vec![x, gate, out],
        Op::KvAppend { k, v, .. } => vec![k, v],
        Op::Attention { q, out, .. } => vec![q, out],
        Op::SiluMul { gate, up, out } => vec![gate, up, out],
        Op::Add { a, b, out } => vec![a, b, out],
    }
}

/// All its weights.
pub(crate) fn weights_mut(op: &mut Op) -> Vec<&mut WeightId> {
    match op {
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

/// Its state.
pub(crate) fn state_mut(op: &mut Op) -> Option<&mut StateId> {
    match op {
        Op::GdnConv { state, .. }
        | Op::GdnScan { state, .. }
        | Op::KvAppend { state, .. }
        | Op::Attention { state, .. } => Some(state),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Program;
    use crate::testing::{BF16, tinytales};

    #[test]
    fn they_are_the_operands_that_can_be_read() {
        let program = Program::build(&tinytales(), &BF16).unwrap();
        let kinds: std::collections::HashSet<&str> = program.nodes.iter().map(|node| node.op.name()).collect();
        assert_eq!(kinds.len(), 15, "this model has an op of every kind");
        for node in &program.nodes {
            let mut op = node.op.clone();
            let expected: Vec<View> = op.reads().into_iter().chain(op.writes()).collect();
            assert_eq!(views_mut(&mut op).into_iter().map(|view| *view).collect::<Vec<_>>(), expected);
            assert_eq!(weights_mut(&mut op).into_iter().map(|id| *id).collect::<Vec<_>>(), node.op.weights());
            assert_eq!(state_mut(&mut op).map(|id| *id), node.op.state());
        }
    }
}
