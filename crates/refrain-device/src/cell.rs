//! In which ways a step can be run: as it is or compiled, op by op or replayed from a graph.

use crate::{SCAN_CHUNK, Segment, Step};
use std::fmt;

/// How much of a step is replayed from graphs that were recorded before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Replay {
    /// Nothing: every op is launched.
    #[default]
    None,
    /// The ops between attention and the gated delta rule, which are launched.
    Piecewise,
    /// All of it.
    Full,
}

/// For which steps a cell is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Any step.
    #[default]
    Any,
    /// Steps in which every sequence decodes one token.
    Decode,
    /// Steps that are one piece of one prompt, beginning at a multiple of 64.
    Prefill,
}

/// One way to run some steps. Which one is taken is decided for each step, by what was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// Whether the program has gone through the passes.
    pub compiled: bool,
    /// How much comes from graphs.
    pub replay: Replay,
    /// For which steps.
    pub part: Part,
    /// Rows for which the graphs were recorded: steps with fewer rows are padded to it, a prefill has exactly so many;
    /// 0 without graphs.
    pub rows: u32,
}

/// What of a step decides how it is best run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Rows.
    pub rows: u32,
    /// Sequences.
    pub sequences: u32,
    /// Sequences that decode one token.
    pub decodes: u32,
    /// Whether it is one piece of one prompt, from a multiple of 64 on, all of it for the chunked scan.
    pub one_prefill: bool,
    /// Tokens of the longest sequence, those of the step counted.
    pub context: u32,
}

impl Cell {
    /// Op by op, nothing fused, nothing recorded: what every backend can do with every step.
    pub const EAGER: Cell = Cell { compiled: false, replay: Replay::None, part: Part::Any, rows: 0 };

    /// Op by op of the program that has gone through the passes.
    pub const COMPILED: Cell = Cell { compiled: true, ..Cell::EAGER };

    /// Whether a step can be run so.
    pub fn suits(&self, step: &StepShape) -> bool {
        let fits = match self.part {
            Part::Any => true,
            Part::Decode => step.decodes == step.sequences,
            Part::Prefill => return step.one_prefill && step.rows == self.rows,
        };
        fits && (self.replay == Replay::None || step.rows <= self.rows)
    }

    /// Rows that the graphs have and the step has not.
    pub fn padding(&self, step: &StepShape) -> u32 {
        if self.replay == Replay::None { 0 } else { self.rows.saturating_sub(step.rows) }
    }

    /// Short name of the way, without the rows: `eager`, `compiled`, `graph`, `compiled+graph`, `piecewise`,
    /// `compiled+piecewise`.
    pub fn way(&self) -> &'static str {
        match (self.compiled, self.replay) {
            (false, Replay::None) => "eager",
            (true, Replay::None) => "compiled",
            (false, Replay::Full) => "graph",
            (true, Replay::Full) => "compiled+graph",
            (false, Replay::Piecewise) => "piecewise",
            (true, Replay::Piecewise) => "compiled+piecewise",
        }
    }
}

/// The way, and for graphs the part and the rows: `eager`, `compiled+graph(decode, 8)`.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match (self.replay, self.part) {
            (Replay::None, _) => return f.write_str(self.way()),
            (_, Part::Any) => "any",
            (_, Part::Decode) => "decode",
            (_, Part::Prefill) => "prefill",
        };
        write!(f, "{}({part}, {})", self.way(), self.rows)
    }
}

impl Segment {
    /// Whether it is one generated token.
    pub fn decodes(&self) -> bool {
        self.len == 1 && self.scan == 0
    }
}

impl StepShape {
    /// Of a step of these sequences.
    pub fn of(segments: &[Segment]) -> StepShape {
        let narrow = |count: usize| u32::try_from(count).expect("a step's numbers are 32-bit");
        let one_prefill = match segments {
            [segment] => segment.scan == segment.len && (segment.position as usize).is_multiple_of(SCAN_CHUNK),
            _ => false,
        };
        StepShape {
            rows: segments.iter().map(|segment| segment.len).sum(),
            sequences: narrow(segments.len()),
            decodes: narrow(segments.iter().filter(|segment| segment.decodes()).count()),
            one_prefill,
            context: narrow(segments.iter().map(Segment::context).max().unwrap_or(0)),
        }
    }
}

impl Step {
    /// What of it decides how it is best run.
    pub fn shape(&self) -> StepShape {
        StepShape::of(&self.segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(replay: Replay, part: Part, rows: u32) -> Cell {
        Cell { compiled: true, replay, part, rows }
    }

    #[test]
    fn cells_suit_the_steps_they_were_made_for() {
        let decode = StepShape { rows: 3, sequences: 3, decodes: 3, context: 9, one_prefill: false };
        let prefill = StepShape { rows: 128, sequences: 1, decodes: 0, context: 128, one_prefill: true };
        let mixed = StepShape { rows: 130, sequences: 3, decodes: 2, one_prefill: false, ..prefill };
        let cases = [
            (Cell::EAGER, [true, true, true]),
            (cell(Replay::Full, Part::Decode, 4), [true, false, false]),
            (cell(Replay::Full, Part::Decode, 2), [false, false, false]),
            (cell(Replay::Full, Part::Prefill, 128), [false, true, false]),
            (cell(Replay::Full, Part::Prefill, 192), [false, false, false]),
            (cell(Replay::Piecewise, Part::Any, 128), [true, true, false]),
        ];
        for (cell, suits) in cases {
            assert_eq!([decode, prefill, mixed].map(|step| cell.suits(&step)), suits, "{cell}");
        }
        assert_eq!(cell(Replay::Full, Part::Decode, 4).padding(&decode), 1);
        assert_eq!(Cell::EAGER.padding(&mixed), 0);
    }

    #[test]
    fn names_are_those_of_reports() {
        assert_eq!(Cell::EAGER.to_string(), "eager");
        assert_eq!(cell(Replay::Full, Part::Decode, 8).to_string(), "compiled+graph(decode, 8)");
    }
}
