//! The addition to the residual stream as the epilogue of the product that is added.

use super::Pass;
use super::fuse::{fuse, next_use, pair};
use crate::{Epilogue, Op, Program, Prologue, View, WeightId};

/// [`Op::Linear`], [`Op::Add`] to [`Op::FusedLinear`].
pub(super) struct FuseLinearAdd;

impl Pass for FuseLinearAdd {
    fn name(&self) -> &'static str {
        "fuse_linear_add"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, |program, index| {
            let (prologue, weight, staged) = plain_product(&program.nodes[index].op)?;
            let next = next_use(program, index, staged)?;
            let Op::Add { a, b, out } = program.nodes[next].op else { return None };
            let residual = match (a == staged, b == staged) {
                (true, false) => b,
                (false, true) => a,
                _ => return None,
            };
            let epilogue = Epilogue::Add { residual, staged };
            pair(index, next, Op::FusedLinear { prologue, weight, epilogue, out })
        })
    }

    fn looks_for(&self) -> &'static str {
        "product that is only added to something"
    }
}

/// Prologue, weight and result of a product without an epilogue.
pub(super) fn plain_product(op: &Op) -> Option<(Prologue, WeightId, View)> {
    match *op {
        Op::Linear { x, weight, out } => Some((Prologue::None { x }, weight, out)),
        Op::FusedLinear { prologue, weight, epilogue: Epilogue::None, out } => Some((prologue, weight, out)),
        _ => None,
    }
}
