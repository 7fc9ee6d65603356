//! What a step gave for its logit rows: logits, from which the host chooses, or what the device has chosen.

use super::active::Active;
use crate::sampling::Sampler;
use crate::{PositionLogprobs, RequestFailure, TokenLogprob};
use refrain_device::{Chosen, NoToken, RankedToken, StepOutput};
use std::time::Instant;

/// The rows of a step's result.
pub(super) struct Results<'a> {
    output: StepOutput<'a>,
    vocab_size: usize,
    /// When they came.
    pub now: Instant,
}

impl<'a> Results<'a> {
    /// The result of a step that wanted so many rows.
    ///
    /// # Errors
    /// What is wrong with the result.
    pub fn new(output: StepOutput<'a>, rows: usize, vocab_size: usize) -> Result<Self, String> {
        match &output {
            StepOutput::Logits(logits) if logits.len() != rows * vocab_size => {
                return Err(format!("it gave {} logits instead of {}", logits.len(), rows * vocab_size));
            }
            StepOutput::Chosen(chosen) if (chosen.rows.len(), chosen.top_ends.len()) != (rows, rows) => {
                return Err(format!("it chose {} tokens instead of {rows}", chosen.rows.len()));
            }
            StepOutput::Chosen(chosen) => {
                let outside = |row: &&RankedToken| row.token as usize >= vocab_size;
                if let Some(row) = chosen.rows.iter().flatten().find(outside) {
                    return Err(format!("it chose token {} of a vocabulary of {vocab_size}", row.token));
                }
            }
            StepOutput::Logits(_) => {}
        }
        Ok(Self { output, vocab_size, now: Instant::now() })
    }

    /// Log-probabilities of the prompt token that follows `row`, and of the `top` best ones there.
    pub fn prompt_logprobs(
        &mut self,
        row: usize,
        token: u32,
        top: usize,
        sampler: &mut Sampler,
    ) -> Result<PositionLogprobs, RequestFailure> {
        match &mut self.output {
            StepOutput::Logits(logits) => {
                sampler.prompt_logprobs(&logits[row * self.vocab_size..][..self.vocab_size], token, top)
            }
            StepOutput::Chosen(chosen) => Ok(logprobs(chosen, row)?.1),
        }
    }

    /// The next token of a request and its log-probabilities, if they are wanted.
    pub fn next_token(
        &mut self,
        row: usize,
        active: &Active,
        eos: &[u32],
        sampler: &mut Sampler,
    ) -> Result<(u32, Option<PositionLogprobs>), RequestFailure> {
        match &mut self.output {
            StepOutput::Logits(logits) => {
                let logits = &mut logits[row * self.vocab_size..][..self.vocab_size];
                sampler.sample(logits, &active.params, &active.sampling, active.output(), eos)
            }
            StepOutput::Chosen(chosen) => {
                let (token, logprobs) = logprobs(chosen, row)?;
                Ok((token, active.params.logprobs.map(|_| logprobs)))
            }
        }
    }
}

fn logprobs(chosen: &Chosen, row: usize) -> Result<(u32, PositionLogprobs), RequestFailure> {
    let own = chosen.rows[row].map_err(|why| match why {
        NoToken::NotFinite => RequestFailure::NotFinite,
        NoToken::NoneAllowed => RequestFailure::NoTokenAllowed,
    })?;
    let entry = |ranked: &RankedToken| TokenLogprob { token: ranked.token, logprob: ranked.logprob, rank: ranked.rank };
    let top = chosen.top_of(row).iter().map(entry).collect();
    Ok((own.token, PositionLogprobs { chosen: entry(&own), top }))
}
