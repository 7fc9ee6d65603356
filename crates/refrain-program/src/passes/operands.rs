//! The operands of an op, to be changed.

use crate::{AttentionGate, Epilogue, GdnPrepare, Op, Prologue, QkNormRopeAppend, StateId, View, WeightId};

/// All its views, read, written and staged. A view that comes twice among the operands comes twice.
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
        Op::Attention { q, gate: None, out, .. } => vec![q, out],
        Op::Attention { q, gate: Some(AttentionGate { gate, staged }), out, .. } => vec![q, gate, out, staged],
        Op::SiluMul { gate, up, out } => vec![gate, up, out],
        Op::Add { a, b, out } => vec![a, b, out],
        Op::AddRmsNorm { a, b, sum, out, .. } => vec![a, b, sum, out],
        Op::FusedLinear { prologue, epilogue, out, .. } => {
            let mut views = match prologue {
                Prologue::None { x } => vec![x],
                Prologue::RmsNorm { x, staged, .. } => vec![x, staged],
                Prologue::GatedRmsNorm { x, gate, staged, .. } => vec![x, gate, staged],
            };
            match epilogue {
                Epilogue::None => {}
                Epilogue::Add { residual, staged } => views.extend([residual, staged]),
                Epilogue::SiluMul { staged } => views.push(staged),
            }
            views.push(out);
            views
        }
        Op::QkNormRopeAppend(QkNormRopeAppend { q, q_out, k, k_staged, v, .. }) => vec![q, q_out, k, k_staged, v],
        Op::GdnPrepare(GdnPrepare { x, b, a, out, beta, decay, .. }) => vec![x, b, a, out, beta, decay],
        Op::GdnStep { prepare: GdnPrepare { x, b, a, out: prepared, beta, decay, .. }, out, .. } => {
            vec![x, b, a, prepared, beta, decay, out]
        }
        Op::Elementwise(tree) => tree.views_mut(),
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
        | Op::QkNormRope { weight, .. }
        | Op::AddRmsNorm { weight, .. } => vec![weight],
        Op::GdnGates { a_log, dt_bias, .. } => vec![a_log, dt_bias],
        Op::FusedLinear { prologue, weight, .. } => match prologue {
            Prologue::None { .. } => vec![weight],
            Prologue::RmsNorm { weight: norm, .. } | Prologue::GatedRmsNorm { weight: norm, .. } => vec![norm, weight],
        },
        Op::QkNormRopeAppend(QkNormRopeAppend { q_weight, k_weight, .. }) => vec![q_weight, k_weight],
        Op::GdnPrepare(GdnPrepare { conv_weight, a_log, dt_bias, .. })
        | Op::GdnStep { prepare: GdnPrepare { conv_weight, a_log, dt_bias, .. }, .. } => {
            vec![conv_weight, a_log, dt_bias]
        }
        _ => vec![],
    }
}

/// Its states.
pub(crate) fn states_mut(op: &mut Op) -> Vec<&mut StateId> {
    match op {
        Op::GdnConv { state, .. }
        | Op::GdnScan { state, .. }
        | Op::KvAppend { state, .. }
        | Op::Attention { state, .. }
        | Op::QkNormRopeAppend(QkNormRopeAppend { state, .. }) => vec![state],
        Op::GdnPrepare(GdnPrepare { conv_state, .. }) => vec![conv_state],
        Op::GdnStep { prepare: GdnPrepare { conv_state, .. }, state, .. } => vec![conv_state, state],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::{PassConfig, compile};
    use crate::testing::{BF16, any_program, tinytales};
    use crate::{FEW_ROWS, Program};
    use proptest::prelude::*;

    fn check(program: &Program) {
        for node in &program.nodes {
            let mut op = node.op.clone();
            let mut expected: Vec<View> = op.views();
            let mut views: Vec<View> = views_mut(&mut op).into_iter().map(|view| *view).collect();
            let key = |view: &View| (view.tensor, view.column, view.width);
            expected.sort_by_key(key);
            views.sort_by_key(key);
            assert_eq!(views, expected);
            assert_eq!(weights_mut(&mut op).into_iter().map(|id| *id).collect::<Vec<_>>(), node.op.weights());
            assert_eq!(states_mut(&mut op).into_iter().map(|id| *id).collect::<Vec<_>>(), node.op.states());
        }
    }

    #[test]
    fn they_are_the_operands_that_can_be_read() {
        let program = Program::build(&tinytales(), &BF16).unwrap();
        let kinds: std::collections::HashSet<&str> = program.nodes.iter().map(|node| node.op.name()).collect();
        assert_eq!(kinds.len(), 15, "this model has an op of every kind");
        check(&program);
        for rows in [FEW_ROWS, 100] {
            check(&compile(&program, &PassConfig::default(), rows).program);
        }
    }

    proptest! {
        #[test]
        fn so_they_are_in_any_fused_program(program in any_program()) {
            check(&compile(&program, &PassConfig::default(), FEW_ROWS).program);
        }
    }
}
