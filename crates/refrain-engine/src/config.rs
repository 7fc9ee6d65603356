//! What the engine is started with.

use crate::EngineError;
use refrain_device::{BLOCK_TOKENS, PoolSizes, SCAN_CHUNK, StepLimits};

/// Who goes first when not everybody can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulingPolicy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// The smaller [`crate::Request::priority`] first; among equals, first come, first served.
    Priority,
}

/// Limits and settings of a running engine. The names are those of vLLM's flags.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Sequences in one step, and so sequences that can be running.
    pub max_num_seqs: usize,
    /// Tokens in one step; at least `max_num_seqs + 64`, so that a full batch of decode rows still leaves room for
    /// one chunk of a prompt.
    pub max_num_batched_tokens: usize,
    /// Tokens in one sequence, prompt and answer together.
    pub max_model_len: usize,
    /// Sizes of the pools that the backend was loaded with.
    pub pools: PoolSizes,
    /// Who goes first.
    pub scheduling_policy: SchedulingPolicy,
    /// Most requests that may wait without a free slot; more are refused. `None` is no limit.
    pub max_num_queued_reqs: Option<usize>,
    /// While the requests without a token of their answer have that many prompt tokens, new ones are refused. `None` is
    /// no limit.
    pub max_num_queued_tokens: Option<usize>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Token ids are below this; width of a row of logits.
    pub vocab_size: usize,
    /// Requests without a seed of their own get one drawn from this.
    pub seed: u64,
}

/// Limits of a step for these settings, which is what a backend must be loaded for.
pub fn step_limits(max_num_seqs: usize, max_num_batched_tokens: usize, max_model_len: usize) -> StepLimits {
    StepLimits {
        max_tokens: max_num_batched_tokens,
        max_segments: max_num_seqs,
        max_logit_rows: max_num_seqs + SCAN_CHUNK,
        max_model_len,
    }
}

impl EngineConfig {
    /// Limits of a step under this configuration.
    pub fn step_limits(&self) -> StepLimits {
        step_limits(self.max_num_seqs, self.max_num_batched_tokens, self.max_model_len)
    }

    /// Checks that every request that is accepted can be finished.
    ///
    /// # Errors
    /// [`EngineError`] naming the setting, its value, and what would be right.
    pub fn validate(&self) -> Result<(), EngineError> {
        let at_least = |setting, value: usize, least: usize, why| {
            if value < least { Err(EngineError::TooSmall { setting, value, least, why }) } else { Ok(()) }
        };
        at_least("max_num_seqs", self.max_num_seqs, 1, "otherwise nothing runs")?;
        at_least("max_model_len", self.max_model_len, 2, "one token in, one out")?;
        at_least("vocab_size", self.vocab_size, 1, "otherwise there are no tokens")?;
        let why = "max_num_seqs + 64, so that a full batch leaves room for a chunk of a prompt";
        at_least("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs + SCAN_CHUNK, why)?;
        at_least("max_num_queued_reqs", self.max_num_queued_reqs.unwrap_or(1), 1, "leave it out for no limit")?;
        at_least("max_num_queued_tokens", self.max_num_queued_tokens.unwrap_or(1), 1, "leave it out for no limit")?;
        at_least("state slots", self.pools.slots, self.max_num_seqs, "one for each of max_num_seqs")?;
        let blocks = self.max_model_len.div_ceil(BLOCK_TOKENS);
        at_least("KV blocks", self.pools.blocks, blocks, "one sequence of max_model_len tokens must fit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_could_stall_a_request_are_refused() {
        type Change = fn(&mut EngineConfig);
        let sound = EngineConfig {
            max_num_seqs: 4,
            max_num_batched_tokens: 68,
            max_model_len: 100,
            pools: PoolSizes { blocks: 7, slots: 4 },
            scheduling_policy: SchedulingPolicy::Fcfs,
            max_num_queued_reqs: None,
            max_num_queued_tokens: None,
            eos_token_ids: vec![],
            vocab_size: 10,
            seed: 0,
        };
        sound.validate().unwrap();
        let cases: [(&str, Change); 6] = [
            ("max_num_seqs is 0, but must be at least 1: otherwise nothing runs", |c| c.max_num_seqs = 0),
            ("max_model_len is 1, but must be at least 2: one token in, one out", |c| c.max_model_len = 1),
            (
                "max_num_batched_tokens is 67, but must be at least 68: max_num_seqs + 64, so that a full batch leaves \
                 room for a chunk of a prompt",
                |c| c.max_num_batched_tokens = 67,
            ),
            ("state slots is 3, but must be at least 4: one for each of max_num_seqs", |c| c.pools.slots = 3),
            ("KV blocks is 7, but must be at least 8: one sequence of max_model_len tokens must fit", |c| {
                c.max_model_len = 113
            }),
            ("max_num_queued_reqs is 0, but must be at least 1: leave it out for no limit", |c| {
                c.max_num_queued_reqs = Some(0);
            }),
        ];
        for (message, change) in cases {
            let mut config = sound.clone();
            change(&mut config);
            assert_eq!(config.validate().unwrap_err().to_string(), message);
        }
    }
}
