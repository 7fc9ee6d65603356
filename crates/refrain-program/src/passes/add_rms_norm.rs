//! The addition to the residual stream with the norm that follows: the sum is not read again.

use super::Pass;
use super::fuse::{fuse, next_use, pair};
use crate::{Op, Program};

/// [`Op::Add`], [`Op::RmsNorm`] to [`Op::AddRmsNorm`].
pub(super) struct FuseAddRmsNorm;

impl Pass for FuseAddRmsNorm {
    fn name(&self) -> &'static str {
        "fuse_add_rms_norm"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, |program, index| {
            let Op::Add { a, b, out: sum } = program.nodes[index].op else { return None };
            let next = next_use(program, index, sum)?;
            match program.nodes[next].op {
                Op::RmsNorm { x, weight, eps, out } if x == sum => {
                    pair(index, next, Op::AddRmsNorm { a, b, sum, weight, eps, out })
                }
                _ => None,
            }
        })
    }

    fn looks_for(&self) -> &'static str {
        "sum outside of products whose norm is next"
    }
}
