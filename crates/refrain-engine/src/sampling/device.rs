//! The same choice as [`super::Sampler`]'s, put into numbers for a device that chooses by itself.

use super::adjust::Occurrences;
use super::choose::GREEDY_BELOW;
use super::{SequenceSampling, rng};
use crate::SamplingParams;
use refrain_device::{Adjustment, RowSampling};

/// What is wanted of a prompt row: the log-probabilities of the token that follows, and of the `top` best ones.
pub(crate) fn given_row(token: u32, top: usize) -> RowSampling {
    RowSampling { given: Some(token), logprobs: Some(top as u32), ..RowSampling::default() }
}

impl SequenceSampling {
    /// What is wanted of the row that gives the token at `place` of the answer, the first of which is 0. `output` is the
    /// answer so far; its last tokens may be missing where nothing [reads](SequenceSampling::reads_output) them. The
    /// adjustments go to the end of `adjustments`.
    pub fn row(
        &self,
        params: &SamplingParams,
        output: &[u32],
        place: usize,
        eos: &[u32],
        adjustments: &mut Vec<Adjustment>,
    ) -> RowSampling {
        debug_assert!(place == output.len() || !self.reads_output(params), "the answer is not known up to {place}");
        let begin = adjustments.len();
        if self.adjusts {
            self.push_adjustments(params, output, place, eos, adjustments);
            merge_equal_tokens(adjustments, begin);
        }
        let greedy = params.temperature < GREEDY_BELOW;
        RowSampling {
            temperature: if greedy { 0.0 } else { params.temperature },
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            uniform: self.uniform(params, place),
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            adjustments: begin as u32..adjustments.len() as u32,
            only_adjusted: params.allowed_token_ids.is_some(),
            given: None,
            logprobs: params.logprobs.map(|top| top as u32),
        }
    }

    /// The random number of the draw at a place of the answer; 0 for greedy requests, which draw none.
    pub fn uniform(&self, params: &SamplingParams, place: usize) -> f64 {
        if params.temperature < GREEDY_BELOW { 0.0 } else { rng::random_unit(self.seed, place as u64) }
    }

    /// Pushes what [`super::adjust::adjust`] does, in any order and some tokens several times. Of tokens that are not
    /// allowed nothing: they can't be chosen anyway.
    fn push_adjustments(
        &self,
        params: &SamplingParams,
        output: &[u32],
        place: usize,
        eos: &[u32],
        adjustments: &mut Vec<Adjustment>,
    ) {
        let allowed = self.allowed.as_deref();
        let mut push = |adjustment: Adjustment| {
            if allowed.is_none_or(|ids| ids.binary_search(&adjustment.token).is_ok()) {
                adjustments.push(adjustment);
            }
        };
        for &token in allowed.into_iter().flatten() {
            push(Adjustment { token, ..Adjustment::default() });
        }
        for (token, occurrence) in self.occurrences.iter() {
            let frequency = Occurrences::frequency(occurrence, params);
            let generated = occurrence.in_output > 0;
            push(Adjustment { token, occurred: true, generated, frequency, ..Adjustment::default() });
        }
        for (&token, &bias) in &params.logit_bias {
            push(Adjustment { token, bias, ..Adjustment::default() });
        }
        for token in super::adjust::forbidden(params, output, place, eos) {
            push(Adjustment { token, forbidden: true, ..Adjustment::default() });
        }
    }
}

/// Sorts the adjustments from `begin` on and puts those of one token together: each field is set in one of them.
fn merge_equal_tokens(adjustments: &mut Vec<Adjustment>, begin: usize) {
    // A stable sort is fast here: it finds the runs that are ascending already.
    adjustments[begin..].sort_by_key(|adjustment| adjustment.token);
    let mut kept = begin;
    for index in begin..adjustments.len() {
        let next = adjustments[index];
        if kept > begin && adjustments[kept - 1].token == next.token {
            let before = &mut adjustments[kept - 1];
            before.forbidden |= next.forbidden;
            before.occurred |= next.occurred;
            before.generated |= next.generated;
            before.bias += next.bias;
            before.frequency += next.frequency;
        } else {
            adjustments[kept] = next;
            kept += 1;
        }
    }
    adjustments.truncate(kept);
}

/// Chooses as a device does, with the functions of the host: for tests of the engine.
#[cfg(test)]
pub(crate) mod on_host {
    use super::super::choose::choose;
    use super::super::logprobs::position_logprobs;
    use super::super::{Scratch, check_finite};
    use crate::{PositionLogprobs, SamplingParams, TokenLogprob};
    use refrain_device::{Adjustment, Chosen, NoToken, RankedToken, RowSampling};

    /// Adds what comes of one row.
    pub fn choose_row(logits: &[f32], row: &RowSampling, adjustments: &[Adjustment], chosen: &mut Chosen) {
        let mut scratch = Scratch::default();
        let token = if check_finite(logits).is_err() {
            Err(NoToken::NotFinite)
        } else if let Some(given) = row.given {
            Ok(given)
        } else {
            let (temperature, top_k, top_p, min_p) = (row.temperature, row.top_k, row.top_p, row.min_p);
            let params = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
            let adjusted = adjusted(logits, row, adjustments);
            choose(&adjusted, &params, row.uniform, &mut scratch).ok_or(NoToken::NoneAllowed)
        };
        let ranked =
            |entry: &TokenLogprob| RankedToken { token: entry.token, logprob: entry.logprob, rank: entry.rank };
        chosen.rows.push(token.map(|token| match row.logprobs {
            None => RankedToken { token, ..RankedToken::default() },
            Some(top) => {
                let PositionLogprobs { chosen: own, top } =
                    position_logprobs(logits, token, top as usize, &mut scratch.found);
                chosen.top.extend(top.iter().map(ranked));
                ranked(&own)
            }
        }));
        chosen.top_ends.push(chosen.top.len() as u32);
    }

    /// The adjusted logits by the definition of [`Adjustment`].
    pub fn adjusted(logits: &[f32], row: &RowSampling, adjustments: &[Adjustment]) -> Vec<f32> {
        let own = &adjustments[row.adjustments.start as usize..row.adjustments.end as usize];
        let mut result = if row.only_adjusted { vec![f32::NEG_INFINITY; logits.len()] } else { logits.to_vec() };
        let finite = |value: f32| value.clamp(f32::MIN, f32::MAX);
        for adjustment in own {
            let mut value = finite(logits[adjustment.token as usize] + adjustment.bias);
            if adjustment.occurred {
                value = if value > 0.0 { value / row.repetition } else { value * row.repetition };
            }
            if adjustment.generated {
                value = value - adjustment.frequency - row.presence;
            }
            result[adjustment.token as usize] = if adjustment.forbidden { f32::NEG_INFINITY } else { finite(value) };
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::super::adjust::adjust;
    use super::*;
    use proptest::prelude::*;

    const VOCAB: u32 = 12;

    fn params() -> impl Strategy<Value = SamplingParams> {
        let token = || 0..VOCAB;
        let penalty = || prop_oneof![Just(0.0f32), -1.0f32..1.0];
        let penalties = (prop_oneof![Just(1.0f32), 0.5f32..2.0], penalty(), penalty());
        let allowed = prop::option::weighted(0.3, prop::collection::vec(token(), 1..8));
        let words = prop::collection::vec(prop::collection::vec(token(), 1..3), 0..3);
        let bias = prop::collection::btree_map(token(), -100.0f32..100.0, 0..4);
        let stops = prop::collection::vec(token(), 0..3);
        (penalties, allowed, words, bias, stops, 0usize..6, any::<bool>()).prop_map(
            |(penalties, allowed_token_ids, bad_words, logit_bias, stop_token_ids, min_tokens, ignore_eos)| {
                SamplingParams {
                    repetition_penalty: penalties.0,
                    presence_penalty: penalties.1,
                    frequency_penalty: penalties.2,
                    allowed_token_ids,
                    bad_words,
                    logit_bias,
                    stop_token_ids,
                    min_tokens,
                    ignore_eos,
                    ..SamplingParams::default()
                }
            },
        )
    }

    proptest! {
        #[test]
        fn the_adjustments_are_those_of_the_host(
            params in params(),
            (prompt, output) in (prop::collection::vec(0..VOCAB, 1..6), prop::collection::vec(0..VOCAB, 0..8)),
            logits in prop::collection::vec(prop_oneof![-5.0f32..5.0, any::<f32>().prop_filter("finite", |x| x.is_finite())], VOCAB as usize),
        ) {
            let mut sequence = SequenceSampling::new(&params, &prompt, 1);
            output.iter().for_each(|&token| sequence.push(token));
            let mut want = logits.clone();
            adjust(&mut want, &params, &sequence.occurrences, &output, &[0], &mut Vec::new());
            let mut adjustments = vec![Adjustment::default(); 3];
            // The last token is not known yet, where that makes no difference.
            let known = if sequence.reads_output(&params) { &output } else { &output[..output.len().saturating_sub(1)] };
            let row = sequence.row(&params, known, output.len(), &[0], &mut adjustments);
            prop_assert_eq!(row.adjustments.start, 3);
            let own = &adjustments[3..];
            prop_assert!(own.windows(2).all(|pair| pair[0].token < pair[1].token));
            prop_assert_eq!(on_host::adjusted(&logits, &row, &adjustments), want);
        }
    }
}
