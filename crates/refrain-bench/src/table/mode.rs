//! The modes that are compared, and how an engine is switched from one to another.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A way of running every step of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Op by op, nothing fused, nothing recorded: what the others are compared with.
    Eager,
    /// Fused ops, launched one by one.
    Compiled,
    /// The ops as they are, replayed from graphs wherever one suits.
    Graph,
    /// Fused ops, replayed from graphs wherever one suits.
    GraphCompile,
    /// What the policy picks for each step from what it has measured.
    Measured,
}

impl Mode {
    /// All of them, in the order of reports.
    pub const ALL: [Mode; 5] = [Mode::Eager, Mode::Compiled, Mode::Graph, Mode::GraphCompile, Mode::Measured];

    /// As the command line and the reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Eager => "eager",
            Mode::Compiled => "compiled",
            Mode::Graph => "graph",
            Mode::GraphCompile => "graph+compile",
            Mode::Measured => "measured",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = match text.trim() {
            "compile+graph" | "compiled+graph" => "graph+compile",
            "compile" => "compiled",
            name => name,
        };
        let names = || Mode::ALL.map(Mode::name).join(", ");
        Mode::ALL.into_iter().find(|mode| mode.name() == wanted).ok_or_else(|| format!("must be of {}", names()))
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How often steps were run in one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepCount {
    /// Kind of the steps: `prefill`, `decode` or `mixed`.
    pub phase: String,
    /// The way, as [`refrain_engine`] names cells: `eager`, `compiled+graph(decode, 8)`.
    pub cell: String,
    /// Steps.
    pub steps: u64,
    /// Rows that graphs computed and nobody wanted, over all these steps.
    pub padding_rows: u64,
}

/// What lets an engine run its steps in another mode.
pub trait Modes {
    /// Why steps can't be run in a mode; `None` when they can.
    fn refusal(&self, mode: Mode) -> Option<String>;

    /// Runs all later steps in a mode that is not refused. Called while the engine has nothing to do.
    fn switch(&self, mode: Mode);

    /// How often steps were run in which way since the start.
    fn counts(&self) -> Vec<StepCount>;
}

/// What was counted between two calls of [`Modes::counts`].
pub(crate) fn since(before: &[StepCount], now: Vec<StepCount>) -> Vec<StepCount> {
    let earlier = |count: &StepCount| {
        before.iter().find(|old| old.phase == count.phase && old.cell == count.cell).cloned().unwrap_or_default()
    };
    now.into_iter()
        .map(|count| {
            let old = earlier(&count);
            StepCount { steps: count.steps - old.steps, padding_rows: count.padding_rows - old.padding_rows, ..count }
        })
        .filter(|count| count.steps > 0)
        .collect()
}

/// The sum of several such counts, in the order in which the ways first occur.
pub(crate) fn sum(counts: impl IntoIterator<Item = StepCount>) -> Vec<StepCount> {
    let mut sums: Vec<StepCount> = Vec::new();
    for count in counts {
        match sums.iter_mut().find(|sum| sum.phase == count.phase && sum.cell == count.cell) {
            Some(sum) => {
                sum.steps += count.steps;
                sum.padding_rows += count.padding_rows;
            }
            None => sums.push(count),
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(cell: &str, steps: u64, padding_rows: u64) -> StepCount {
        StepCount { phase: "decode".to_owned(), cell: cell.to_owned(), steps, padding_rows }
    }

    #[test]
    fn modes_are_named_as_they_are_printed() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert_eq!("compiled+graph".parse(), Ok(Mode::GraphCompile));
        assert!("fast".parse::<Mode>().unwrap_err().contains("graph+compile"));
    }

    #[test]
    fn counts_are_of_the_time_between() {
        let before = [count("eager", 3, 0), count("graph(decode, 8)", 1, 7)];
        let now = vec![count("eager", 3, 0), count("graph(decode, 8)", 3, 12), count("graph(decode, 1)", 1, 0)];
        let between = since(&before, now);
        assert_eq!(between, [count("graph(decode, 8)", 2, 5), count("graph(decode, 1)", 1, 0)]);
        let both = sum([between.clone(), between].concat());
        assert_eq!(both, [count("graph(decode, 8)", 4, 10), count("graph(decode, 1)", 2, 0)]);
    }
}
