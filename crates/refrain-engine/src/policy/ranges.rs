//! Which steps are alike: those of one phase whose rows and context lie in the same ranges. Within a range the same cells
//! suit, and what they cost hardly differs.

use refrain_device::{Cell, Part, Replay, StepLimits, StepShape};

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Every sequence decodes one token.
    Decode,
    /// One piece of one prompt, beginning at a multiple of 64.
    Prefill,
    /// Anything else.
    Mixed,
}

impl Phase {
    /// All of them, in the order of the table.
    pub const ALL: [Phase; 3] = [Phase::Decode, Phase::Prefill, Phase::Mixed];

    /// What a step does.
    pub fn of(step: &StepShape) -> Phase {
        match step {
            step if step.decodes == step.sequences => Phase::Decode,
            step if step.one_prefill => Phase::Prefill,
            _ => Phase::Mixed,
        }
    }

    /// As metrics name it: `decode`, `prefill`, `mixed`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Decode => "decode",
            Phase::Prefill => "prefill",
            Phase::Mixed => "mixed",
        }
    }
}

/// Consecutive numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub from: u32,
    /// The last.
    pub to: u32,
}

/// Ranges of one number.
#[derive(Clone, Debug)]
struct Axis {
    first: u32,
    /// Last number of each range, ascending; greater ones belong to the last range, too.
    ends: Vec<u32>,
}

impl Axis {
    fn new(first: u32, last: u32, ends: impl IntoIterator<Item = u32>) -> Axis {
        let mut ends: Vec<u32> = ends.into_iter().filter(|end| (first..last).contains(end)).collect();
        ends.push(last);
        ends.sort_unstable();
        ends.dedup();
        Axis { first, ends }
    }

    fn index(&self, number: u32) -> usize {
        self.ends.partition_point(|&end| end < number).min(self.ends.len() - 1)
    }

    fn span(&self, index: usize) -> Span {
        let from = index.checked_sub(1).map_or(self.first, |before| self.ends[before] + 1);
        Span { from, to: self.ends[index] }
    }
}

/// Steps that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alike {
    /// What they do.
    pub phase: Phase,
    /// Their rows.
    pub rows: Span,
    /// Tokens of their longest sequence.
    pub context: Span,
}

/// Contexts up to this have one range: attention costs little there.
const SHORT_CONTEXT: u32 = 1024;

/// All ranges.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    /// Of the rows, by phase.
    rows: [Axis; 3],
    contexts: Axis,
}

impl Ranges {
    /// Ranges within which the same cells suit. Each size of a graph is a range of its own, so that steps which need no
    /// padding are told from those that need some.
    pub fn new(cells: &[Cell], limits: &StepLimits) -> Ranges {
        let narrow = |value: usize| u32::try_from(value).expect("a step's numbers are 32-bit");
        let (max_rows, max_sequences) = (narrow(limits.max_tokens), narrow(limits.max_segments));
        let edges = |parts: &'static [Part]| {
            let made = cells.iter().filter(|cell| cell.replay != Replay::None && parts.contains(&cell.part));
            made.flat_map(|cell| [cell.rows.saturating_sub(1), cell.rows])
        };
        let doubling = |first: u32| std::iter::successors(Some(first), |end| end.checked_mul(2));
        // Products of many rows change their way between powers of two.
        let finer = || doubling(16).flat_map(|end| [end, end + end / 2]);
        Ranges {
            rows: [
                Axis::new(1, max_sequences, doubling(1).chain(edges(&[Part::Any, Part::Decode]))),
                Axis::new(1, max_rows, finer().chain(edges(&[Part::Any, Part::Prefill]))),
                Axis::new(1, max_rows, finer().chain(edges(&[Part::Any]))),
            ],
            contexts: Axis::new(1, narrow(limits.max_model_len), doubling(SHORT_CONTEXT)),
        }
    }

    /// How many kinds of steps there are.
    pub fn count(&self) -> usize {
        Phase::ALL.into_iter().map(|phase| self.size(phase)).sum()
    }

    fn size(&self, phase: Phase) -> usize {
        self.rows[phase as usize].ends.len() * self.contexts.ends.len()
    }

    fn first(&self, phase: Phase) -> usize {
        Phase::ALL.into_iter().take(phase as usize).map(|phase| self.size(phase)).sum()
    }

    /// Number of the kind to which a step belongs.
    pub fn index(&self, step: &StepShape) -> usize {
        let phase = Phase::of(step);
        let rows = self.rows[phase as usize].index(step.rows);
        self.first(phase) + rows * self.contexts.ends.len() + self.contexts.index(step.context)
    }

    /// What the steps of a kind do.
    pub fn phase(&self, index: usize) -> Phase {
        Phase::ALL.into_iter().rfind(|&phase| self.first(phase) <= index).expect("the first begins at 0")
    }

    /// The kind with this number.
    pub fn alike(&self, index: usize) -> Alike {
        let phase = self.phase(index);
        let (place, contexts) = (index - self.first(phase), self.contexts.ends.len());
        Alike {
            phase,
            rows: self.rows[phase as usize].span(place / contexts),
            context: self.contexts.span(place % contexts),
        }
    }
}

impl Alike {
    /// A step of this kind, if there can be one: with the fewest rows where these need padding, so that a graph which
    /// wins there wins everywhere in the range; else with the most. It has the longest context.
    pub fn example(&self, cells: &[Cell]) -> Option<StepShape> {
        let with = |rows| self.with_rows(rows);
        let fewest = with(self.rows.from);
        let padded = |cell: &Cell| fewest.is_some_and(|step| cell.suits(&step) && cell.padding(&step) > 0);
        if cells.iter().any(padded) { fewest } else { with(self.rows.to).or(fewest) }
    }

    fn with_rows(&self, rows: u32) -> Option<StepShape> {
        let context = self.context.to;
        match self.phase {
            Phase::Decode => Some(StepShape { rows, sequences: rows, decodes: rows, one_prefill: false, context }),
            Phase::Prefill => {
                // It begins at a multiple of 64, so a longest context may have to be a little shorter.
                let position = context.checked_sub(rows)? / 64 * 64;
                let context = position + rows;
                let possible = context >= self.context.from;
                possible.then_some(StepShape { rows, sequences: 1, decodes: 0, one_prefill: true, context })
            }
            Phase::Mixed => {
                // A sequence that decodes, and a prompt.
                let possible = rows >= 2 && self.context.from.max(rows - 1) <= context;
                possible.then_some(StepShape { rows, sequences: 2, decodes: 1, one_prefill: false, context })
            }
        }
    }
}
