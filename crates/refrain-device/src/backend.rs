//! The trait behind which every kind of device executes steps, and the plain structs that size it.

use crate::sampling::{Chosen, SamplingLimits};
use crate::{Cell, DeviceError, GraphReport, Step, Trace};
use std::sync::Arc;

/// Executes steps of one loaded program on one device.
pub trait Backend: Send {
    /// What this device is, for logs and reports.
    fn device(&self) -> &DeviceInfo;

    /// What this device can choose by itself; `None` when it gives logits only.
    fn sampling(&self) -> Option<SamplingLimits> {
        None
    }

    /// The ways in which this backend can run steps now; [`Cell::EAGER`] is always one of them, and the first.
    fn cells(&self) -> &[Cell] {
        &[Cell::EAGER]
    }

    /// What was recorded as graphs; `None` where there is no such thing.
    fn graphs(&self) -> Option<&GraphReport> {
        None
    }

    /// How many steps may have begun before the oldest of them is finished. Steps run one after another in the order in
    /// which they have begun, so what one of them uses last (a block, a slot) is free for all that begin later. Nothing
    /// begins behind a step that [wants logits](Step::wants_logits).
    fn depth(&self) -> usize {
        1
    }

    /// Adds what it does for the engine's steps to a trace from now on. Backends that can't leave the trace to the
    /// engine.
    fn trace(&mut self, trace: Arc<Trace>) {
        let _ = trace;
    }

    /// How the kernels became code; `None` where none are compiled.
    fn kernels(&self) -> Option<KernelReport> {
        None
    }

    /// Begins the whole program over one step, in the way of one of [`Backend::cells`] that suits it. Where
    /// [`Step::sampling`] is empty the step will give the logits of [`Step::logit_rows`], otherwise what was chosen from
    /// them.
    ///
    /// # Errors
    /// [`DeviceError`]; nothing has begun, the states of the step's sequences are undefined and must be recomputed. Steps
    /// that have begun before are as they were. The same goes for a panic.
    fn begin(&mut self, step: &Step, cell: Cell) -> Result<(), DeviceError>;

    /// Waits for the oldest step that has begun and gives its result, which is valid until the next call of `finish`.
    ///
    /// # Errors
    /// [`DeviceError`]; the step has ended, and the states of its sequences are undefined and must be recomputed. The same
    /// goes for a panic.
    ///
    /// # Panics
    /// When no step has begun.
    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError>;

    /// Begins a step, op by op, and waits for it; none has begun before.
    ///
    /// # Errors
    /// Those of both.
    fn execute(&mut self, step: &Step) -> Result<StepOutput<'_>, DeviceError> {
        self.begin(step, Cell::EAGER)?;
        self.finish()
    }
}

/// What came of a step.
#[derive(Debug)]
pub enum StepOutput<'a> {
    /// `[S, vocab]` f32, row-major. The caller may change them in place (penalties).
    Logits(&'a mut [f32]),
    /// A token for each logit row.
    Chosen(&'a Chosen),
}

impl<'a> StepOutput<'a> {
    /// The logits, for callers that have asked for no choice.
    ///
    /// # Panics
    /// When tokens were chosen.
    pub fn into_logits(self) -> &'a mut [f32] {
        match self {
            StepOutput::Logits(logits) => logits,
            StepOutput::Chosen(_) => panic!("tokens were chosen where logits were asked for"),
        }
    }
}

/// What a device is and what it will use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Kind of device as the `--device` flag names it: `cpu`, `cuda`, ...
    pub kind: &'static str,
    /// Name for people.
    pub name: String,
    /// What the kernels compute with, for example `avx512-bf16, 2 threads`.
    pub compute: String,
}

/// How the kernels of a backend became code.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KernelReport {
    /// Kernels from packs.
    pub from_packs: usize,
    /// Kernels from the disk cache.
    pub from_cache: usize,
    /// Kernels that were compiled.
    pub compiled: usize,
    /// Time that all of it took.
    pub seconds: f64,
}

/// The largest step a backend must be able to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens in one step, over all sequences.
    pub max_tokens: usize,
    /// Sequences in one step.
    pub max_segments: usize,
    /// Rows that want logits in one step.
    pub max_logit_rows: usize,
    /// Tokens in one sequence, prompt and answer together.
    pub max_model_len: usize,
}

/// Different tokens that a long answer with penalties has.
const ADJUSTMENTS_EACH: usize = 2048;

impl StepLimits {
    /// Adjustments that a step has room for, over all its rows: enough for every sequence to have penalties on.
    pub fn max_adjustments(&self) -> usize {
        self.max_segments * ADJUSTMENTS_EACH
    }
}

/// Sizes of the two state pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// KV blocks of [`crate::BLOCK_TOKENS`] tokens, each for all attention layers.
    pub blocks: usize,
    /// GDN state slots, each for all GDN layers: as many sequences can be running.
    pub slots: usize,
}

/// Bytes a backend needs for a program, by use. The memory plan is made of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Weights as the backend keeps them.
    pub weights: usize,
    /// Activations and logits of the largest step.
    pub activations: usize,
    /// Scratch space of the kernels.
    pub workspace: usize,
    /// What recorded graphs may take.
    pub graphs: usize,
    /// What the driver may take for kernels, for libraries of products, and for itself, once they are loaded.
    pub code: usize,
    /// What the device's driver and other processes hold before anything is loaded; it counts against what may be used.
    pub held: usize,
    /// One KV block, all layers.
    pub kv_block: usize,
    /// One GDN slot, all layers.
    pub gdn_slot: usize,
}
