//! Where every activation lies in one arena: a static plan by liveness.

use crate::{Program, Rows, TensorId};

/// Every offset is a multiple of this many bytes: a cache line, and the widest vector load.
pub const ACTIVATION_ALIGNMENT: usize = 64;

/// Offsets of all activations in one arena. Tensors that are live at the same time never overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivationPlan {
    /// Offset in bytes of each tensor, by [`TensorId`]; multiples of [`ACTIVATION_ALIGNMENT`]. 0 for a tensor that no
    /// op writes.
    pub offsets: Vec<usize>,
    /// Size of the arena in bytes.
    pub bytes: usize,
}

/// The ops between which a tensor's content matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Index of the op that writes it first.
    pub first: usize,
    /// Index of the op that uses it last, included; the number of ops for the logits.
    pub last: usize,
}

impl Lifetime {
    /// Whether two tensors are live at the same op.
    pub fn overlaps(self, other: Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl Program {
    /// For each tensor the ops between which it is live; none for a tensor that no op uses.
    pub fn lifetimes(&self) -> Vec<Option<Lifetime>> {
        let mut lifetimes: Vec<Option<Lifetime>> = vec![None; self.tensors.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for view in node.op.views() {
                let lifetime = &mut lifetimes[view.tensor.0];
                lifetime.get_or_insert(Lifetime { first: index, last: index }).last = index;
            }
        }
        if let Some(lifetime) = &mut lifetimes[self.logits.tensor.0] {
            lifetime.last = self.nodes.len();
        }
        lifetimes
    }

    /// Bytes of a tensor in a step of so many tokens and logit rows.
    pub fn tensor_bytes(&self, id: TensorId, tokens: usize, logit_rows: usize) -> usize {
        let tensor = self.tensor(id);
        let rows = match tensor.rows {
            Rows::Tokens => tokens,
            Rows::Logits => logit_rows,
        };
        rows * tensor.width * tensor.dtype.bytes()
    }

    /// Plans the activations of steps of at most so many tokens and logit rows: the largest tensors first, each into
    /// the tightest gap that the tensors live at the same time leave, else behind them.
    pub fn activation_plan(&self, max_tokens: usize, max_logit_rows: usize) -> ActivationPlan {
        let lifetimes = self.lifetimes();
        let size = |id: usize| {
            self.tensor_bytes(TensorId(id), max_tokens, max_logit_rows).next_multiple_of(ACTIVATION_ALIGNMENT)
        };
        let mut by_size: Vec<(usize, usize, Lifetime)> =
            lifetimes.iter().enumerate().filter_map(|(id, lifetime)| Some((id, size(id), (*lifetime)?))).collect();
        by_size.sort_by_key(|&(id, size, lifetime)| (std::cmp::Reverse(size), lifetime.first, id));

        let mut plan = ActivationPlan { offsets: vec![0; self.tensors.len()], bytes: 0 };
        let mut placed: Vec<Placed> = Vec::new();
        for (id, size, lifetime) in by_size {
            let start = tightest_gap(&placed, size, lifetime);
            let end = start + size;
            plan.offsets[id] = start;
            plan.bytes = plan.bytes.max(end);
            let at = placed.partition_point(|other| other.start < start);
            placed.insert(at, Placed { start, end, lifetime });
        }
        plan
    }
}

/// A tensor that has its place.
struct Placed {
    start: usize,
    end: usize,
    lifetime: Lifetime,
}

/// The start of the smallest gap of at least `size` bytes between the placed tensors that are live with `lifetime`.
/// `placed` is sorted by start.
fn tightest_gap(placed: &[Placed], size: usize, lifetime: Lifetime) -> usize {
    let mut best: Option<(usize, usize)> = None;
    let mut free_from = 0;
    for other in placed.iter().filter(|other| other.lifetime.overlaps(lifetime)) {
        if other.start >= free_from + size {
            let gap = other.start - free_from;
            if best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, free_from));
            }
        }
        free_from = free_from.max(other.end);
    }
    best.map_or(free_from, |(_, start)| start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BF16, any_config, any_program, execute, qwen_0_8b, separate};
    use proptest::prelude::*;

    /// The plan keeps what it promises, and executing in it gives what separate memory for every tensor gives.
    fn check(program: &Program, tokens: usize, logit_rows: usize) {
        let plan = program.activation_plan(tokens, logit_rows);
        let lifetimes = program.lifetimes();
        let used: Vec<(usize, usize, Lifetime)> = (0..program.tensors.len())
            .filter_map(|id| {
                Some((plan.offsets[id], program.tensor_bytes(TensorId(id), tokens, logit_rows), lifetimes[id]?))
            })
            .collect();
        for (index, &(start, size, lifetime)) in used.iter().enumerate() {
            assert!(start % ACTIVATION_ALIGNMENT == 0 && start + size <= plan.bytes);
            for &(other_start, other_size, other) in &used[..index] {
                let apart = start + size <= other_start || other_start + other_size <= start;
                assert!(apart || !lifetime.overlaps(other), "{plan:?}\n{lifetimes:?}");
            }
        }
        let expected = execute(program, &separate(program, tokens, logit_rows), tokens, logit_rows);
        assert_eq!(execute(program, &plan, tokens, logit_rows), expected);
    }

    proptest! {
        #[test]
        fn live_tensors_never_overlap(program in any_program(), tokens in 1_usize..5) {
            program.validate().unwrap();
            check(&program, tokens, tokens.div_ceil(2));
        }

        #[test]
        fn live_tensors_of_models_never_overlap(config in any_config(), tokens in 1_usize..4) {
            check(&Program::build(&config, &BF16).unwrap(), tokens, 1);
        }
    }

    #[test]
    fn a_plan_that_overlaps_changes_the_outcome() {
        let program = Program::build(&crate::testing::one_gdn_layer(), &BF16).unwrap();
        let plan = separate(&program, 2, 2);
        let sound = execute(&program, &plan, 2, 2);
        let lifetimes = program.lifetimes();
        for id in 1..program.tensors.len() {
            let mut damaged = plan.clone();
            damaged.offsets[id] = damaged.offsets[id - 1];
            if lifetimes[id].unwrap().overlaps(lifetimes[id - 1].unwrap()) {
                assert_ne!(execute(&program, &damaged, 2, 2), sound, "{}", program.tensors[id].name);
            }
        }
    }

    #[test]
    fn layers_share_their_memory() {
        // The fullest moment is the scan of a GDN layer: residual stream, [qkv | z | b | a], beta and decay in f32,
        // convolution and result in f16. No plan can be smaller than that.
        let program = Program::build(&qwen_0_8b(), &BF16).unwrap();
        let plan = program.activation_plan(2048, 1);
        let columns = 2 * (1024 + 6144 + 2048 + 2 * 16 + 2 * 16) + 6144 + 2048;
        assert_eq!(plan.bytes, 2048 * 2 * columns);
        let sum: usize = (0..program.tensors.len()).map(|id| program.tensor_bytes(TensorId(id), 2048, 1)).sum();
        assert!(sum > 30 * plan.bytes, "{sum}");
    }
}
