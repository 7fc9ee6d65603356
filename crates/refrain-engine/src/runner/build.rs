//! Turns a plan into the step that a backend executes.

use super::Requests;
use super::flight::Flight;
use crate::sampling::device::given_row;
use crate::scheduler::{State, StepPlan};
use refrain_device::{Carried, RowSampling, SamplingLimits, Segment, Step};

/// Fills `step` from a plan that has been applied to `state`. The logit rows of a segment are those of its prompt
/// positions that want log-probabilities, then, if the segment reaches the last known token, the row to choose from.
///
/// That last token may be one that the step in flight, `before`, is about to choose: the device puts it in.
pub(super) fn build_step(
    step: &mut Step,
    plan: &StepPlan,
    state: &mut State,
    requests: &Requests,
    before: Option<&Flight>,
) {
    let narrow = |value: usize| u32::try_from(value).expect("a step's numbers are 32-bit");
    step.tokens.clear();
    step.carried.clear();
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
        let tokens = &requests[&planned.rank].tokens;
        step.tokens.extend_from_slice(&tokens[planned.position..end.min(tokens.len())]);
        if end > tokens.len() {
            let chosen = before.and_then(|flight| flight.row_of(planned.rank));
            let logit_row = narrow(chosen.expect("a token that is not there is chosen in the step in flight"));
            step.carried.push(Carried { row: narrow(step.tokens.len()), logit_row });
            step.tokens.push(0);
        }
        step.block_table.extend_from_slice(&sequence.blocks);
        let row_of = |position: usize| narrow(row + position - planned.position);
        step.logit_rows.extend(sequence.prompt_rows(end).map(row_of));
        if end == sequence.known {
            step.logit_rows.push(row_of(end - 1));
        }
    }
}

/// Tells a device that chooses tokens by itself what is wanted of each logit row of `step`. Where that is more than it
/// can do, the step asks for the logits.
pub(super) fn build_sampling(
    step: &mut Step,
    plan: &StepPlan,
    state: &mut State,
    requests: &Requests,
    eos: &[u32],
    limits: Option<SamplingLimits>,
) {
    step.sampling.clear();
    step.adjustments.clear();
    let Some(limits) = limits else { return };
    for planned in &plan.segments {
        let sequence = state.running_mut(planned.rank).expect("the plan schedules running sequences");
        let (active, end) = (&requests[&planned.rank], planned.end());
        let top = active.params.prompt_logprobs.unwrap_or(0);
        let prompt_rows = sequence.prompt_rows(end);
        step.sampling.extend(prompt_rows.map(|position| given_row(active.tokens[position + 1], top)));
        if end == sequence.known {
            let place = end - active.prompt;
            let row = active.sampling.row(&active.params, active.output(), place, eos, &mut step.adjustments);
            step.sampling.push(row);
        }
    }
    let too_many_top = |row: &RowSampling| row.logprobs.is_some_and(|top| top as usize > limits.max_top);
    if step.adjustments.len() > limits.max_adjustments || step.sampling.iter().any(too_many_top) {
        step.sampling.clear();
        step.adjustments.clear();
    }
}
