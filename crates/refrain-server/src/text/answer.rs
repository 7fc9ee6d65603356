//! The text of one answer, from its tokens.

use super::StopMatcher;
use refrain_model::Detokenizer;

/// Turns the tokens of one answer into text, and ends it at a stop string.
pub(super) struct AnswerText {
    /// None without a tokenizer: there is no text then.
    detokenizer: Option<Detokenizer>,
    stops: StopMatcher,
    min_tokens: usize,
    tokens: usize,
}

impl AnswerText {
    pub fn new(detokenizer: Option<Detokenizer>, stops: StopMatcher, min_tokens: usize) -> Self {
        Self { detokenizer, stops, min_tokens, tokens: 0 }
    }

    /// Tokens taken so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes the next token. `hidden` tokens (those that end the answer) count but have no text.
    /// Gives the text that is certain now and the stop string that ended it, if one did.
    pub fn push(&mut self, token: u32, hidden: bool) -> (String, Option<String>) {
        self.tokens += 1;
        let piece = match &mut self.detokenizer {
            Some(detokenizer) if !hidden => detokenizer.push(token),
            _ => String::new(),
        };
        self.take(&piece)
    }

    /// What was held back, at the end of the answer.
    pub fn finish(&mut self) -> (String, Option<String>) {
        let rest = self.detokenizer.as_mut().map(Detokenizer::finish).unwrap_or_default();
        let (mut text, matched) = self.take(&rest);
        if matched.is_none() {
            text.push_str(&self.stops.finish());
        }
        (text, matched)
    }

    fn take(&mut self, piece: &str) -> (String, Option<String>) {
        // As in vLLM: text of the first `min_tokens` tokens can't end the answer.
        let step = self.stops.push(piece, self.tokens > self.min_tokens || self.min_tokens == 0);
        let matched = step.matched.map(|index| self.stops.stops()[index].clone());
        (step.text, matched)
    }
}
