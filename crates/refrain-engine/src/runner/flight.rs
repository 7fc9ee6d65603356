//! A step between its beginning and its end.

use crate::scheduler::{Rank, State, StepPlan};
use refrain_device::Step;
use std::ops::Range;

/// A step that has begun, as far as its result will be worked into the requests.
pub(super) struct Flight {
    /// The sequences in it, in the order of their logit rows.
    pub segments: Vec<FlightSegment>,
    /// Its tokens.
    pub tokens: usize,
    /// Its logit rows.
    pub logit_rows: usize,
    /// Whether it gives logits, so that the host chooses.
    pub wants_logits: bool,
    /// Why it has not begun after all. It fails in its turn, when the steps before it have ended.
    pub failed: Option<String>,
}

/// One sequence's part of it.
pub(super) struct FlightSegment {
    /// The sequence; it may have ended meanwhile.
    pub rank: Rank,
    /// Prompt positions whose log-probabilities it gives.
    pub prompt: Range<usize>,
    /// The logit row of the first of them.
    first_row: usize,
    /// Whether the next token of the sequence is chosen.
    pub chooses: bool,
}

impl FlightSegment {
    /// The logit rows of [`FlightSegment::prompt`].
    pub fn prompt_rows(&self) -> Range<usize> {
        self.first_row..self.first_row + self.prompt.len()
    }

    /// The logit row in which the next token is chosen, if one is.
    pub fn next_row(&self) -> Option<usize> {
        self.chooses.then_some(self.prompt_rows().end)
    }
}

impl Flight {
    /// The step that was built from `plan`; from now on `state` counts what it computes and chooses.
    pub fn new(plan: &StepPlan, state: &mut State, step: &Step) -> Self {
        let mut rows = 0;
        let segments = plan.segments.iter().map(|planned| {
            let sequence = state.running_mut(planned.rank).expect("the plan schedules running sequences");
            let (prompt, first_row) = (sequence.prompt_rows(planned.end()), rows);
            let chooses = sequence.advance(planned.end());
            rows += prompt.len() + usize::from(chooses);
            FlightSegment { rank: planned.rank, prompt, first_row, chooses }
        });
        Self {
            segments: segments.collect(),
            tokens: step.tokens.len(),
            logit_rows: step.logit_rows.len(),
            wants_logits: step.wants_logits(),
            failed: None,
        }
    }

    /// The logit row in which the next token of a sequence is chosen.
    pub fn row_of(&self, rank: Rank) -> Option<usize> {
        self.segments.iter().find(|segment| segment.rank == rank)?.next_row()
    }
}
