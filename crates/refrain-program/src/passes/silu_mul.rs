//! `silu(gate) * up` as the epilogue of the product that gives both.

use super::Pass;
use super::fuse::{fuse, next_use, pair};
use super::linear_add::plain_product;
use crate::{Epilogue, Op, Program, View};

/// [`Op::Linear`], [`Op::SiluMul`] to [`Op::FusedLinear`].
pub(super) struct FuseSiluMul;

impl Pass for FuseSiluMul {
    fn name(&self) -> &'static str {
        "fuse_silu_mul"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, |program, index| {
            let (prologue, weight, staged) = plain_product(&program.nodes[index].op)?;
            let next = next_use(program, index, staged)?;
            match program.nodes[next].op {
                Op::SiluMul { gate, up, out } if is_halves(staged, gate, up) => {
                    let epilogue = Epilogue::SiluMul { staged };
                    pair(index, next, Op::FusedLinear { prologue, weight, epilogue, out })
                }
                _ => None,
            }
        })
    }

    fn looks_for(&self) -> &'static str {
        "product of a gate and what is gated"
    }
}

fn is_halves(whole: View, gate: View, up: View) -> bool {
    gate.tensor == whole.tensor
        && gate.column == whole.column
        && up == View { column: gate.end(), ..gate }
        && up.end() == whole.end()
}
