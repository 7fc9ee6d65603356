//! The gate of attention's result, applied before it is written.

use super::Pass;
use super::fuse::{fuse, next_use, pair};
use crate::{AttentionGate, Op, Program};

/// [`Op::Attention`], [`Op::SigmoidGate`] to [`Op::Attention`] with a gate.
pub(super) struct FuseSigmoidGate;

impl Pass for FuseSigmoidGate {
    fn name(&self) -> &'static str {
        "fuse_sigmoid_gate"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, |program, index| {
            let Op::Attention { q, state, shape, gate: None, out: staged } = program.nodes[index].op else {
                return None;
            };
            let next = next_use(program, index, staged)?;
            match program.nodes[next].op {
                Op::SigmoidGate { x, gate, out } if x == staged => {
                    let gate = Some(AttentionGate { gate, staged });
                    pair(index, next, Op::Attention { q, state, shape, gate, out })
                }
                _ => None,
            }
        })
    }

    fn looks_for(&self) -> &'static str {
        "attention with a gate after it"
    }
}
