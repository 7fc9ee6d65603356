//! The modes of a running engine: rules of its policy.

use refrain_engine::{EngineHandle, PolicyMode};

use super::mode::{Mode, Modes, StepCount};

/// An engine whose steps are run in the modes that it has. Dropping it puts the engine's own policy back.
#[derive(Debug)]
pub struct EngineModes<'a> {
    engine: &'a EngineHandle,
    own: PolicyMode,
    no_graphs: Option<&'static str>,
}

impl<'a> EngineModes<'a> {
    /// The modes of this engine. `no_graphs` is why its device can't have any, if it can't.
    pub fn new(engine: &'a EngineHandle, no_graphs: Option<&'static str>) -> Self {
        Self { engine, own: engine.policy(), no_graphs }
    }
}

impl Drop for EngineModes<'_> {
    fn drop(&mut self) {
        self.engine.set_policy(self.own);
    }
}

fn rule(mode: Mode) -> PolicyMode {
    match mode {
        Mode::Eager => PolicyMode::Eager,
        Mode::Compiled => PolicyMode::Compiled,
        Mode::Graph => PolicyMode::EagerGraph,
        Mode::GraphCompile => PolicyMode::Graph,
        Mode::Measured => PolicyMode::Measured,
    }
}

impl Modes for EngineModes<'_> {
    fn refusal(&self, mode: Mode) -> Option<String> {
        let cells = self.engine.cells();
        let compiled_graphs = cells.iter().any(|cell| cell.compiled && cell.rows > 0);
        let why = rule(mode).without_effect(&cells);
        // The rule would be content with graphs of the program as it is, which are another mode here.
        let why = why.or((mode == Mode::GraphCompile && !compiled_graphs).then_some("no compiled graph was recorded"));
        let graphs = matches!(mode, Mode::Graph | Mode::GraphCompile);
        why.map(|why| self.no_graphs.filter(|_| graphs).unwrap_or(why).to_owned())
    }

    fn switch(&self, mode: Mode) {
        self.engine.set_policy(rule(mode));
    }

    fn counts(&self) -> Vec<StepCount> {
        let count = |steps: refrain_engine::CellSteps| StepCount {
            phase: steps.phase.name().to_owned(),
            cell: steps.cell.to_string(),
            steps: steps.steps,
            padding_rows: steps.padding,
        };
        self.engine.step_modes().into_iter().map(count).collect()
    }
}
