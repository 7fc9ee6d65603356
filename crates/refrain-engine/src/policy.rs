//! Which way each step is run: the cell that has been measured to be the fastest for such steps, or a fixed rule.
//!
//! Steps are sorted into kinds ([`Alike`]): the same phase, rows, and context, each within a range. Each kind has the
//! cells that suit it, with a moving average of the seconds that a step takes, first from a calibration before the first
//! request, then from every step. The cell with the least stays the choice until another is better by more than a
//! hysteresis; now and then another one is tried for a few steps, at a bounded cost.
//!
//! Nothing here reads a clock or knows a device: times are given, and the same calls give the same cells.

mod average;
mod calibrate;
mod entry;
mod mode;
mod ranges;
mod report;
mod synthetic;
#[cfg(test)]
mod tests;

pub use average::Average;
pub use calibrate::{Bench, Calibration};
pub use mode::PolicyMode;
pub use ranges::{Alike, Phase, Span};
pub use report::{CellSteps, PolicyEntry};
pub use synthetic::StepWorld;

use entry::{Entry, Spent};
use ranges::Ranges;
use refrain_device::{Cell, StepLimits, StepShape};
use std::collections::VecDeque;

/// Chooses cells and learns what they cost.
#[derive(Clone, Debug)]
pub struct Policy {
    mode: PolicyMode,
    limits: StepLimits,
    ranges: Ranges,
    entries: Vec<Entry>,
    /// Steps that may have begun before the oldest is finished.
    depth: usize,
    /// Steps that have begun, oldest first.
    flying: VecDeque<Flying>,
    /// When the last step was finished, in seconds.
    finished: f64,
    spent: Spent,
}

/// A step that has begun.
#[derive(Clone, Copy, Debug)]
struct Flying {
    entry: usize,
    candidate: usize,
    /// When, in seconds.
    begun: f64,
    /// Whether another was on its way then.
    behind: bool,
    /// Whether it is traced.
    traced: bool,
}

impl Policy {
    /// A policy over the cells of a backend, [`Cell::EAGER`] first, that knows nothing yet. Up to `depth` steps begin
    /// before the oldest is finished.
    pub fn new(mode: PolicyMode, cells: &[Cell], limits: &StepLimits, depth: usize) -> Policy {
        let ranges = Ranges::new(cells, limits);
        let entries = (0..ranges.count()).map(|index| Entry::new(&ranges.alike(index), cells)).collect();
        Policy {
            mode,
            limits: *limits,
            ranges,
            entries,
            depth,
            flying: VecDeque::with_capacity(depth),
            finished: 0.0,
            spent: Spent::default(),
        }
    }

    /// The rule.
    pub fn mode(&self) -> PolicyMode {
        self.mode
    }

    /// Chooses by another rule from the next step on. What was measured stays, and nothing is learnt while a fixed rule
    /// holds.
    pub fn set_mode(&mut self, mode: PolicyMode) {
        self.mode = mode;
    }

    /// The cell in which a step would be run now.
    pub fn choose(&self, step: &StepShape) -> Cell {
        let entry = &self.entries[self.ranges.index(step)];
        entry.candidates[entry.choose(self.mode)].cell
    }

    /// Whether a step is better run as two: its decoding sequences, then the others. Each part reads the weights, so that
    /// is rare; where launches cost much, replaying the one may be worth it.
    pub fn splits(&mut self, whole: &StepShape, decoding: &StepShape, others: &StepShape) -> bool {
        let known = |step: &StepShape| self.entries[self.ranges.index(step)].known();
        if self.mode != PolicyMode::Measured {
            return false;
        }
        let (Some(decoding), Some(others)) = (known(decoding), known(others)) else { return false };
        self.entries[self.ranges.index(whole)].splits(decoding + others)
    }

    /// A step begins at `now`, in seconds since any moment, in the cell that this gives.
    pub fn begin(&mut self, step: &StepShape, now: f64) -> Cell {
        self.begin_step(step, now, false)
    }

    /// The same of a step that is traced. Nothing is learnt from it, and nothing tried: a trace makes steps slower, and
    /// those most that are many launches.
    pub fn begin_traced(&mut self, step: &StepShape, now: f64) -> Cell {
        self.begin_step(step, now, true)
    }

    fn begin_step(&mut self, step: &StepShape, now: f64, traced: bool) -> Cell {
        let index = self.ranges.index(step);
        let entry = &mut self.entries[index];
        if traced {
            entry.stop_trying();
        } else if self.mode == PolicyMode::Measured {
            // With several steps on their way the first and the last of a burst say nothing about the cell.
            let burst = if self.depth > 1 { self.depth + 2 } else { 1 };
            entry.advance(burst as u32, &self.spent);
        }
        let candidate = entry.choose(self.mode);
        let chosen = &mut entry.candidates[candidate];
        chosen.steps += 1;
        chosen.padding += u64::from(chosen.cell.padding(step));
        let behind = !self.flying.is_empty();
        self.flying.push_back(Flying { entry: index, candidate, begun: now, behind, traced });
        debug_assert!(chosen.cell.suits(step), "{} for {step:?}", chosen.cell);
        chosen.cell
    }

    /// The oldest step that has begun was finished at `now`.
    ///
    /// # Panics
    /// When none has begun.
    pub fn finish(&mut self, now: f64) {
        let step = self.flying.pop_front().expect("a step has begun");
        // What its user waited for it alone: not for the steps before it.
        let seconds = now - step.begun.max(self.finished);
        self.finished = now;
        // Where steps overlap, a step's time has the next one's beginning in it, so that it counts only if that was run
        // alike. Other phases than decode are long enough for it not to matter.
        let overlaps = self.depth > 1 && self.ranges.phase(step.entry) == Phase::Decode;
        let alike =
            |next: &Flying| (next.entry, next.candidate, next.traced) == (step.entry, step.candidate, step.traced);
        let next = self.flying.front().is_some_and(alike);
        let counts = !overlaps || step.behind && next;
        let entry = &mut self.entries[step.entry];
        if self.mode == PolicyMode::Measured && !step.traced {
            entry.spend(step.candidate, seconds, counts, &mut self.spent);
            if counts {
                entry.measured(step.candidate, seconds);
            }
        } else if counts {
            entry.candidates[step.candidate].fixed.add(seconds);
        }
    }

    /// Since when the device has had nothing but the oldest step that has begun, and the seconds that such a step takes.
    /// `None` where none was measured.
    pub fn oldest(&self) -> Option<(f64, f64)> {
        let step = self.flying.front()?;
        let candidate = &self.entries[step.entry].candidates[step.candidate];
        let learns = self.mode == PolicyMode::Measured && !step.traced;
        let average = if learns { candidate.average } else { candidate.fixed };
        (average.samples > 0).then_some((step.begun.max(self.finished), average.seconds))
    }

    /// The newest step that has begun came to nothing.
    pub fn fail_newest(&mut self) {
        self.flying.pop_back();
    }

    /// The oldest step that has begun came to nothing.
    pub fn fail_oldest(&mut self) {
        self.flying.pop_front();
    }
}
