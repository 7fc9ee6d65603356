//! A norm as the prologue of the only product that takes it.

use super::Pass;
use super::fuse::{Candidate, fuse, next_use, pair};
use crate::{Epilogue, Op, Program, Prologue};

/// [`Op::RmsNorm`], [`Op::Linear`] to [`Op::FusedLinear`].
pub(super) struct FuseNormLinear;

impl Pass for FuseNormLinear {
    fn name(&self) -> &'static str {
        "fuse_norm_linear"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, |program, index| match program.nodes[index].op {
            Op::RmsNorm { x, weight, eps, out: staged } => {
                with_product(program, index, Prologue::RmsNorm { x, weight, eps, staged })
            }
            _ => None,
        })
    }

    fn looks_for(&self) -> &'static str {
        "norm that only one product takes"
    }
}

/// [`Op::GatedRmsNorm`], [`Op::Linear`] to [`Op::FusedLinear`].
pub(super) struct FuseGatedNormLinear;

impl Pass for FuseGatedNormLinear {
    fn name(&self) -> &'static str {
        "fuse_gated_norm_linear"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, |program, index| match program.nodes[index].op {
            Op::GatedRmsNorm { x, gate, weight, heads, eps, out: staged } => {
                with_product(program, index, Prologue::GatedRmsNorm { x, gate, weight, heads, eps, staged })
            }
            _ => None,
        })
    }

    fn looks_for(&self) -> &'static str {
        "gated norm that only one product takes"
    }
}

/// The prologue, which is op `index`, with the product that takes its result.
fn with_product(program: &Program, index: usize, prologue: Prologue) -> Option<Candidate> {
    let next = next_use(program, index, prologue.product_input())?;
    let (x, weight, epilogue, out) = match program.nodes[next].op {
        Op::Linear { x, weight, out } => (x, weight, Epilogue::None, out),
        Op::FusedLinear { prologue: Prologue::None { x }, weight, epilogue, out } => (x, weight, epilogue, out),
        _ => return None,
    };
    if x != prologue.product_input() {
        return None;
    }
    pair(index, next, Op::FusedLinear { prologue, weight, epilogue, out })
}
