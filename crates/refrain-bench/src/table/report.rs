//! Everything that the table says, as plain data: the JSON report is exactly this.

use serde::Serialize;
use serde_json::{Map, Value};

use super::crossover::{Crossover, crossovers};
use super::figures::{Floor, ModeFigures, Run, Sizes, figures};
use super::mode::Mode;
use super::tiers::{TierSpeedup, tiers};

/// What the report says about the engine that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct TableFacts {
    /// Name of the model.
    pub model_id: String,
    /// The device and what it computes with.
    pub device: String,
    /// Version of the program.
    pub version: String,
    /// The day of the run, `2026-11-25`.
    pub date: String,
    /// What the device can do, or why that is not known.
    pub ceilings: Ceilings,
    /// Bytes of device memory that all graphs take together; `None` where there are no graphs.
    pub graph_memory_bytes: Option<u64>,
    /// Memory of the device; `None` on a CPU.
    pub memory: Option<DeviceMemoryUse>,
    /// The phases of the start, in order.
    pub start: Vec<StartPhase>,
    /// Copied into the report: the memory plan, the settings.
    pub extra: Map<String, Value>,
}

/// What the device can do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Ceilings {
    /// Known.
    Known {
        /// Memory bandwidth.
        bytes_per_second: f64,
        /// Matrix products in the program's types.
        flops_per_second: f64,
        /// Where the two come from.
        source: String,
    },
    /// Not known.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// Memory of a device in bytes, its own and other processes' together, as the driver reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceMemoryUse {
    /// What may be in use at most: the plan.
    pub planned_bytes: u64,
    /// In use before the first request.
    pub ready_bytes: u64,
    /// In use after the last one.
    pub end_bytes: u64,
}

/// A part of the start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StartPhase {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub seconds: f64,
}

/// A mode that was asked for and can't be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedMode {
    /// The mode.
    pub mode: Mode,
    /// Why it can't be had here.
    pub why: String,
}

/// All modes at one input length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LengthFigures {
    /// Prompt tokens of each request.
    pub input_len: usize,
    /// The least times that the ceilings allow.
    pub floor: Option<Floor>,
    /// The modes that were measured.
    pub modes: Vec<ModeFigures>,
}

/// One mode over all input lengths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModeSummary {
    /// The mode.
    pub mode: Mode,
    /// The smallest of its speed-ups over eager.
    pub least_speedup: f64,
    /// The largest.
    pub most_speedup: f64,
    /// The smallest part of the best fixed mode's speed that it reached, for [`Mode::Measured`].
    pub least_against_best_fixed: Option<f64>,
    /// Where it passes eager or falls behind.
    pub crossovers: Vec<Crossover>,
    /// Its speed-ups over the tiers.
    pub tiers: Vec<TierSpeedup>,
    /// What the tiers gain together, in percent; `None` unless each was measured.
    pub weighted_gain_percent: Option<f64>,
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct TableReport {
    /// The engine.
    #[serde(flatten)]
    pub facts: TableFacts,
    /// Sizes that all runs share.
    #[serde(flatten)]
    pub sizes: Sizes,
    /// Rounds that were measured.
    pub rounds: usize,
    /// Rounds before them.
    pub warmup_rounds: usize,
    /// What is worth saying about how it was run.
    pub notes: Vec<String>,
    /// Modes that can't be had.
    pub not_applicable: Vec<RefusedMode>,
    /// The figures, by ascending input length.
    pub lengths: Vec<LengthFigures>,
    /// The modes beside eager; empty unless eager was measured.
    pub summary: Vec<ModeSummary>,
    /// Every single run, in the order in which they were made.
    pub runs: Vec<Run>,
}

/// What was run, and in which modes not.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Sizes that all runs share.
    pub sizes: Sizes,
    /// Rounds that were measured.
    pub rounds: usize,
    /// Rounds before them.
    pub warmup_rounds: usize,
    /// Modes that can't be had.
    pub refused: Vec<RefusedMode>,
    /// Every measured run.
    pub runs: Vec<Run>,
}

impl TableReport {
    /// Works out the figures. `floor` gives the least times at an input length, where the ceilings are known.
    pub fn new(
        facts: TableFacts,
        notes: Vec<String>,
        measurement: Measurement,
        floor: &dyn Fn(usize) -> Option<Floor>,
    ) -> Self {
        let Measurement { sizes, rounds, warmup_rounds, refused, runs } = measurement;
        let mut input_lens: Vec<usize> = runs.iter().map(|run| run.input_len).collect();
        input_lens.sort_unstable();
        input_lens.dedup();
        let lengths: Vec<LengthFigures> = input_lens
            .into_iter()
            .map(|input_len| {
                let own: Vec<Run> = runs.iter().filter(|run| run.input_len == input_len).cloned().collect();
                let floor = floor(input_len);
                LengthFigures { input_len, floor, modes: figures(input_len, &own, sizes, floor) }
            })
            .collect();
        let summary = Mode::ALL.into_iter().filter_map(|mode| summarize(mode, &lengths)).collect();
        Self { facts, sizes, rounds, warmup_rounds, notes, not_applicable: refused, lengths, summary, runs }
    }

    /// The modes that were measured, in the order of [`Mode::ALL`].
    pub fn modes(&self) -> Vec<Mode> {
        self.lengths.first().map_or(Vec::new(), |first| first.modes.iter().map(|figures| figures.mode).collect())
    }

    /// The figures of one mode by input length.
    pub fn of(&self, mode: Mode) -> impl Iterator<Item = (&LengthFigures, &ModeFigures)> {
        self.lengths.iter().filter_map(move |length| {
            let figures = length.modes.iter().find(|figures| figures.mode == mode)?;
            Some((length, figures))
        })
    }

    /// Seconds of the whole start.
    pub fn start_seconds(&self) -> f64 {
        self.facts.start.iter().map(|phase| phase.seconds).sum()
    }
}

/// A mode beside eager, which itself has nothing to be compared with.
fn summarize(mode: Mode, lengths: &[LengthFigures]) -> Option<ModeSummary> {
    if mode == Mode::Eager {
        return None;
    }
    let mut speedups = Vec::new();
    let mut against_best: Option<f64> = None;
    for length in lengths {
        let figures = length.modes.iter().find(|figures| figures.mode == mode)?;
        speedups.push((length.input_len, figures.speedup?.median));
        if let Some(part) = figures.against_best_fixed {
            against_best = Some(against_best.map_or(part, |least| least.min(part)));
        }
    }
    let values = || speedups.iter().map(|&(_, speedup)| speedup);
    let (tiers, weighted_gain_percent) = tiers(&speedups);
    Some(ModeSummary {
        mode,
        least_speedup: values().min_by(f64::total_cmp)?,
        most_speedup: values().max_by(f64::total_cmp)?,
        least_against_best_fixed: against_best,
        crossovers: crossovers(mode, &speedups),
        tiers,
        weighted_gain_percent,
    })
}
