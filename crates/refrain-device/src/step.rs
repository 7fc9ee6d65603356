//! One step: the tokens of every sequence that takes part, and where their states live.

use crate::DeviceError;
use crate::backend::{PoolSizes, StepLimits};
use crate::sampling::{self, Adjustment, RowSampling};

/// Tokens in one KV block.
pub const BLOCK_TOKENS: usize = 16;

/// Tokens in one chunk of the chunked GDN scan. Chunks begin at multiples of this position, so a prompt gives the same
/// bits however the scheduler cuts it, as long as it cuts at multiples of `SCAN_CHUNK`.
pub const SCAN_CHUNK: usize = 64;

/// Everything one step needs: `T` tokens of `R` sequences, packed without padding, `S` of the rows wanting logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Token ids, `[T]`: the rows of all segments one after another.
    pub tokens: Vec<u32>,
    /// The rows whose tokens aren't known yet, ascending; what `tokens` says of them counts for nothing. Only for backends
    /// that choose.
    pub carried: Vec<Carried>,
    /// One entry for each sequence in the step, `[R]`, in the order of their rows.
    pub segments: Vec<Segment>,
    /// KV block ids of all sequences; [`Segment::blocks`] says which part is whose.
    pub block_table: Vec<u32>,
    /// Rows (indices into `tokens`) whose logits are wanted, `[S]`, ascending.
    pub logit_rows: Vec<u32>,
    /// What to choose for each logit row, `[S]`; empty where the logits themselves are wanted. Only for backends that
    /// say that they choose ([`crate::Backend::sampling`]).
    pub sampling: Vec<RowSampling>,
    /// Changes of logits before the choice; [`RowSampling::adjustments`] says which part is whose.
    pub adjustments: Vec<Adjustment>,
}

/// A token that the device takes from what it has chosen itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// A row of this step.
    pub row: u32,
    /// The logit row of the step that has begun before this one, in which its token is chosen. Where none can be, the
    /// row's token is 0.
    pub logit_row: u32,
}

/// One sequence's part of a step: `len` consecutive tokens of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row of this segment in [`Step::tokens`].
    pub row: u32,
    /// Number of tokens, at least 1.
    pub len: u32,
    /// Position in its sequence of the first of these tokens. 0 means that no state exists yet: backends start from
    /// zero and don't read the slot, so slots need no clearing.
    pub position: u32,
    /// How many leading tokens of the segment the GDN layers process with the chunked scan (prompt tokens). The rest
    /// (generated tokens) goes through the one-token recurrence, so that recomputing a preempted sequence gives the
    /// very bits that decoding it gave.
    pub scan: u32,
    /// Slot of this sequence in the GDN state pool.
    pub slot: u32,
    /// Where its block ids start in [`Step::block_table`]; block `i` holds positions `16 i .. 16 i + 16`.
    pub blocks: u32,
    /// How many block ids it has there: at least `(position + len).div_ceil(16)`.
    pub num_blocks: u32,
}

impl Segment {
    /// Tokens of the sequence once this segment is processed.
    pub fn context(&self) -> usize {
        (self.position + self.len) as usize
    }
}

impl Step {
    /// Whether it gives logits: it has logit rows, and nothing says what to choose from them.
    pub fn wants_logits(&self) -> bool {
        self.sampling.is_empty() && !self.logit_rows.is_empty()
    }

    /// Checks the step against what the backend was planned for.
    ///
    /// # Errors
    /// [`DeviceError::InvalidStep`] naming the first thing that is wrong. An engine that plans within its limits never
    /// sees it.
    pub fn validate(&self, limits: &StepLimits, pools: &PoolSizes, vocab_size: usize) -> Result<(), DeviceError> {
        let fail = |what: String| Err(DeviceError::InvalidStep { what });
        if self.tokens.is_empty() || self.tokens.len() > limits.max_tokens {
            return fail(format!("{} tokens, planned for 1 to {}", self.tokens.len(), limits.max_tokens));
        }
        if self.segments.len() > limits.max_segments {
            return fail(format!("{} sequences, planned for {}", self.segments.len(), limits.max_segments));
        }
        if self.logit_rows.len() > limits.max_logit_rows {
            return fail(format!("{} logit rows, planned for {}", self.logit_rows.len(), limits.max_logit_rows));
        }
        if let Some(id) = self.tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return fail(format!("token id {id} outside the vocabulary of {vocab_size}"));
        }
        let ascending = self.carried.windows(2).all(|pair| pair[0].row < pair[1].row);
        if !ascending || self.carried.last().is_some_and(|last| last.row as usize >= self.tokens.len()) {
            return fail("carried rows are not ascending rows of the step".to_owned());
        }
        if let Some(Carried { row, logit_row }) =
            self.carried.iter().find(|carried| carried.logit_row as usize >= limits.max_logit_rows)
        {
            return fail(format!("row {row} is carried from logit row {logit_row} of {}", limits.max_logit_rows));
        }
        let mut row = 0;
        let mut slots = std::collections::HashSet::new();
        for (index, segment) in self.segments.iter().enumerate() {
            if segment.row != row || segment.len == 0 || segment.scan > segment.len {
                return fail(format!("segment {index} has rows {}+{} scan {}", segment.row, segment.len, segment.scan));
            }
            row += segment.len;
            if segment.slot as usize >= pools.slots || !slots.insert(segment.slot) {
                return fail(format!("segment {index} has slot {} of {}, or shares it", segment.slot, pools.slots));
            }
            let table = segment.blocks as usize..(segment.blocks + segment.num_blocks) as usize;
            let needed = segment.context().div_ceil(BLOCK_TOKENS);
            match self.block_table.get(table) {
                Some(blocks) if blocks.len() >= needed => {
                    if let Some(block) = blocks.iter().find(|&&block| block as usize >= pools.blocks) {
                        return fail(format!("segment {index} has block {block} of {}", pools.blocks));
                    }
                }
                _ => return fail(format!("segment {index} needs {needed} blocks, has {}", segment.num_blocks)),
            }
        }
        if row as usize != self.tokens.len() {
            return fail(format!("segments cover {row} of {} tokens", self.tokens.len()));
        }
        let ascending = self.logit_rows.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.logit_rows.last().is_some_and(|&row| row as usize >= self.tokens.len()) {
            return fail("logit rows are not ascending rows of the step".to_owned());
        }
        if self.adjustments.len() > limits.max_adjustments() {
            return fail(format!("{} adjustments, planned for {}", self.adjustments.len(), limits.max_adjustments()));
        }
        sampling::validate(&self.sampling, &self.adjustments, self.logit_rows.len(), vocab_size).or_else(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (Step, StepLimits, PoolSizes) {
        let step = Step {
            tokens: vec![1, 2, 3],
            carried: vec![Carried { row: 1, logit_row: 1 }, Carried { row: 2, logit_row: 0 }],
            segments: vec![
                Segment { row: 0, len: 2, position: 16, scan: 2, slot: 0, blocks: 0, num_blocks: 2 },
                Segment { row: 2, len: 1, position: 3, scan: 0, slot: 1, blocks: 2, num_blocks: 1 },
            ],
            block_table: vec![0, 1, 2],
            logit_rows: vec![1, 2],
            sampling: vec![
                RowSampling { given: Some(9), logprobs: Some(1), ..RowSampling::default() },
                RowSampling { temperature: 1.0, top_p: 1.0, adjustments: 0..2, ..RowSampling::default() },
            ],
            adjustments: [3, 9].map(|token| Adjustment { token, ..Adjustment::default() }).to_vec(),
        };
        let limits = StepLimits { max_tokens: 4, max_segments: 2, max_logit_rows: 2, max_model_len: 64 };
        (step, limits, PoolSizes { blocks: 4, slots: 2 })
    }

    #[test]
    fn a_sound_step_passes() {
        let (step, limits, pools) = fixture();
        step.validate(&limits, &pools, 10).unwrap();
    }

    #[test]
    fn each_broken_field_is_named() {
        type Break = fn(&mut Step);
        let cases: [(&str, Break); 18] = [
            ("tokens", |step| step.tokens.clear()),
            ("vocabulary", |step| step.tokens[0] = 10),
            ("carried rows", |step| step.carried.swap(0, 1)),
            ("carried rows", |step| step.carried[1].row = 3),
            ("row 2 is carried from logit row 2 of 2", |step| step.carried[1].logit_row = 2),
            ("rows", |step| step.segments[1].row = 1),
            ("rows", |step| step.segments[0].scan = 3),
            ("slot", |step| step.segments[1].slot = 0),
            ("blocks", |step| step.segments[0].num_blocks = 1),
            ("block 9", |step| step.block_table[0] = 9),
            ("logit rows", |step| step.logit_rows = vec![2, 1]),
            ("1 rows of sampling", |step| step.sampling.truncate(1)),
            ("adjustments 0..3 of 2", |step| step.sampling[1].adjustments = 0..3),
            ("ascending token ids", |step| step.adjustments[0].token = 9),
            ("ascending token ids", |step| step.adjustments[1].token = 10),
            ("given token 10", |step| step.sampling[0].given = Some(10)),
            ("temperature NaN", |step| step.sampling[1].temperature = f32::NAN),
            ("uniform 1", |step| step.sampling[1].uniform = 1.0),
        ];
        for (word, damage) in cases {
            let (mut step, limits, pools) = fixture();
            damage(&mut step);
            let message = step.validate(&limits, &pools, 10).unwrap_err().to_string();
            assert!(message.contains(word), "{message:?} does not name {word:?}");
        }
    }

    #[test]
    fn a_step_gives_logits_where_it_has_rows_for_them_and_chooses_nothing() {
        let (mut step, ..) = fixture();
        assert!(!step.wants_logits());
        step.sampling.clear();
        assert!(step.wants_logits());
        step.logit_rows.clear();
        assert!(!step.wants_logits());
    }
}
