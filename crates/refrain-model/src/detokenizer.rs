//! Token ids to text, one by one.

use std::sync::Arc;

use crate::Tokenizer;

/// Turns the tokens of one answer into text as they come.
#[derive(Clone, Debug)]
pub struct Detokenizer {}

impl Detokenizer {
    /// Starts an answer.
    pub fn new(_tokenizer: Arc<Tokenizer>, _skip_special_tokens: bool) -> Detokenizer {
        todo!()
    }

    /// Takes the next token; returns the text that is certain now, never half a character.
    pub fn push(&mut self, _id: u32) -> String {
        todo!()
    }

    /// Returns what is left, with U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        todo!()
    }
}
