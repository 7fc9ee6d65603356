//! Token ids to text, one by one.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::Tokenizer;

/// Turns the tokens of one answer into text as they come. What [`push`](Self::push) and [`finish`](Self::finish) return
/// is, together, [`Tokenizer::decode`] of all the tokens.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    /// Whether any byte came.
    started: bool,
    /// Bytes of a character that is not whole yet, at most three.
    incomplete: Vec<u8>,
    /// The last token that gave text and those that followed, for decoders that look at neighbours.
    window: Vec<u32>,
    /// Bytes of the window's text that were returned.
    returned: String,
}

impl Detokenizer {
    /// Starts an answer.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer {
            tokenizer,
            skip_special_tokens,
            started: false,
            incomplete: Vec::new(),
            window: Vec::new(),
            returned: String::new(),
        }
    }

    /// Takes the next token; returns the text that is certain now, never half a character.
    pub fn push(&mut self, id: u32) -> String {
        let Some(bytes) = self.tokenizer.bytes_of(id) else { return String::new() };
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return String::new();
        }
        if !self.tokenizer.is_concatenation() {
            return self.push_to_window(id);
        }
        let mut bytes = bytes;
        if !self.started && !bytes.is_empty() {
            self.started = true;
            if self.tokenizer.strips_first_space() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.incomplete.extend_from_slice(bytes);
        take_whole_characters(&mut self.incomplete)
    }

    /// Returns what is left: U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        if self.incomplete.is_empty() {
            return String::new();
        }
        self.incomplete.clear();
        char::REPLACEMENT_CHARACTER.to_string()
    }

    /// Decodes the last tokens together; the text that is new is behind what they gave before.
    fn push_to_window(&mut self, id: u32) -> String {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, false);
        let same = text.chars().zip(self.returned.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        let new = text[same..].to_string();
        if !new.is_empty() {
            self.window = vec![id];
            self.returned = self.tokenizer.decode(&self.window, false);
        }
        new
    }
}

/// Takes the whole characters from the front of `bytes`, with U+FFFD for what can't become one, as
/// `String::from_utf8_lossy` puts it. What stays may become a character.
fn take_whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in bytes.utf8_chunks() {
        let is_last = done + chunk.valid().len() + chunk.invalid().len() == bytes.len();
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        if chunk.invalid().is_empty() || (is_last && may_become_whole(chunk.invalid())) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        done += chunk.invalid().len();
    }
    bytes.drain(..done);
    text
}

/// Whether these bytes are the beginning of a character.
fn may_become_whole(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}
