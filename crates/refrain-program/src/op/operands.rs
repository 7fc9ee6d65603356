//! What each op reads and writes.

use super::{AttentionGate, Epilogue, GdnPrepare, Op, Prologue, QkNormRopeAppend};
use crate::{StateId, View, WeightId};

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
            Op::Attention { gate: None, .. } => "attention",
            Op::Attention { gate: Some(_), .. } => "attention+sigmoid_gate",
            Op::SigmoidGate { .. } => "sigmoid_gate",
            Op::SiluMul { .. } => "silu_mul",
            Op::Add { .. } => "add",
            Op::GatherRows { .. } => "gather_rows",
            Op::AddRmsNorm { .. } => "add+rms_norm",
            Op::FusedLinear { prologue, epilogue, .. } => linear_name(prologue, epilogue),
            Op::QkNormRopeAppend(_) => "qk_norm_rope+append",
            Op::GdnPrepare(_) => "gdn_prepare",
            Op::GdnStep { .. } => "gdn_step",
            Op::Elementwise(_) => "elementwise",
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
            Op::Attention { q, gate, .. } => [q].into_iter().chain(gate.map(|gate| gate.gate)).collect(),
            Op::SiluMul { gate, up, .. } => vec![gate, up],
            Op::Add { a, b, .. } | Op::AddRmsNorm { a, b, .. } => vec![a, b],
            Op::FusedLinear { prologue, epilogue, .. } => {
                let mut reads = vec![prologue.x()];
                if let Prologue::GatedRmsNorm { gate, .. } = prologue {
                    reads.push(gate);
                }
                if let Epilogue::Add { residual, .. } = epilogue {
                    reads.push(residual);
                }
                reads
            }
            Op::QkNormRopeAppend(QkNormRopeAppend { q, k, v, .. }) => vec![q, k, v],
            Op::GdnPrepare(GdnPrepare { x, b, a, .. }) | Op::GdnStep { prepare: GdnPrepare { x, b, a, .. }, .. } => {
                vec![x, b, a]
            }
            Op::Elementwise(ref tree) => tree.leaves(),
        }
    }

    /// Activations it writes. A view that is also read in full is updated in place, element by element or head by head.
    pub fn writes(&self) -> Vec<View> {
        match *self {
            Op::KvAppend { .. } => vec![],
            Op::GdnGates { beta, decay, .. } => vec![beta, decay],
            Op::AddRmsNorm { sum, out, .. } => vec![sum, out],
            Op::QkNormRopeAppend(QkNormRopeAppend { q_out, .. }) => vec![q_out],
            Op::GdnPrepare(GdnPrepare { out, beta, decay, .. }) => vec![out, beta, decay],
            Op::Elementwise(ref tree) => vec![tree.out],
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
            | Op::GatherRows { out, .. }
            | Op::FusedLinear { out, .. }
            | Op::GdnStep { out, .. } => vec![out],
        }
    }

    /// Activations in which a fused op may leave what it likes: where the results between its [`Op::parts`] lay.
    pub fn staged(&self) -> Vec<View> {
        match *self {
            Op::Attention { gate: Some(AttentionGate { staged, .. }), .. } => vec![staged],
            Op::FusedLinear { prologue, epilogue, .. } => {
                let mut staged = Vec::new();
                if let Prologue::RmsNorm { staged: view, .. } | Prologue::GatedRmsNorm { staged: view, .. } = prologue {
                    staged.push(view);
                }
                if let Epilogue::Add { staged: view, .. } | Epilogue::SiluMul { staged: view } = epilogue {
                    staged.push(view);
                }
                staged
            }
            Op::QkNormRopeAppend(QkNormRopeAppend { k_staged, .. }) => vec![k_staged],
            Op::GdnStep { prepare: GdnPrepare { out, beta, decay, .. }, .. } => vec![out, beta, decay],
            Op::Elementwise(ref tree) => tree.staged(),
            _ => vec![],
        }
    }

    /// All activations that it reads, writes or stages.
    pub fn views(&self) -> Vec<View> {
        [self.reads(), self.writes(), self.staged()].concat()
    }

    /// Weights it reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match *self {
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
                Prologue::RmsNorm { weight: norm, .. } | Prologue::GatedRmsNorm { weight: norm, .. } => {
                    vec![norm, weight]
                }
            },
            Op::QkNormRopeAppend(QkNormRopeAppend { q_weight, k_weight, .. }) => vec![q_weight, k_weight],
            Op::GdnPrepare(GdnPrepare { conv_weight, a_log, dt_bias, .. })
            | Op::GdnStep { prepare: GdnPrepare { conv_weight, a_log, dt_bias, .. }, .. } => {
                vec![conv_weight, a_log, dt_bias]
            }
            _ => vec![],
        }
    }

    /// The states it reads or writes.
    pub fn states(&self) -> Vec<StateId> {
        match *self {
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

    /// Whether it changes its states. Attention only reads the cache that an append has filled.
    pub fn updates_state(&self) -> bool {
        !matches!(self, Op::Attention { .. }) && !self.states().is_empty()
    }

    /// Results, written or staged, with the operand whose very columns each may be: of ops that work element by element
    /// or head by head. Everything else must be apart.
    pub fn in_place(&self) -> Vec<(View, View)> {
        match *self {
            Op::L2Norm { .. }
            | Op::GatedRmsNorm { .. }
            | Op::QkNormRope { .. }
            | Op::SigmoidGate { .. }
            | Op::SiluMul { .. }
            | Op::Add { .. }
            | Op::Elementwise(_) => {
                let pairs = |out: View| self.reads().into_iter().map(move |read| (out, read));
                self.writes().into_iter().flat_map(pairs).collect()
            }
            Op::AddRmsNorm { a, b, sum, .. } => vec![(sum, a), (sum, b)],
            Op::FusedLinear { epilogue: Epilogue::Add { residual, .. }, out, .. } => vec![(out, residual)],
            Op::QkNormRopeAppend(QkNormRopeAppend { q, q_out, k, k_staged, .. }) => vec![(q_out, q), (k_staged, k)],
            _ => vec![],
        }
    }

    /// Two views that must not overlap and do, and what would be right: first one that is written or staged.
    pub fn clash(&self) -> Option<(View, View, &'static str)> {
        let pairs = self.in_place();
        let results = [self.writes(), self.staged()].concat();
        for (index, &out) in results.iter().enumerate() {
            for input in self.reads().into_iter().filter(|input| input.overlaps(out)) {
                if !pairs.iter().any(|(result, _)| *result == out) {
                    return Some((out, input, "this op can't work in place"));
                }
                if input != out {
                    return Some((out, input, "in place means the very same columns"));
                }
                if !pairs.contains(&(out, input)) {
                    return Some((out, input, "this operand can't be worked on in place"));
                }
            }
            if let Some(&other) = results[..index].iter().find(|other| other.overlaps(out)) {
                return Some((out, other, "its results must not overlap"));
            }
        }
        None
    }
}

fn linear_name(prologue: &Prologue, epilogue: &Epilogue) -> &'static str {
    match (prologue, epilogue) {
        (Prologue::None { .. }, Epilogue::None) => "linear",
        (Prologue::None { .. }, Epilogue::Add { .. }) => "linear+add",
        (Prologue::None { .. }, Epilogue::SiluMul { .. }) => "linear+silu_mul",
        (Prologue::RmsNorm { .. }, Epilogue::None) => "rms_norm+linear",
        (Prologue::RmsNorm { .. }, Epilogue::Add { .. }) => "rms_norm+linear+add",
        (Prologue::RmsNorm { .. }, Epilogue::SiluMul { .. }) => "rms_norm+linear+silu_mul",
        (Prologue::GatedRmsNorm { .. }, Epilogue::None) => "gated_rms_norm+linear",
        (Prologue::GatedRmsNorm { .. }, Epilogue::Add { .. }) => "gated_rms_norm+linear+add",
        (Prologue::GatedRmsNorm { .. }, Epilogue::SiluMul { .. }) => "gated_rms_norm+linear+silu_mul",
    }
}
