//! Norm and rotation of queries and keys with the append to the cache, which then needs no keys in memory.

use super::Pass;
use super::fuse::{Candidate, fuse, last_change};
use crate::{Op, Program, QkNormRopeAppend};

/// Two [`Op::QkNormRope`] and an [`Op::KvAppend`] to [`Op::QkNormRopeAppend`].
pub(super) struct FuseQkNormRopeAppend;

impl Pass for FuseQkNormRopeAppend {
    fn name(&self) -> &'static str {
        "fuse_qk_norm_rope_append"
    }

    fn run(&self, program: &mut Program) -> usize {
        fuse(program, find)
    }

    fn looks_for(&self) -> &'static str {
        "append to a cache after the norm and rotation of queries and keys"
    }
}

fn find(program: &Program, index: usize) -> Option<Candidate> {
    let op = |index: usize| &program.nodes[index].op;
    let Op::KvAppend { k: k_staged, v, state, shape } = *op(index) else { return None };
    let keys = last_change(program, index, k_staged)?;
    let attention = (index + 1..program.nodes.len()).find(|&later| op(later).states().contains(&state))?;
    let Op::Attention { q: q_out, .. } = *op(attention) else { return None };
    let queries = last_change(program, attention, q_out)?;
    let Op::QkNormRope { x: k, weight: k_weight, heads: kv_heads, rotary_dim, theta, eps, out } = *op(keys) else {
        return None;
    };
    let same_keys = out == k_staged && kv_heads == shape.num_kv_heads;
    let Op::QkNormRope { x: q, weight: q_weight, heads, out, .. } = *op(queries) else { return None };
    let same_rotation = *op(queries) == Op::QkNormRope { x: q, weight: q_weight, heads, rotary_dim, theta, eps, out };
    if !same_keys || !same_rotation || out != q_out || heads != shape.num_heads {
        return None;
    }
    let mut nodes = vec![queries, keys, index];
    nodes.sort_unstable();
    nodes.dedup();
    let fused = QkNormRopeAppend { q, q_weight, q_out, k, k_weight, k_staged, v, state, shape, rotary_dim, theta, eps };
    Some(Candidate { nodes, fused: Op::QkNormRopeAppend(fused) })
}
