//! From a row of logits to a token: the order of the stages is vLLM's.
//!
//! 1. Log-probabilities, if asked for, are of the raw logits ([`logprobs`]).
//! 2. [`adjust`] forbids, biases and penalises.
//! 3. [`choose`] applies temperature, min-p, top-k and top-p and draws, with a random number that depends on the seed and
//!    the place in the answer only ([`rng`]): the same seed gives the same answer alone and in any batch.
//!
//! A device that chooses by itself is told the same in numbers ([`device`]).

mod adjust;
mod choose;
pub(crate) mod device;
mod exp;
mod logprobs;
mod rng;
mod select;

use crate::{PositionLogprobs, RequestFailure, SamplingParams};
use adjust::{Occurrences, adjust, adjusts};
use choose::{Scratch, choose};

pub(crate) use rng::random_u64;

/// Sampling state of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct SequenceSampling {
    seed: u64,
    adjusts: bool,
    /// `allowed_token_ids`, ascending.
    allowed: Option<Vec<u32>>,
    occurrences: Occurrences,
}

impl SequenceSampling {
    /// The state before the first token; `drawn_seed` is used when the request has none.
    pub fn new(params: &SamplingParams, prompt: &[u32], drawn_seed: u64) -> Self {
        let allowed = params.allowed_token_ids.clone().map(|mut ids| {
            ids.sort_unstable();
            ids.dedup();
            ids
        });
        Self {
            seed: params.seed.unwrap_or(drawn_seed),
            adjusts: adjusts(params),
            allowed,
            occurrences: Occurrences::new(params, prompt),
        }
    }

    /// Whether which tokens the answer has makes a difference to the next one, apart from the model. Where it makes none,
    /// [`SequenceSampling::row`] needs not know the last of them.
    pub fn reads_output(&self, params: &SamplingParams) -> bool {
        self.occurrences.are_counted() || params.bad_words.iter().any(|word| word.len() > 1)
    }

    /// Counts a token of the answer.
    pub fn push(&mut self, token: u32) {
        self.occurrences.push(token);
    }
}

/// Chooses tokens for one row after another, with the buffers for it.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    scratch: Scratch,
    raw: Vec<f32>,
    allowed: Vec<(u32, f32)>,
}

impl Sampler {
    /// Chooses the next token after `output`, the answer so far, and gives its log-probabilities if they are wanted.
    /// `logits` [vocabulary] is changed in place; `eos` are the model's end-of-sequence ids.
    ///
    /// # Errors
    /// [`RequestFailure::NotFinite`], [`RequestFailure::NoTokenAllowed`].
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        params: &SamplingParams,
        sequence: &SequenceSampling,
        output: &[u32],
        eos: &[u32],
    ) -> Result<(u32, Option<PositionLogprobs>), RequestFailure> {
        check_finite(logits)?;
        // The adjustments spoil the raw logits, and which token's log-probability is wanted is known only after them.
        let keep_raw = params.logprobs.is_some() && sequence.adjusts;
        if keep_raw {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        if sequence.adjusts {
            adjust(logits, params, &sequence.occurrences, output, eos, &mut self.allowed);
        }
        let uniform = sequence.uniform(params, output.len());
        let token = choose(logits, params, uniform, &mut self.scratch).ok_or(RequestFailure::NoTokenAllowed)?;
        let raw = if keep_raw { &self.raw[..] } else { logits };
        let logprobs = params.logprobs.map(|top| logprobs::position_logprobs(raw, token, top, &mut self.scratch.found));
        Ok((token, logprobs))
    }

    /// Log-probabilities of the prompt token `token` and of the `top` best ones at its position.
    ///
    /// # Errors
    /// [`RequestFailure::NotFinite`].
    pub fn prompt_logprobs(
        &mut self,
        logits: &[f32],
        token: u32,
        top: usize,
    ) -> Result<PositionLogprobs, RequestFailure> {
        check_finite(logits)?;
        Ok(logprobs::position_logprobs(logits, token, top, &mut self.scratch.found))
    }
}

/// Looks for NaN and infinities. `x * 0` is NaN for those and zero otherwise, and sums of it vectorise.
fn check_finite(logits: &[f32]) -> Result<(), RequestFailure> {
    let mut lanes = [0.0f32; 8];
    let (eights, rest) = logits.as_chunks::<8>();
    for eight in eights {
        for (lane, &logit) in lanes.iter_mut().zip(eight) {
            *lane += logit * 0.0;
        }
    }
    let finite = lanes.iter().all(|lane| !lane.is_nan()) && rest.iter().all(|logit| logit.is_finite());
    if finite { Ok(()) } else { Err(RequestFailure::NotFinite) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(
        params: &SamplingParams,
        output: &[u32],
        logits: &[f32],
    ) -> Result<(u32, Option<PositionLogprobs>), RequestFailure> {
        let mut sequence = SequenceSampling::new(params, &[0], 1);
        output.iter().for_each(|&token| sequence.push(token));
        Sampler::default().sample(&mut logits.to_vec(), params, &sequence, output, &[0])
    }

    #[test]
    fn what_is_not_finite_fails_wherever_it_is() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..19 {
                let mut logits = vec![1.0; 19];
                logits[place] = bad;
                assert_eq!(sample(&SamplingParams::default(), &[], &logits), Err(RequestFailure::NotFinite));
            }
        }
    }

    #[test]
    fn logprobs_are_raw_whatever_the_adjustments() {
        let params = SamplingParams {
            temperature: 0.0,
            logprobs: Some(1),
            logit_bias: [(2, 50.0)].into(),
            ..SamplingParams::default()
        };
        let (token, logprobs) = sample(&params, &[], &[0.0, 3.0, 1.0]).unwrap();
        let logprobs = logprobs.unwrap();
        assert_eq!((token, logprobs.chosen.rank, logprobs.top[0].token), (2, 2, 1));
        let total = (1.0 + 3f64.exp() + 1f64.exp()).ln();
        assert!((f64::from(logprobs.chosen.logprob) - (1.0 - total)).abs() < 1e-6);
    }

    #[test]
    fn contradicting_parameters_are_a_failure_and_not_a_wrong_token() {
        let params = SamplingParams { allowed_token_ids: Some(vec![0]), min_tokens: 1, ..SamplingParams::default() };
        assert_eq!(sample(&params, &[], &[1.0, 1.0]), Err(RequestFailure::NoTokenAllowed));
    }

    #[test]
    fn a_seed_fixes_the_answer_and_each_place_draws_anew() {
        let params = |seed| SamplingParams { seed: Some(seed), ..SamplingParams::default() };
        let logits = vec![0.0; 1000];
        let answer =
            |seed| -> Vec<u32> { (0..20).map(|n| sample(&params(seed), &vec![5; n], &logits).unwrap().0).collect() };
        assert_eq!(answer(3), answer(3));
        assert_ne!(answer(3), answer(4));
        let mut distinct = answer(3);
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > 15);
    }
}
