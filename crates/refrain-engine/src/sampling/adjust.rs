//! Changes a row of logits as the request asks, before a token is chosen: what is forbidden, biased, penalised.

use crate::SamplingParams;
use std::collections::BTreeMap;

/// How often a token occurred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Occurrence {
    pub in_prompt: bool,
    pub in_output: u32,
}

/// Tokens that the penalties apply to, counted as the answer grows.
#[derive(Clone, Debug)]
pub(crate) struct Occurrences {
    /// `None` when no penalty is on.
    counts: Option<BTreeMap<u32, Occurrence>>,
}

impl Occurrences {
    /// Counts the prompt, if a penalty of `params` looks at it.
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let repetition = params.repetition_penalty != 1.0;
        let on = repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        let mut counts: Option<BTreeMap<u32, Occurrence>> = on.then(BTreeMap::new);
        if let (Some(counts), true) = (&mut counts, repetition) {
            for &token in prompt {
                counts.entry(token).or_default().in_prompt = true;
            }
        }
        Self { counts }
    }

    /// Counts one token of the answer.
    pub fn push(&mut self, token: u32) {
        if let Some(counts) = &mut self.counts {
            counts.entry(token).or_default().in_output += 1;
        }
    }

    /// Whether they are counted at all.
    pub(super) fn are_counted(&self) -> bool {
        self.counts.is_some()
    }

    /// The tokens that the penalties apply to, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Occurrence)> {
        self.counts.iter().flatten().map(|(&token, occurrence)| (token, occurrence))
    }

    /// What the frequency penalty subtracts.
    pub(super) fn frequency(occurrence: &Occurrence, params: &SamplingParams) -> f32 {
        params.frequency_penalty * occurrence.in_output as f32
    }
}

/// Tokens that `bad_words` and `min_tokens` forbid at a place of the answer, the first of which is 0; `output` is what
/// stands before it.
pub(super) fn forbidden<'a>(
    params: &'a SamplingParams,
    output: &'a [u32],
    place: usize,
    eos: &'a [u32],
) -> impl Iterator<Item = u32> + 'a {
    let words = params.bad_words.iter().filter_map(|word| {
        let (last, before) = word.split_last()?;
        output.ends_with(before).then_some(*last)
    });
    let too_early = place < params.min_tokens;
    let eos = if params.ignore_eos { &[] } else { eos };
    let ends = eos.iter().chain(&params.stop_token_ids).copied();
    words.chain(ends.filter(move |_| too_early))
}

/// Whether [`adjust`] changes anything for such a request.
pub(crate) fn adjusts(params: &SamplingParams) -> bool {
    params.allowed_token_ids.is_some()
        || !params.bad_words.is_empty()
        || params.min_tokens > 0
        || !params.logit_bias.is_empty()
        || params.repetition_penalty != 1.0
        || params.presence_penalty != 0.0
        || params.frequency_penalty != 0.0
}

/// Applies, in vLLM's order: `allowed_token_ids`, `bad_words`, `min_tokens`, `logit_bias`, and the repetition,
/// frequency and presence penalties. Forbidden tokens become `-inf`; everything else stays finite.
///
/// `output` are the tokens of the answer so far, `eos` the model's end-of-sequence ids. `allowed` is scratch space.
pub(crate) fn adjust(
    logits: &mut [f32],
    params: &SamplingParams,
    occurrences: &Occurrences,
    output: &[u32],
    eos: &[u32],
    allowed: &mut Vec<(u32, f32)>,
) {
    if let Some(ids) = &params.allowed_token_ids {
        allowed.clear();
        allowed.extend(ids.iter().map(|&id| (id, logits[id as usize])));
        logits.fill(f32::NEG_INFINITY);
        for &(id, logit) in allowed.iter() {
            logits[id as usize] = logit;
        }
    }
    for id in forbidden(params, output, output.len(), eos) {
        logits[id as usize] = f32::NEG_INFINITY;
    }
    for (&id, &bias) in &params.logit_bias {
        let logit = &mut logits[id as usize];
        *logit = keep_finite(*logit, *logit + bias);
    }
    for (id, occurrence) in occurrences.iter() {
        let logit = &mut logits[id as usize];
        let penalty = params.repetition_penalty;
        let mut value = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        if occurrence.in_output > 0 {
            value -= Occurrences::frequency(occurrence, params);
            value -= params.presence_penalty;
        }
        *logit = keep_finite(*logit, value);
    }
}

/// `-inf` stays what it is, forbidden; a finite logit never becomes infinite, however extreme the penalty.
fn keep_finite(before: f32, after: f32) -> f32 {
    if before == f32::NEG_INFINITY { before } else { after.clamp(f32::MIN, f32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjusted(params: &SamplingParams, prompt: &[u32], output: &[u32], logits: &[f32]) -> Vec<f32> {
        let mut occurrences = Occurrences::new(params, prompt);
        output.iter().for_each(|&token| occurrences.push(token));
        let mut logits = logits.to_vec();
        adjust(&mut logits, params, &occurrences, output, &[0], &mut Vec::new());
        logits
    }

    const NO: f32 = f32::NEG_INFINITY;

    #[test]
    fn the_defaults_change_nothing() {
        let logits = [1.0, -2.0, 3.5];
        assert_eq!(adjusted(&SamplingParams::default(), &[1, 1], &[2], &logits), logits);
        assert!(!adjusts(&SamplingParams::default()));
    }

    #[test]
    fn penalties_count_as_vllm_counts() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..SamplingParams::default()
        };
        // Token 0 in the prompt only, 1 in both, 2 twice in the answer, 3 nowhere.
        let got = adjusted(&params, &[0, 1], &[1, 2, 2], &[4.0, 4.0, -4.0, 4.0]);
        assert_eq!(got, [2.0, 2.0 - 0.5 - 0.25, -8.0 - 1.0 - 0.25, 4.0]);
    }

    #[test]
    fn presence_and_frequency_ignore_the_prompt() {
        let params = SamplingParams { presence_penalty: 1.0, frequency_penalty: 1.0, ..SamplingParams::default() };
        assert_eq!(adjusted(&params, &[0, 0], &[1], &[5.0, 5.0]), [5.0, 3.0]);
    }

    #[test]
    fn a_bad_word_is_forbidden_only_where_it_would_be_completed() {
        let params =
            SamplingParams { bad_words: vec![vec![1], vec![2, 3], vec![0, 2, 4]], ..SamplingParams::default() };
        assert_eq!(adjusted(&params, &[0], &[2], &[1.0; 5]), [1.0, NO, 1.0, NO, 1.0]);
        assert_eq!(adjusted(&params, &[2], &[], &[1.0; 5]), [1.0, NO, 1.0, 1.0, 1.0]);
        assert_eq!(adjusted(&params, &[], &[0, 2], &[1.0; 5]), [1.0, NO, 1.0, NO, NO]);
    }

    #[test]
    fn no_end_before_min_tokens() {
        let mut params = SamplingParams { min_tokens: 2, stop_token_ids: vec![2], ..SamplingParams::default() };
        assert_eq!(adjusted(&params, &[], &[1], &[1.0; 3]), [NO, 1.0, NO]);
        assert_eq!(adjusted(&params, &[], &[1, 1], &[1.0; 3]), [1.0; 3]);
        params.ignore_eos = true;
        assert_eq!(adjusted(&params, &[], &[], &[1.0; 3]), [1.0, 1.0, NO]);
    }

    #[test]
    fn a_bias_does_not_lift_what_is_forbidden() {
        let params = SamplingParams {
            allowed_token_ids: Some(vec![0, 2, 2]),
            bad_words: vec![vec![2]],
            logit_bias: [(0, 5.0), (1, 100.0), (2, 100.0)].into(),
            ..SamplingParams::default()
        };
        assert_eq!(adjusted(&params, &[], &[], &[1.0, 2.0, 3.0]), [6.0, NO, NO]);
    }

    #[test]
    fn extreme_penalties_stay_finite() {
        let params = SamplingParams { repetition_penalty: 1e-38, ..SamplingParams::default() };
        assert_eq!(adjusted(&params, &[0, 1], &[], &[1e10, -1e10])[0], f32::MAX);
        let params = SamplingParams { repetition_penalty: 1e38, ..SamplingParams::default() };
        assert_eq!(adjusted(&params, &[0, 1], &[], &[1e10, -1e10])[1], f32::MIN);
    }
}
