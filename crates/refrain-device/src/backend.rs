//! The trait behind which every kind of device executes steps, and the plain structs that size it.

use crate::{DeviceError, Step};

/// Executes steps of one loaded program on one device.
pub trait Backend: Send {
    /// What this device is, for logs and reports.
    fn device(&self) -> &DeviceInfo;

    /// Runs the whole program over one step and gives the logits of [`Step::logit_rows`], `[S, vocab]` f32, row-major.
    /// The caller may change them in place (penalties); they are valid until the next call.
    ///
    /// # Errors
    /// [`DeviceError`]; the states of the step's sequences are then undefined and must be recomputed.
    fn execute(&mut self, step: &Step) -> Result<&mut [f32], DeviceError>;
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
    /// What the device's driver and other processes hold before anything is loaded; it counts against what may be used.
    pub held: usize,
    /// One KV block, all layers.
    pub kv_block: usize,
    /// One GDN slot, all layers.
    pub gdn_slot: usize,
}
