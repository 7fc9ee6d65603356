//! Divides the memory that may be used among weights, activations and the two state pools.

use refrain_device::{Footprint, PoolSizes};

/// What is to be planned.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryRequest {
    /// What the backend needs, for the largest step with `max_num_seqs` (or the default of it) sequences.
    pub footprint: Footprint,
    /// Bytes that this process may use.
    pub usable_bytes: usize,
    /// Part of them that the engine takes: `--gpu-memory-utilization`, `(0, 1]`.
    pub utilization: f64,
    /// Bytes for both state pools together, `--kv-cache-memory-bytes`; the utilization is not looked at then.
    pub kv_cache_memory_bytes: Option<usize>,
    /// Number of KV blocks, `--num-gpu-blocks-override`.
    pub num_blocks_override: Option<usize>,
    /// Tokens in one sequence.
    pub max_model_len: usize,
    /// Sequences that can be running; `None` is as many as fit, at most [`crate::DEFAULT_MAX_NUM_SEQS`].
    pub max_num_seqs: Option<usize>,
}

/// One line of the start-up table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLine {
    /// What the memory is for.
    pub what: String,
    /// Bytes.
    pub bytes: usize,
}

/// Where the memory goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Sizes of the pools.
    pub pools: PoolSizes,
    /// Sequences that can be running.
    pub max_num_seqs: usize,
    /// Each use of memory; the sum is [`MemoryPlan::total_bytes`].
    pub lines: Vec<MemoryLine>,
    /// Bytes of all lines.
    pub total_bytes: usize,
    /// What was changed from what was asked for or from the defaults, with the reason.
    pub notes: Vec<String>,
}

/// The plan can't be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MemoryError {
    /// A request's value makes no sense.
    #[error("{setting}: {message}")]
    Invalid {
        /// The flag.
        setting: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
}

/// Sequences that can be running when nobody says otherwise.
pub const DEFAULT_MAX_NUM_SEQS: usize = 64;

/// Plans the memory.
///
/// # Errors
/// [`MemoryError`] when even one sequence of `max_model_len` tokens, or what was explicitly asked for, doesn't fit.
pub fn plan_memory(request: &MemoryRequest) -> Result<MemoryPlan, MemoryError> {
    let _ = request;
    todo!()
}

/// The largest `max_model_len` that fits, 0 when none does.
pub fn largest_model_len(request: &MemoryRequest) -> usize {
    let _ = request;
    todo!()
}
