//! Which steps are recorded as graphs, and what came of recording them.

use crate::{Cell, DeviceError};
use std::fmt;
use std::str::FromStr;

/// Which steps shall be replayed from graphs. Names and meanings are those of vLLM's `cudagraph_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GraphMode {
    /// None.
    #[default]
    None,
    /// Any step up to a size, all but attention and the gated delta rule.
    Piecewise,
    /// Steps in which every sequence decodes one token, and steps that are one piece of one prompt.
    Full,
    /// Steps in which every sequence decodes one token.
    FullDecodeOnly,
    /// Those of `Full`, and the others as `Piecewise` has them.
    FullAndPiecewise,
}

impl GraphMode {
    /// All of them.
    pub const ALL: [GraphMode; 5] = [
        GraphMode::None,
        GraphMode::Piecewise,
        GraphMode::Full,
        GraphMode::FullDecodeOnly,
        GraphMode::FullAndPiecewise,
    ];

    /// As settings name it.
    pub fn name(self) -> &'static str {
        match self {
            GraphMode::None => "NONE",
            GraphMode::Piecewise => "PIECEWISE",
            GraphMode::Full => "FULL",
            GraphMode::FullDecodeOnly => "FULL_DECODE_ONLY",
            GraphMode::FullAndPiecewise => "FULL_AND_PIECEWISE",
        }
    }
}

impl fmt::Display for GraphMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// In any case of letters.
impl FromStr for GraphMode {
    type Err = String;

    fn from_str(text: &str) -> Result<GraphMode, String> {
        let found = GraphMode::ALL.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| {
            let names: Vec<&str> = GraphMode::ALL.iter().map(|mode| mode.name()).collect();
            format!("{text:?} is none of {}", names.join(", "))
        })
    }
}

/// A cell whose graphs are there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordedCell {
    /// The cell.
    pub cell: Cell,
    /// Graphs: one, or with breaks as many as there are pieces between them.
    pub graphs: usize,
    /// Nodes of all of them.
    pub nodes: usize,
    /// Device memory that the driver took for them. Drivers take it in large pieces, so that one cell pays for some of
    /// those behind it.
    pub bytes: usize,
    /// Time to record them, to make them launchable, and to launch each of them once.
    pub seconds: f64,
}

/// A cell that was wanted and is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedCell {
    /// The cell.
    pub cell: Cell,
    /// Why not.
    pub why: String,
    /// Whether a larger budget would help; else the driver refused it.
    pub over_budget: bool,
}

/// What was recorded before the first step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GraphReport {
    /// What was asked for.
    pub mode: GraphMode,
    /// Device memory that graphs may take, bytes.
    pub budget_bytes: usize,
    /// The cells with graphs, in the order in which they were recorded: the largest first.
    pub recorded: Vec<RecordedCell>,
    /// The cells that don't fit into the budget, or that the driver refused.
    pub refused: Vec<RefusedCell>,
    /// Device memory that the driver took for all of it, bytes.
    pub bytes: usize,
    /// Time that all of it took.
    pub seconds: f64,
}

impl GraphReport {
    /// Nodes of all graphs.
    pub fn nodes(&self) -> usize {
        self.recorded.iter().map(|cell| cell.nodes).sum()
    }

    /// The cells that are not there, as an error that names the first of them.
    ///
    /// # Errors
    /// [`DeviceError::GraphRefused`].
    pub fn complete(&self) -> Result<(), DeviceError> {
        match self.refused.first() {
            Some(RefusedCell { cell, why, .. }) => Err(DeviceError::GraphRefused {
                cell: cell.to_string(),
                why: why.clone(),
                others: self.refused.len() - 1,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Part, Replay};

    #[test]
    fn modes_have_the_names_of_vllm() {
        for mode in GraphMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(mode.name().to_ascii_lowercase().parse(), Ok(mode));
        }
        let error = "FULL_PREFILL".parse::<GraphMode>().unwrap_err();
        assert!(error.contains("FULL_PREFILL") && error.contains("FULL_DECODE_ONLY"), "{error}");
    }

    #[test]
    fn a_report_with_a_refused_cell_is_not_complete() {
        let mut report = GraphReport::default();
        report.complete().unwrap();
        let cell = Cell { compiled: false, replay: Replay::Full, part: Part::Decode, rows: 8 };
        report.refused.push(RefusedCell { cell, why: "no room".to_owned(), over_budget: true });
        let error = report.complete().unwrap_err().to_string();
        assert!(error.contains("graph(decode, 8)") && error.contains("no room"), "{error}");
    }
}
