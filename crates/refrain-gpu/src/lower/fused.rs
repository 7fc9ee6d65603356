//! Fused ops: which kernel does all of one at once.

use super::{Action, Lowered, Places, Rope};
use crate::kernel::LaunchSpec;
use crate::kernels::attention::Attention;
use crate::kernels::gdn::{GdnConv, GdnGates, GdnPrepare, GdnScan, GdnStep, L2Norm};
use crate::kernels::generated::{Function, Generated};
use crate::kernels::kv_append::KvAppend;
use crate::kernels::linear::{self, Around, Linear};
use crate::kernels::norm::AddRmsNorm;
use crate::kernels::qk_norm_rope::QkNormRope;
use crate::kernels::qk_norm_rope_append::QkNormRopeAppend;
use refrain_program::{self as program, Op, View, WeightId};

impl Places<'_> {
    /// What is enqueued for a fused op; `None` for others, and for those that only their parts can do.
    pub(super) fn fused(&self, op: &Op) -> Option<Lowered> {
        let (target, step) = (self.target, &self.step());
        let count = self.count(*op.writes().first()?);
        let launches = match *op {
            Op::FusedLinear { prologue, weight, epilogue, out } => {
                return self.fused_linear(prologue, weight, epilogue, out);
            }
            Op::AddRmsNorm { a, b, sum, weight, eps, out } => {
                let [a, b, sum, out] = [a, b, sum, out].map(|view| self.rows(view));
                AddRmsNorm { count, a, b, sum, weight: self.weight(weight), eps, out }.launches(target, step)
            }
            Op::Attention { q, state, shape, gate: Some(gate), out } => {
                Attention { gate: Some(self.rows(gate.gate)), ..self.attention(q, state, shape, out) }
                    .launches(target, step)
            }
            Op::QkNormRopeAppend(ref fused) => self.qk_norm_rope_append(fused).launches(target, step),
            Op::GdnPrepare(ref prepare) => self.gdn_prepare(prepare).launches(target, step),
            Op::GdnStep { ref prepare, state, out } => {
                let [q, k, v] = prepare.qkv().map(|view| self.rows(view));
                let scan = GdnScan {
                    q,
                    k,
                    v,
                    beta: self.rows(prepare.beta),
                    decay: self.rows(prepare.decay),
                    state: self.state(state),
                    shape: prepare.shape,
                    workspace: self.base.offset(self.layout.scan_workspace),
                    out: self.rows(out),
                };
                GdnStep { prepare: self.gdn_prepare(prepare), scan }.launches(target, step)
            }
            Op::Elementwise(ref tree) => {
                let root = Function::of(tree, &|view| self.rows(view));
                Generated { count, root, out: self.rows(tree.out) }.launches(target, step)
            }
            _ => return None,
        };
        Some(Lowered::any(count, launches).recorded_as(op))
    }

    /// A product with what is around it, by the kernels for few rows: steps with more take several turns.
    fn fused_linear(
        &self,
        prologue: program::Prologue,
        weight: WeightId,
        epilogue: program::Epilogue,
        out: View,
    ) -> Option<Lowered> {
        let operand = self.program.tensor(prologue.product_input().tensor).dtype;
        let around = Around {
            prologue: match prologue {
                program::Prologue::None { .. } => linear::Prologue::None,
                program::Prologue::RmsNorm { weight, eps, .. } => {
                    linear::Prologue::RmsNorm { weight: self.weight(weight), eps, operand }
                }
                program::Prologue::GatedRmsNorm { gate, weight, heads, eps, .. } => {
                    let (gate, weight, heads) = (self.rows(gate), self.weight(weight), heads as u32);
                    linear::Prologue::GatedRmsNorm { gate, weight, heads, eps, operand }
                }
            },
            epilogue: match epilogue {
                program::Epilogue::None => linear::Epilogue::None,
                program::Epilogue::Add { residual, .. } => linear::Epilogue::Add { residual: self.rows(residual) },
                program::Epilogue::SiluMul { .. } => linear::Epilogue::SiluMul,
            },
        };
        let (count, x) = (self.count(out), self.rows(prologue.x()));
        let (dtype, weight) = (self.weight_dtype(weight), self.weight(weight));
        let linear = Linear { count, x, weight, dtype, out: self.rows(out) };
        let variants = linear::fused_variants(&linear, &around, self.target, &self.step(), self.most_rows)?;
        let actions = |launches: Vec<LaunchSpec>| launches.into_iter().map(Action::Launch).collect();
        let variants = variants.into_iter().map(|(most, launches)| (most, actions(launches))).collect();
        Some(Lowered::new(count, variants))
    }

    fn gdn_prepare(&self, prepare: &program::GdnPrepare) -> GdnPrepare {
        let &program::GdnPrepare { x, conv_weight, conv_state, kernel, shape, scale, eps, out, .. } = prepare;
        let [q, k, _] = prepare.qkv();
        let both = self.rows(View { width: q.width + k.width, ..q });
        let heads = shape.num_key_heads as u32;
        GdnPrepare {
            conv: GdnConv {
                x: self.rows(x),
                weight: self.weight(conv_weight),
                state: self.state(conv_state),
                taps: kernel as u32,
                out: self.rows(out),
            },
            norm: L2Norm { x: both, heads: 2 * heads, scaled: heads, scale, eps, out: both },
            gates: GdnGates {
                b: self.rows(prepare.b),
                a: self.rows(prepare.a),
                a_log: self.weight(prepare.a_log),
                dt_bias: self.weight(prepare.dt_bias),
                beta: self.rows(prepare.beta),
                decay: self.rows(prepare.decay),
            },
        }
    }

    fn qk_norm_rope_append(&self, fused: &program::QkNormRopeAppend) -> QkNormRopeAppend {
        let &program::QkNormRopeAppend { q, q_weight, q_out, k, k_weight, k_staged, v, state, shape, .. } = fused;
        let rotary_dim = fused.rotary_dim;
        let frequencies = self.frequencies(Rope { rotary_dim, theta: fused.theta });
        let norm = |x, weight, heads: usize, out| QkNormRope {
            x: self.rows(x),
            weight: self.weight(weight),
            frequencies,
            heads: heads as u32,
            rotary_dim: rotary_dim as u32,
            eps: fused.eps,
            out: self.rows(out),
        };
        let (cache, dtype) = (self.state(state), self.state_dtype(state));
        QkNormRopeAppend {
            queries: norm(q, q_weight, shape.num_heads, q_out),
            keys: norm(k, k_weight, shape.num_kv_heads, k_staged),
            append: KvAppend { k: self.rows(k_staged), v: self.rows(v), cache, dtype, shape },
        }
    }
}
