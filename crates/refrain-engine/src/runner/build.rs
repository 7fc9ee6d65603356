//! Turns a plan into the step that a backend executes.

use super::Requests;
use crate::scheduler::{State, StepPlan};
use refrain_device::{Segment, Step};

/// Fills `step` from a plan that has been applied to `state`. The logit rows of a segment are those of its prompt
/// positions that want log-probabilities, then, if the segment reaches the last known token, the row to choose from.
pub(super) fn build_step(step: &mut Step, plan: &StepPlan, state: &mut State, requests: &Requests) {
    let narrow = |value: usize| u32::try_from(value).expect("a step's numbers are 32-bit");
    step.tokens.clear();
    step.segments.clear();
    step.block_table.clear();
    step.logit_rows.clear();
    for planned in &plan.segments {
        let sequence = state.running_mut(planned.rank).expect("the plan schedules running sequences");
        let (row, end) = (step.tokens.len(), planned.end());
        step.segments.push(Segment {
            row: narrow(row),
            len: narrow(planned.tokens),
            position: narrow(planned.position),
            scan: narrow(planned.scan),
            slot: sequence.slot.expect("a running sequence has a slot"),
            blocks: narrow(step.block_table.len()),
            num_blocks: narrow(sequence.blocks.len()),
        });
        step.tokens.extend_from_slice(&requests[&planned.rank].tokens[planned.position..end]);
        step.block_table.extend_from_slice(&sequence.blocks);
        let row_of = |position: usize| narrow(row + position - planned.position);
        step.logit_rows.extend(sequence.prompt_rows(end).map(row_of));
        if end == sequence.known {
            step.logit_rows.push(row_of(end - 1));
        }
    }
}
