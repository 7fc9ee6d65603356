//! Convolution, norms and gates of a GDN layer in one op, and that with the scan.

use super::Pass;
use super::fuse::{Candidate, fuse, last_change, pair};
use crate::{GdnPrepare, Op, Program, View};

/// [`Op::GdnConv`], [`Op::L2Norm`], [`Op::GdnGates`] before an [`Op::GdnScan`] to [`Op::GdnPrepare`].
pub(super) struct FuseGdnPrepare;

impl Pass for FuseGdnPrepare {
    fn name(&self) -> &'static str {
        "fuse_gdn_prepare"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, find_prepare)
    }

    fn looks_for(&self) -> &'static str {
        "convolution, norm and gates before a scan"
    }
}

fn find_prepare(program: &Program, index: usize) -> Option<Candidate> {
    let op = |index: usize| &program.nodes[index].op;
    let Op::GdnScan { q, k, v, beta, decay, shape, .. } = *op(index) else { return None };
    let norm = last_change(program, index, q)?;
    let conv = last_change(program, norm, q)?;
    let gates = last_change(program, index, beta)?;
    let Op::L2Norm { x: normed, heads, scaled, scale, eps, out: in_place } = *op(norm) else { return None };
    let Op::GdnConv { x, weight: conv_weight, state: conv_state, kernel, out } = *op(conv) else { return None };
    let Op::GdnGates { b, a, a_log, dt_bias, beta: rates, decay: decays } = *op(gates) else { return None };
    let (conv_x, keys) = (x, shape.num_key_heads);
    let prepare = GdnPrepare {
        x: conv_x,
        conv_weight,
        conv_state,
        kernel,
        shape,
        scale,
        eps,
        b,
        a,
        a_log,
        dt_bias,
        out,
        beta,
        decay,
    };
    let both = View { width: q.width + k.width, ..q };
    let fits = prepare.qkv() == [q, k, v]
        && out.width == prepare.channels()
        && (normed, in_place, heads, scaled) == (both, both, 2 * keys, keys)
        && (rates, decays) == (beta, decay);
    if !fits {
        return None;
    }
    let mut nodes = vec![conv, norm, gates];
    nodes.sort_unstable();
    Some(Candidate { nodes, fused: Op::GdnPrepare(prepare) })
}

/// [`Op::GdnPrepare`], [`Op::GdnScan`] to [`Op::GdnStep`].
pub(super) struct FuseGdnDecode;

impl Pass for FuseGdnDecode {
    fn name(&self) -> &'static str {
        "fuse_gdn_decode"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, |program, index| {
            let Op::GdnScan { q, k, v, beta, decay, state, shape, out } = program.nodes[index].op else { return None };
            let before = last_change(program, index, q)?;
            match program.nodes[before].op {
                Op::GdnPrepare(prepare)
                    if prepare.qkv() == [q, k, v]
                        && (prepare.beta, prepare.decay, prepare.shape) == (beta, decay, shape) =>
                {
                    pair(before, index, Op::GdnStep { prepare, state, out })
                }
                _ => None,
            }
        })
    }

    fn looks_for(&self) -> &'static str {
        "scan after what fuse_gdn_prepare makes"
    }
}
