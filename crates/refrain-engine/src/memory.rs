//! Divides the memory that may be used among weights, activations and the two state pools.

mod report;
#[cfg(test)]
mod tests;

use refrain_device::{BLOCK_TOKENS, Footprint, PoolSizes};
pub use report::{MemoryError, MemoryLine, MemoryPlan, human_bytes};

/// Sequences that can be running when nobody says otherwise.
pub const DEFAULT_MAX_NUM_SEQS: usize = 64;

/// Most sequences that can be asked for; far beyond what any device gains from.
pub const MOST_NUM_SEQS: usize = 65_536;

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
    /// Sequences that can be running; `None` is as many as fit, at most [`DEFAULT_MAX_NUM_SEQS`].
    pub max_num_seqs: Option<usize>,
}

impl MemoryRequest {
    /// Bytes that are needed before the first sequence.
    fn fixed(&self) -> usize {
        let Footprint { weights, activations, workspace, graphs, code, held, .. } = self.footprint;
        [weights, activations, workspace, graphs, code, held].into_iter().fold(0, usize::saturating_add)
    }

    /// Bytes for both pools together; `None` when not even the fixed part fits.
    fn pool_bytes(&self) -> Option<usize> {
        match self.kv_cache_memory_bytes {
            Some(bytes) => self.usable_bytes.checked_sub(self.fixed()).filter(|&free| free >= bytes).map(|_| bytes),
            None => self.budget().checked_sub(self.fixed()),
        }
    }

    fn budget(&self) -> usize {
        (self.usable_bytes as f64 * self.utilization) as usize
    }

    fn blocks_per_sequence(&self) -> usize {
        self.max_model_len.div_ceil(BLOCK_TOKENS)
    }

    /// KV blocks and state slots in bytes, `None` when that overflows.
    fn bytes_of(&self, pools: PoolSizes) -> Option<usize> {
        let blocks = pools.blocks.checked_mul(self.footprint.kv_block)?;
        blocks.checked_add(pools.slots.checked_mul(self.footprint.gdn_slot)?)
    }

    fn fits(&self, pools: PoolSizes, bytes: usize) -> bool {
        self.bytes_of(pools).is_some_and(|needed| needed <= bytes)
    }

    fn check(&self) -> Result<(), MemoryError> {
        let invalid = |setting, message: String| Err(MemoryError::Invalid { setting, message });
        if !(self.utilization > 0.0 && self.utilization <= 1.0) {
            let message = format!("{} is out of range; above 0, at most 1", self.utilization);
            return invalid("--gpu-memory-utilization", message);
        }
        if self.max_model_len < 2 {
            let message = format!("{} is too small; at least 2, one token in and one out", self.max_model_len);
            return invalid("--max-model-len", message);
        }
        if let Some(sequences) = self.max_num_seqs.filter(|sequences| !(1..=MOST_NUM_SEQS).contains(sequences)) {
            return invalid(
                "--max-num-seqs",
                format!("{sequences} is out of range; at least 1, at most {MOST_NUM_SEQS}"),
            );
        }
        match self.num_blocks_override {
            Some(blocks) if blocks < self.blocks_per_sequence() => {
                let message = format!(
                    "{blocks} blocks of {BLOCK_TOKENS} tokens can't hold one sequence of --max-model-len {}; at least {}",
                    self.max_model_len,
                    self.blocks_per_sequence()
                );
                invalid("--num-gpu-blocks-override", message)
            }
            _ => Ok(()),
        }
    }
}

/// The largest `max_model_len` with which at least one sequence fits, 0 when there is none; at most what
/// `request.max_model_len` says, which is otherwise not looked at.
pub fn largest_model_len(request: &MemoryRequest) -> usize {
    let Some(bytes) = request.pool_bytes() else { return 0 };
    let Some(left) = bytes.checked_sub(request.footprint.gdn_slot) else { return 0 };
    let blocks = left.checked_div(request.footprint.kv_block).unwrap_or(usize::MAX);
    let tokens = blocks.min(request.num_blocks_override.unwrap_or(usize::MAX)).saturating_mul(BLOCK_TOKENS);
    tokens.min(request.max_model_len)
}

/// Plans the memory: weights, activations, workspace, graphs and device code first, then a slot for each sequence that can be running, then
/// KV blocks with all that is left, at most as many as these sequences can fill.
///
/// Without an explicit `max_num_seqs`, slots get at most half of the pools' memory, so that the sequences that can be
/// running also have tokens to hold.
///
/// # Errors
/// [`MemoryError`] when even one sequence of `max_model_len` tokens, or what was explicitly asked for, doesn't fit.
pub fn plan_memory(request: &MemoryRequest) -> Result<MemoryPlan, MemoryError> {
    request.check()?;
    let Some(bytes) = request.pool_bytes() else { return Err(report::too_little(request)) };
    let one = PoolSizes { blocks: request.blocks_per_sequence(), slots: 1 };
    if !request.fits(one, bytes) {
        return Err(MemoryError::SequenceTooLong {
            max_model_len: request.max_model_len,
            needed: request.bytes_of(one).unwrap_or(usize::MAX),
            available: bytes,
            largest: largest_model_len(request),
        });
    }
    // The blocks that must be there whatever the number of slots.
    let least_blocks = request.num_blocks_override.unwrap_or(one.blocks);
    let fits = |slots| request.fits(PoolSizes { blocks: least_blocks, slots }, bytes);
    if !fits(1) {
        return Err(report::too_many_blocks(request, least_blocks, bytes));
    }
    let mut notes = Vec::new();
    let slots = match request.max_num_seqs {
        Some(slots) if fits(slots) => slots,
        Some(slots) => return Err(report::too_many_sequences(request, slots, bytes)),
        None => {
            let half = |slots: usize| slots * request.footprint.gdn_slot <= bytes / 2;
            let most = (2..=DEFAULT_MAX_NUM_SEQS).rev().find(|&slots| half(slots) && fits(slots));
            let slots = most.unwrap_or(1);
            if slots < DEFAULT_MAX_NUM_SEQS {
                notes.push(report::reduced(request, slots, bytes));
            }
            slots
        }
    };
    let blocks = request.num_blocks_override.unwrap_or_else(|| {
        let left = bytes - slots * request.footprint.gdn_slot;
        let most = slots.saturating_mul(one.blocks);
        left.checked_div(request.footprint.kv_block).unwrap_or(most).min(most)
    });
    Ok(report::plan(request, PoolSizes { blocks, slots }, notes))
}
