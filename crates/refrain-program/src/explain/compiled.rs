//! What the passes make of a program for steps of some size.

use super::text::{bytes, seconds};
use crate::{Applied, Compiled, ExplainOptions, FEW_ROWS, Program, StepShape, compile};
use serde::Serialize;
use std::fmt;

/// What the passes make of a program for one kind of step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompiledSteps {
    /// What kind of step: `decode of one token`.
    pub steps: String,
    /// Ops of the program as it is.
    pub eager_ops: usize,
    /// Ops of the compiled one.
    pub ops: usize,
    /// Seconds that its ops take at best, one after another, where the ceilings of the machine are known.
    pub seconds: Option<f64>,
    /// What each pass has done, and what that saves in such a step.
    pub passes: Vec<PassEffect>,
}

/// What a pass has done, for one kind of step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PassEffect {
    /// What it has done to the program.
    #[serde(flatten)]
    pub applied: Applied,
    /// Bytes of activations that the step need not move.
    pub step_bytes_saved: u64,
}

/// Decode of one token behind a prompt, and the prompt in one step.
pub(super) fn compiled(program: &Program, options: &ExplainOptions) -> Vec<CompiledSteps> {
    let tokens = options.tokens.get();
    let steps = [
        ("decode of one token".to_owned(), StepShape::decode(1, tokens)),
        (format!("prefill of {tokens} tokens"), StepShape::prefill(tokens)),
    ];
    let explained = |(steps, shape): (String, StepShape)| {
        let range = options.endpoints.iter().map(|&end| end as usize).filter(|&end| end >= shape.tokens()).min();
        let rows = if options.fuses_any_product { FEW_ROWS } else { range.unwrap_or(usize::MAX) };
        for_steps(program, options, steps, &shape, rows)
    };
    steps.map(explained).into()
}

fn for_steps(
    program: &Program,
    options: &ExplainOptions,
    steps: String,
    shape: &StepShape,
    most_rows: usize,
) -> CompiledSteps {
    // Of a prompt the step in one kernel does nothing: its chunks go through the ops that the pass has put together.
    let mut counted = options.passes;
    let decodes = shape.segments.iter().all(|&(tokens, _)| tokens == 1);
    counted.fuse_gdn_decode &= decodes;
    let Compiled { program: after, mut applied } = compile(program, &counted, most_rows);
    for pass in applied.iter_mut().filter(|pass| pass.pass == "fuse_gdn_decode" && options.passes.fuse_gdn_decode) {
        pass.not_applicable = pass.not_applicable.take().map(|why| match decodes {
            true => why,
            false => "only where a sequence decodes one token".to_owned(),
        });
    }
    let effect = |applied: Applied| {
        let saved = applied.bytes_saved;
        let (tokens, logit_rows) = (shape.tokens() as u64, shape.logit_rows as u64);
        PassEffect { step_bytes_saved: saved.per_token * tokens + saved.per_logit_row * logit_rows, applied }
    };
    CompiledSteps {
        steps,
        eager_ops: program.nodes.len(),
        ops: after.nodes.len(),
        seconds: options.ceilings.map(|ceilings| after.estimate(shape, &ceilings).seconds),
        passes: applied.into_iter().map(effect).collect(),
    }
}

impl fmt::Display for CompiledSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CompiledSteps { steps, eager_ops, ops, seconds: time, passes } = self;
        let saved: u64 = passes.iter().map(|pass| pass.step_bytes_saved).sum();
        let saved = bytes(saved as usize);
        let time = time.map_or(String::new(), |time| format!(", op by op {}", seconds(time)));
        writeln!(f, "\n  For {steps}: {ops} ops of {eager_ops}, {saved} less to move{time}")?;
        writeln!(f, "    {:<26} {:>6} {:>9} {:>11}", "pass", "places", "launches", "bytes")?;
        for PassEffect { applied, step_bytes_saved } in passes {
            let Applied { pass, places, launches_saved, not_applicable, .. } = applied;
            match not_applicable {
                Some(reason) => writeln!(f, "    {pass:<26} not applicable: {reason}")?,
                None => {
                    let saved = bytes(*step_bytes_saved as usize);
                    writeln!(f, "    {pass:<26} {places:>6} {launches_saved:>9} {saved:>11}")?;
                }
            }
        }
        Ok(())
    }
}
