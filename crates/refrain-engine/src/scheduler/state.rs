//! What the scheduler knows: who waits, who runs, and what each holds.

use super::plan::StepPlan;
use crate::pool::Pool;
use refrain_device::{BLOCK_TOKENS, PoolSizes};
use std::collections::BTreeMap;

/// Names a sequence and gives its place in line: the smaller one goes first and is preempted last. Two sequences never
/// have the same arrival number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Rank {
    /// Smaller goes first; the same for all under first-come first-served.
    pub priority: i32,
    /// Number of the request in the order of arrival.
    pub arrival: u64,
}

/// One sequence, as far as scheduling goes. Which tokens it has doesn't matter here, only how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Its name and place in line.
    pub rank: Rank,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that are known: the prompt and what was generated. What the step in flight will choose counts, too.
    pub known: usize,
    /// Tokens whose states are computed, `0..=known`, those of the step in flight among them.
    pub computed: usize,
    /// It takes part in no step before the token that the step in flight will choose is there.
    pub waits: bool,
    /// First prompt position whose logits are still wanted for prompt log-probabilities; `prompt` when none are.
    pub logits_from: usize,
    /// Its KV blocks, for exactly the computed tokens.
    pub blocks: Vec<u32>,
    /// Its slot in the state pool, while it runs.
    pub slot: Option<u32>,
}

impl Sequence {
    /// A sequence of which nothing is computed.
    pub fn new(rank: Rank, prompt: usize, prompt_logits: bool) -> Self {
        let logits_from = if prompt_logits { 0 } else { prompt };
        Self { rank, prompt, known: prompt, computed: 0, logits_from, blocks: Vec::new(), slot: None, waits: false }
    }

    /// Whether only its last token is not computed yet, so that its next step is one row.
    pub fn decodes(&self) -> bool {
        self.known - self.computed == 1
    }

    /// Blocks it must get to have `tokens` tokens computed.
    pub fn blocks_short(&self, tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS).saturating_sub(self.blocks.len())
    }

    /// Prompt positions among `computed..end` whose logits are wanted for prompt log-probabilities: position `i` gives
    /// that of prompt token `i + 1`.
    pub fn prompt_rows(&self, end: usize) -> std::ops::Range<usize> {
        let first = self.computed.max(self.logits_from);
        first..end.min(self.prompt - 1).max(first)
    }

    /// Rows of logits that computing up to `end` gives: those of the prompt, and one to choose the next token from.
    pub fn logit_rows(&self, end: usize) -> usize {
        self.prompt_rows(end).len() + usize::from(end == self.known)
    }

    /// Notes that a step computes it up to `end`. Says whether that was its last known token, so that the step chooses
    /// another, which is known from now on.
    pub fn advance(&mut self, end: usize) -> bool {
        if self.logits_from < self.prompt {
            self.logits_from = self.prompt_rows(end).end;
        }
        self.computed = end;
        let chooses = end == self.known;
        self.known += usize::from(chooses);
        chooses
    }
}

/// Everything the scheduler decides from.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Sequences without slot and blocks, the first in line first.
    pub waiting: BTreeMap<Rank, Sequence>,
    /// Sequences that hold a slot, the first in line first.
    pub running: Vec<Sequence>,
    /// KV blocks.
    pub blocks: Pool,
    /// State slots.
    pub slots: Pool,
}

impl State {
    /// Nobody there, pools free.
    pub fn new(pools: PoolSizes) -> Self {
        Self {
            waiting: BTreeMap::new(),
            running: Vec::new(),
            blocks: Pool::new(pools.blocks),
            slots: Pool::new(pools.slots),
        }
    }

    /// Puts a sequence in line.
    pub fn add(&mut self, sequence: Sequence) {
        debug_assert!(sequence.computed == 0 && sequence.blocks.is_empty() && sequence.slot.is_none());
        let other = self.waiting.insert(sequence.rank, sequence);
        assert!(other.is_none(), "two sequences have the same arrival number");
    }

    /// The running sequence of that name.
    pub fn running_mut(&mut self, rank: Rank) -> Option<&mut Sequence> {
        let index = self.running.binary_search_by_key(&rank, |sequence| sequence.rank).ok()?;
        Some(&mut self.running[index])
    }

    /// Takes a sequence out, wherever it is, and frees what it holds.
    pub fn remove(&mut self, rank: Rank) -> Option<Sequence> {
        if let Some(sequence) = self.waiting.remove(&rank) {
            return Some(sequence);
        }
        self.stop_running(rank)
    }

    /// Takes a running sequence out of the list and frees what it holds.
    fn stop_running(&mut self, rank: Rank) -> Option<Sequence> {
        let index = self.running.binary_search_by_key(&rank, |sequence| sequence.rank).ok()?;
        let mut sequence = self.running.remove(index);
        for block in sequence.blocks.drain(..).rev() {
            self.blocks.give(block);
        }
        self.slots.give(sequence.slot.take().expect("a running sequence has a slot"));
        sequence.computed = 0;
        Some(sequence)
    }

    /// Carries a plan out: preempts, admits, and allocates exactly the blocks that the step needs.
    pub fn apply(&mut self, plan: &StepPlan) {
        for &rank in &plan.preempted {
            let sequence = self.stop_running(rank).expect("the plan preempts a running sequence");
            self.waiting.insert(rank, sequence);
        }
        for &rank in &plan.admitted {
            let mut sequence = self.waiting.remove(&rank).expect("the plan admits a waiting sequence");
            sequence.slot = Some(self.slots.take().expect("the plan keeps to the free slots"));
            let index = self.running.partition_point(|other| other.rank < rank);
            self.running.insert(index, sequence);
        }
        for segment in &plan.segments {
            let index = self.running.binary_search_by_key(&segment.rank, |sequence| sequence.rank);
            let sequence = &mut self.running[index.expect("the plan schedules running sequences")];
            for _ in 0..sequence.blocks_short(segment.end()) {
                sequence.blocks.push(self.blocks.take().expect("the plan keeps to the free blocks"));
            }
        }
    }
}
