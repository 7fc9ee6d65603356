//! By which rule the cell of a step is chosen.

use refrain_device::{Cell, Replay};
use std::fmt;
use std::str::FromStr;

/// `--policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyMode {
    /// The cell that was measured to be the fastest for such steps.
    #[default]
    Measured,
    /// A look-up, as in vLLM: compiled where the program is, replayed where a graph fits.
    Static,
    /// Op by op, always.
    Eager,
    /// The compiled program without graphs.
    Compiled,
    /// The largest replay that suits, of the compiled program where both were recorded.
    Graph,
    /// The largest replay that suits of the program as it is.
    EagerGraph,
}

impl PolicyMode {
    /// All of them.
    pub const ALL: [PolicyMode; 6] = [
        PolicyMode::Measured,
        PolicyMode::Static,
        PolicyMode::Eager,
        PolicyMode::Compiled,
        PolicyMode::Graph,
        PolicyMode::EagerGraph,
    ];

    /// As `--policy` names it.
    pub fn name(self) -> &'static str {
        match self {
            PolicyMode::Measured => "measured",
            PolicyMode::Static => "static",
            PolicyMode::Eager => "eager",
            PolicyMode::Compiled => "compiled",
            PolicyMode::Graph => "graph",
            PolicyMode::EagerGraph => "eager-graph",
        }
    }

    /// Why this rule makes no difference with these cells; `None` when it does.
    pub fn without_effect(self, cells: &[Cell]) -> Option<&'static str> {
        let graphs = |compiled: Option<bool>| {
            let wanted = |cell: &&Cell| cell.replay != Replay::None && compiled.is_none_or(|own| cell.compiled == own);
            cells.iter().any(|cell| wanted(&cell))
        };
        match self {
            PolicyMode::Eager => None,
            PolicyMode::Measured | PolicyMode::Static if cells.len() == 1 => Some("steps can be run in one way only"),
            PolicyMode::Measured | PolicyMode::Static => None,
            PolicyMode::Compiled => (!cells.iter().any(|cell| cell.compiled && cell.replay == Replay::None))
                .then_some("the program is not compiled"),
            PolicyMode::Graph => (!graphs(None)).then_some("no graph was recorded"),
            PolicyMode::EagerGraph => (!graphs(Some(false))).then_some("no graph of the program as it is was recorded"),
        }
    }

    /// How much a fixed rule likes a cell that suits: the greatest wins. `None` is not at all, which never goes for
    /// [`Cell::EAGER`].
    pub(super) fn likes(self, cell: &Cell) -> Option<(u8, u8)> {
        let replay = match cell.replay {
            Replay::None => 0,
            Replay::Piecewise => 1,
            Replay::Full => 2,
        };
        let compiled = u8::from(cell.compiled);
        match self {
            PolicyMode::Measured => None,
            PolicyMode::Eager => (*cell == Cell::EAGER).then_some((0, 0)),
            PolicyMode::Static => Some((compiled, replay)),
            PolicyMode::Compiled => (cell.replay == Replay::None).then_some((compiled, 0)),
            PolicyMode::Graph => Some((replay, compiled)),
            PolicyMode::EagerGraph => (!cell.compiled).then_some((replay, 0)),
        }
    }
}

impl fmt::Display for PolicyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PolicyMode {
    type Err = String;

    fn from_str(text: &str) -> Result<PolicyMode, String> {
        PolicyMode::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
            let names = PolicyMode::ALL.map(PolicyMode::name).join(", ");
            format!("must be one of {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_device::Part;

    #[test]
    fn names_are_read_as_they_are_written() {
        for mode in PolicyMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("fastest".parse::<PolicyMode>().unwrap_err().contains("measured, static"));
    }

    #[test]
    fn a_rule_without_its_cells_says_so() {
        let cell = |compiled, replay| Cell { compiled, replay, part: Part::Decode, rows: 1 };
        let all = [Cell::EAGER, cell(true, Replay::None), cell(true, Replay::Full), cell(false, Replay::Full)];
        for mode in PolicyMode::ALL {
            assert_eq!(mode.without_effect(&all), None, "{mode}");
            let alone = mode.without_effect(&[Cell::EAGER]);
            assert_eq!(alone.is_none(), mode == PolicyMode::Eager, "{mode}: {alone:?}");
        }
        assert!(PolicyMode::EagerGraph.without_effect(&all[..3]).is_some());
    }
}
