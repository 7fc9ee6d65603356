//! Chains of element-wise ops that no other pass has fused.

use super::Pass;
use super::fuse::{fuse, next_use, pair};
use crate::{Elementwise, ElementwiseFunction, ElementwiseOperand, Op, Program, View};

/// Operands of one fused op: they are arguments of one kernel.
const MOST_LEAVES: usize = 8;

/// [`Op::Add`], [`Op::SigmoidGate`] and [`Op::SiluMul`] one after another to [`Op::Elementwise`].
pub(super) struct FuseElementwise;

impl Pass for FuseElementwise {
    fn name(&self) -> &'static str {
        "fuse_elementwise"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, |program, index| {
            let inner = tree(&program.nodes[index].op)?;
            let next = next_use(program, index, inner.out)?;
            let mut outer = tree(&program.nodes[next].op)?;
            let (taken, leaves) = (inner.out, inner.leaves().len() + outer.leaves().len() - 1);
            // Taken once: a result that is taken twice would be computed twice.
            let once = outer.leaves().iter().filter(|leaf| **leaf == taken).count() == 1;
            if !once || leaves > MOST_LEAVES || !put(&mut outer, taken, &inner) {
                return None;
            }
            pair(index, next, Op::Elementwise(outer))
        })
    }

    fn looks_for(&self) -> &'static str {
        "two element-wise ops in a row"
    }
}

/// An element-wise op as a tree.
fn tree(op: &Op) -> Option<Elementwise> {
    let (function, a, b, out) = match *op {
        Op::Add { a, b, out } => (ElementwiseFunction::Add, a, b, out),
        Op::SigmoidGate { x, gate, out } => (ElementwiseFunction::SigmoidGate, x, gate, out),
        Op::SiluMul { gate, up, out } => (ElementwiseFunction::SiluMul, gate, up, out),
        Op::Elementwise(ref tree) => return Some(tree.clone()),
        _ => return None,
    };
    Some(Elementwise { function, a: ElementwiseOperand::View(a), b: ElementwiseOperand::View(b), out })
}

/// Puts a tree in the place of a leaf; false when there is no such leaf.
fn put(tree: &mut Elementwise, leaf: View, inner: &Elementwise) -> bool {
    [&mut tree.a, &mut tree.b].into_iter().any(|operand| match operand {
        ElementwiseOperand::View(view) if *view == leaf => {
            *operand = ElementwiseOperand::Result(Box::new(inner.clone()));
            true
        }
        ElementwiseOperand::View(_) => false,
        ElementwiseOperand::Result(result) => put(result, leaf, inner),
    })
}
