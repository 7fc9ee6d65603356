//! Decides what the next step computes. A pure function: it looks at the state and changes nothing.

use super::state::{Rank, Sequence, State};
use refrain_device::{SCAN_CHUNK, StepLimits};

/// Part of a sequence that a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedSegment {
    /// The sequence.
    pub rank: Rank,
    /// Position of the first token.
    pub position: usize,
    /// Number of tokens, at least 1.
    pub tokens: usize,
    /// How many of them are prompt tokens. The generated ones go through the one-token recurrence, so that recomputing
    /// them gives the very bits that decoding gave.
    pub scan: usize,
}

impl PlannedSegment {
    /// Tokens of the sequence that are computed after the step.
    pub fn end(&self) -> usize {
        self.position + self.tokens
    }
}

/// What the next step does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StepPlan {
    /// What is computed: decode rows, then prompt chunks, each group in line order. Empty only when nobody is there, or
    /// whoever is waits for the step in flight.
    pub segments: Vec<PlannedSegment>,
    /// Running sequences that lose their blocks and slot and go back in line.
    pub preempted: Vec<Rank>,
    /// Waiting sequences that get a slot.
    pub admitted: Vec<Rank>,
}

/// What is left of a step's budgets.
struct Budget {
    tokens: usize,
    logit_rows: usize,
    blocks: usize,
}

impl Budget {
    /// The longest chunk of `sequence` that can be computed now; 0 when none can.
    ///
    /// A chunk ends at a multiple of [`SCAN_CHUNK`] or at the last known token: then the chunked scan cuts a prompt at
    /// the same places whatever else is in the batch, and gives the same bits.
    fn chunk(&self, sequence: &Sequence) -> usize {
        let start = sequence.computed;
        let fits = |end: usize| {
            end - start <= self.tokens
                && sequence.logit_rows(end) <= self.logit_rows
                && sequence.blocks_short(end) <= self.blocks
        };
        if fits(sequence.known) {
            return sequence.known - start;
        }
        // All three needs grow with `end`, so the longest that fits is found from the token budget downwards.
        let mut end = sequence.known.min(start + self.tokens) / SCAN_CHUNK * SCAN_CHUNK;
        while end > start && !fits(end) {
            end -= SCAN_CHUNK;
        }
        end.saturating_sub(start)
    }

    /// Whether the shortest chunk of `sequence` would fit if there were more blocks.
    fn lacks_only_blocks(&self, sequence: &Sequence) -> bool {
        let end = ((sequence.computed / SCAN_CHUNK + 1) * SCAN_CHUNK).min(sequence.known);
        end - sequence.computed <= self.tokens
            && sequence.logit_rows(end) <= self.logit_rows
            && sequence.blocks_short(end) > self.blocks
    }

    fn spend(&mut self, sequence: &Sequence, tokens: usize) -> PlannedSegment {
        let (position, end) = (sequence.computed, sequence.computed + tokens);
        self.tokens -= tokens;
        self.logit_rows -= sequence.logit_rows(end);
        self.blocks -= sequence.blocks_short(end);
        let scan = end.min(sequence.prompt).saturating_sub(position);
        PlannedSegment { rank: sequence.rank, position, tokens, scan }
    }

    fn refund(&mut self, sequence: &Sequence, segment: &PlannedSegment) {
        self.tokens += segment.tokens;
        self.logit_rows += sequence.logit_rows(segment.end());
        self.blocks += sequence.blocks_short(segment.end());
    }
}

/// Plans the next step.
///
/// 1. Every running sequence that only lacks its last token gets one row: decoding never waits for a prompt.
/// 2. Running sequences with more to compute get chunks, in line order.
/// 3. Waiting sequences are admitted in line order, as long as a slot is free and the blocks for all their known tokens
///    are free and not spoken for by chunks that still have to run. The first one that can't be admitted stops it, so
///    nobody is overtaken.
///
/// A running sequence that finds no free block preempts the last one in line behind it; the last one itself pauses with
/// what it has, until somebody before it finishes or takes its blocks. So the first one in line is never preempted,
/// always computes something, and finishes: nobody starves. (The pool holds at least one sequence of full length, and a
/// step at least `max_num_seqs + 64` tokens and rows; [`crate::EngineConfig::validate`] sees to it.)
///
/// Sequences that wait for a token of the step in flight keep what they hold and are left out. That spoils the promise
/// above, so a plan that preempts is carried out only when nothing is in flight.
pub(crate) fn plan(state: &State, limits: &StepLimits) -> StepPlan {
    let mut plan = StepPlan::default();
    let mut budget =
        Budget { tokens: limits.max_tokens, logit_rows: limits.max_logit_rows, blocks: state.blocks.free() };
    // Running sequences from `end` on are preempted.
    let mut end = state.running.len();

    for decodes in [true, false] {
        let mut index = 0;
        while index < end {
            let sequence = &state.running[index];
            index += 1;
            if sequence.waits || sequence.decodes() != decodes {
                continue;
            }
            let mut tokens = budget.chunk(sequence);
            while tokens == 0 && budget.lacks_only_blocks(sequence) && end > index {
                end -= 1;
                preempt(&state.running[end], &mut plan, &mut budget);
                tokens = budget.chunk(sequence);
            }
            if tokens > 0 {
                plan.segments.push(budget.spend(sequence, tokens));
            }
        }
    }

    if plan.preempted.is_empty() {
        admit(state, limits, &mut plan, &mut budget);
    }
    plan
}

/// Takes a running sequence out of the plan and makes its blocks available.
fn preempt(sequence: &Sequence, plan: &mut StepPlan, budget: &mut Budget) {
    if let Some(index) = plan.segments.iter().position(|segment| segment.rank == sequence.rank) {
        budget.refund(sequence, &plan.segments.remove(index));
    }
    budget.blocks += sequence.blocks.len();
    plan.preempted.push(sequence.rank);
}

fn admit(state: &State, limits: &StepLimits, plan: &mut StepPlan, budget: &mut Budget) {
    // Blocks that running prompts will still need after this step.
    let mut promised: usize = state
        .running
        .iter()
        .map(|sequence| {
            let scheduled = plan.segments.iter().find(|segment| segment.rank == sequence.rank);
            let end = scheduled.map_or(sequence.computed, PlannedSegment::end);
            sequence.blocks_short(sequence.known) - sequence.blocks_short(end)
        })
        .sum();
    let mut seats = limits.max_segments.saturating_sub(state.running.len()).min(state.slots.free());
    for sequence in state.waiting.values() {
        // One token more than is known, so that it isn't preempted right at its first own token.
        let needed = sequence.blocks_short(sequence.known + 1);
        if seats == 0 || needed + promised > budget.blocks {
            return;
        }
        let tokens = budget.chunk(sequence);
        if tokens == 0 {
            return;
        }
        let segment = budget.spend(sequence, tokens);
        promised += sequence.blocks_short(sequence.known) - sequence.blocks_short(segment.end());
        plan.admitted.push(sequence.rank);
        plan.segments.push(segment);
        seats -= 1;
    }
}
