//! Checks a request before it is accepted: nothing that passes can make a step fail.

use crate::{Request, SamplingParams, SubmitError};

/// Most best tokens whose log-probabilities can be asked for.
pub const MAX_LOGPROBS: usize = 20;

/// Most stop tokens, and most bad words; each costs time at every token.
pub const MAX_STOP_TOKENS: usize = 1024;

/// Most tokens in all bad words together.
pub const MAX_BAD_WORD_TOKENS: usize = 16 * 1024;

/// Highest temperature; beyond it nothing but noise is left.
pub const MAX_TEMPERATURE: f32 = 1000.0;

impl Request {
    /// Checks prompt and sampling parameters against the vocabulary and the context limit.
    ///
    /// # Errors
    /// [`SubmitError`] naming what is wrong and what would be right.
    pub fn validate(&self, vocab_size: usize, max_model_len: usize) -> Result<(), SubmitError> {
        if self.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if self.prompt.len() >= max_model_len {
            return Err(SubmitError::PromptTooLong { prompt_tokens: self.prompt.len(), max_model_len });
        }
        if let Some(index) = self.prompt.iter().position(|&token| token as usize >= vocab_size) {
            return Err(SubmitError::TokenOutsideVocabulary { token: self.prompt[index], index, vocab_size });
        }
        self.sampling.validate(vocab_size, max_model_len)
    }
}

impl SamplingParams {
    /// Checks every field against its range, the vocabulary and the context limit.
    ///
    /// # Errors
    /// [`SubmitError::InvalidSampling`] naming the first field that is wrong, its value and its range.
    pub fn validate(&self, vocab_size: usize, max_model_len: usize) -> Result<(), SubmitError> {
        within("temperature", self.temperature, |t| (0.0..=MAX_TEMPERATURE).contains(&t), "at least 0, at most 1000")?;
        within("top_p", self.top_p, |p| p > 0.0 && p <= 1.0, "above 0, at most 1")?;
        within("min_p", self.min_p, |p| (0.0..=1.0).contains(&p), "at least 0, at most 1")?;
        let penalty = |p: f32| (-2.0..=2.0).contains(&p);
        within("presence_penalty", self.presence_penalty, penalty, "at least -2, at most 2")?;
        within("frequency_penalty", self.frequency_penalty, penalty, "at least -2, at most 2")?;
        let positive = |p: f32| p > 0.0 && p.is_finite();
        within("repetition_penalty", self.repetition_penalty, positive, "above 0 and finite")?;
        if self.max_tokens == 0 {
            return invalid("max_tokens", "0 is too small; at least 1".to_owned());
        }
        if self.min_tokens > self.max_tokens {
            let message = format!("{} is more than max_tokens, which is {}", self.min_tokens, self.max_tokens);
            return invalid("min_tokens", message);
        }
        if self.min_tokens >= max_model_len {
            let message = format!("{} can't be reached; the context limit is {max_model_len}", self.min_tokens);
            return invalid("min_tokens", message);
        }
        for (param, value) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(value) = value.filter(|&value| value > MAX_LOGPROBS) {
                return invalid(param, format!("{value} is too many; at most {MAX_LOGPROBS}"));
            }
        }
        in_vocabulary("logit_bias", self.logit_bias.keys(), vocab_size)?;
        for (token, &bias) in &self.logit_bias {
            if !(-100.0..=100.0).contains(&bias) {
                return invalid("logit_bias", format!("{bias} for token {token}; at least -100, at most 100"));
            }
        }
        at_most("stop_token_ids", self.stop_token_ids.len(), MAX_STOP_TOKENS)?;
        in_vocabulary("stop_token_ids", &self.stop_token_ids, vocab_size)?;
        if let Some(ids) = &self.allowed_token_ids {
            if ids.is_empty() {
                return invalid("allowed_token_ids", "is empty; leave it out, or name at least one token".to_owned());
            }
            at_most("allowed_token_ids", ids.len(), vocab_size)?;
            in_vocabulary("allowed_token_ids", ids, vocab_size)?;
        }
        at_most("bad_words", self.bad_words.len(), MAX_STOP_TOKENS)?;
        if self.bad_words.iter().any(Vec::is_empty) {
            return invalid("bad_words", "one of them is empty; each needs at least one token".to_owned());
        }
        at_most("bad_words", self.bad_words.iter().map(Vec::len).sum(), MAX_BAD_WORD_TOKENS)?;
        in_vocabulary("bad_words", self.bad_words.iter().flatten(), vocab_size)
    }
}

fn invalid(param: &'static str, message: String) -> Result<(), SubmitError> {
    Err(SubmitError::InvalidSampling { param, message })
}

/// NaN is in no range.
fn within(param: &'static str, value: f32, range: impl Fn(f32) -> bool, words: &str) -> Result<(), SubmitError> {
    if range(value) { Ok(()) } else { invalid(param, format!("{value} is out of range; it must be {words}")) }
}

fn at_most(param: &'static str, count: usize, most: usize) -> Result<(), SubmitError> {
    if count <= most { Ok(()) } else { invalid(param, format!("{count} entries are too many; at most {most}")) }
}

fn in_vocabulary<'a>(
    param: &'static str,
    ids: impl IntoIterator<Item = &'a u32>,
    vocab_size: usize,
) -> Result<(), SubmitError> {
    match ids.into_iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => invalid(param, format!("token {id} does not exist; the vocabulary ends at {}", vocab_size - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn param_of(params: &SamplingParams) -> Option<&'static str> {
        match params.validate(100, 64) {
            Ok(()) => None,
            Err(SubmitError::InvalidSampling { param, message }) => {
                assert!(!message.is_empty());
                Some(param)
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(param_of(&SamplingParams::default()), None);
    }

    #[test]
    fn each_bad_value_is_answered_with_its_name() {
        type Break = fn(&mut SamplingParams);
        let cases: [(&str, Break); 29] = [
            ("temperature", |p| p.temperature = f32::NAN),
            ("temperature", |p| p.temperature = f32::INFINITY),
            ("temperature", |p| p.temperature = -0.1),
            ("temperature", |p| p.temperature = 1001.0),
            ("top_p", |p| p.top_p = 0.0),
            ("top_p", |p| p.top_p = 1.1),
            ("top_p", |p| p.top_p = f32::NAN),
            ("min_p", |p| p.min_p = -0.1),
            ("min_p", |p| p.min_p = f32::NAN),
            ("presence_penalty", |p| p.presence_penalty = 2.1),
            ("presence_penalty", |p| p.presence_penalty = f32::NAN),
            ("frequency_penalty", |p| p.frequency_penalty = -2.1),
            ("frequency_penalty", |p| p.frequency_penalty = f32::NEG_INFINITY),
            ("repetition_penalty", |p| p.repetition_penalty = 0.0),
            ("repetition_penalty", |p| p.repetition_penalty = f32::INFINITY),
            ("repetition_penalty", |p| p.repetition_penalty = f32::NAN),
            ("max_tokens", |p| p.max_tokens = 0),
            ("min_tokens", |p| p.min_tokens = 17),
            ("min_tokens", |p| (p.min_tokens, p.max_tokens) = (64, 64)),
            ("logprobs", |p| p.logprobs = Some(21)),
            ("prompt_logprobs", |p| p.prompt_logprobs = Some(usize::MAX)),
            ("logit_bias", |p| p.logit_bias = [(100, 0.0)].into()),
            ("logit_bias", |p| p.logit_bias = [(1, f32::NAN)].into()),
            ("stop_token_ids", |p| p.stop_token_ids = vec![u32::MAX]),
            ("stop_token_ids", |p| p.stop_token_ids = vec![0; 1025]),
            ("allowed_token_ids", |p| p.allowed_token_ids = Some(vec![])),
            ("allowed_token_ids", |p| p.allowed_token_ids = Some(vec![100])),
            ("bad_words", |p| p.bad_words = vec![vec![]]),
            ("bad_words", |p| p.bad_words = vec![vec![1, 100]]),
        ];
        for (name, damage) in cases {
            let mut params = SamplingParams::default();
            damage(&mut params);
            assert_eq!(param_of(&params), Some(name), "{params:?}");
        }
    }

    #[test]
    fn the_message_names_value_and_range() {
        let params = SamplingParams { top_p: -3.5, ..SamplingParams::default() };
        let message = params.validate(100, 64).unwrap_err().to_string();
        assert_eq!(message, "top_p: -3.5 is out of range; it must be above 0, at most 1");
    }

    #[test]
    fn prompts_are_checked_with_their_numbers() {
        let request = |prompt| Request { id: String::new(), prompt, sampling: SamplingParams::default(), priority: 0 };
        assert_eq!(request(vec![]).validate(10, 8), Err(SubmitError::EmptyPrompt));
        assert_eq!(request(vec![9; 7]).validate(10, 8), Ok(()));
        let error = request(vec![9; 8]).validate(10, 8).unwrap_err();
        assert_eq!(error, SubmitError::PromptTooLong { prompt_tokens: 8, max_model_len: 8 });
        assert!(error.to_string().contains("at most 7 tokens"), "{error}");
        let error = request(vec![0, 10]).validate(10, 8).unwrap_err();
        assert_eq!(error, SubmitError::TokenOutsideVocabulary { token: 10, index: 1, vocab_size: 10 });
    }

    proptest! {
        /// What passes is in range: no arrangement of bits slips through.
        #[test]
        fn no_float_slips_through(bits in any::<[u32; 6]>()) {
            let [temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty] = bits.map(f32::from_bits);
            let params = SamplingParams {
                temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty, ..SamplingParams::default()
            };
            if params.validate(100, 64).is_ok() {
                let all = [temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty];
                prop_assert!(all.iter().all(|value| value.is_finite()));
                prop_assert!(temperature >= 0.0 && top_p > 0.0 && top_p <= 1.0 && repetition_penalty > 0.0);
            }
        }
    }
}
