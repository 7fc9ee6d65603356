//! Log-probabilities in the three forms of the API: chat, completions, and vLLM's `prompt_logprobs`.

use crate::text::TextEngine;
use refrain_engine::{PositionLogprobs, TokenLogprob};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// JSON has no infinity: as in vLLM this stands for "impossible".
const LEAST: f32 = -9999.0;

/// How tokens are named.
#[derive(Clone)]
pub(crate) struct TokenNames {
    pub text: TextEngine,
    /// `token_id:N` instead of the text.
    pub as_ids: bool,
    /// Special tokens are not in the text.
    pub skip_special: bool,
}

/// One token of a chat's `logprobs.content`.
#[derive(Clone, Debug, Serialize)]
pub struct ChatToken {
    token: String,
    logprob: f64,
    bytes: Option<Vec<u8>>,
    top_logprobs: Vec<ChatTop>,
}

/// One of the best tokens at a position.
#[derive(Clone, Debug, Serialize)]
struct ChatTop {
    token: String,
    logprob: f64,
    bytes: Option<Vec<u8>>,
}

/// `logprobs` of a chat's choice.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ChatLogprobs {
    /// One entry for each token of the answer.
    pub content: Vec<ChatToken>,
}

/// `logprobs` of a completion's choice: four lists with an entry for each token.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CompletionLogprobs {
    /// Where the token begins in the text, in characters.
    pub text_offset: Vec<usize>,
    /// Log-probability of the token; none for the first of a prompt.
    pub token_logprobs: Vec<Option<f64>>,
    /// The token as text; what is no text by itself as `bytes:\xe2\x80`.
    pub tokens: Vec<String>,
    /// The best tokens and the one that stands there.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
}

impl TokenNames {
    fn known(&self) -> bool {
        self.text.tokenizer().is_some()
    }

    /// Name for a chat: bytes that are no text become U+FFFD, since `bytes` has them.
    fn chat(&self, token: u32) -> (String, Option<Vec<u8>>) {
        if !self.known() {
            return (format!("token_id:{token}"), None);
        }
        let bytes = self.text.token_bytes(token);
        let name = match self.as_ids {
            true => format!("token_id:{token}"),
            false => String::from_utf8_lossy(&bytes).into_owned(),
        };
        (name, Some(bytes))
    }

    /// Name for completions, as OpenAI writes it.
    fn completion(&self, token: u32) -> String {
        if self.as_ids || !self.known() {
            return format!("token_id:{token}");
        }
        match String::from_utf8(self.text.token_bytes(token)) {
            Ok(text) => text,
            Err(broken) => {
                let hex = broken.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", hex.collect::<String>())
            }
        }
    }

    /// Characters that a token adds to the text: each is counted where its first byte is.
    fn characters(&self, token: u32) -> usize {
        if self.skip_special && self.text.tokenizer().is_some_and(|tokenizer| tokenizer.is_special(token)) {
            return 0;
        }
        self.text.token_bytes(token).iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
    }

    /// One position of an answer, for a chat.
    pub fn chat_token(&self, position: &PositionLogprobs, top: usize) -> ChatToken {
        let (token, bytes) = self.chat(position.chosen.token);
        let top = position.top.iter().take(top).map(|best| {
            let (token, bytes) = self.chat(best.token);
            ChatTop { token, logprob: finite(best.logprob), bytes }
        });
        ChatToken { token, logprob: finite(position.chosen.logprob), bytes, top_logprobs: top.collect() }
    }

    /// vLLM's `prompt_logprobs`: nothing for the first token, then a map from id to value for each.
    pub fn prompt(&self, positions: &[PositionLogprobs], top: usize) -> Vec<Value> {
        let entry = |token: &TokenLogprob| {
            let decoded = String::from_utf8_lossy(&self.text.token_bytes(token.token)).into_owned();
            let value = json!({"logprob": finite(token.logprob), "rank": token.rank, "decoded_token": decoded});
            (token.token.to_string(), value)
        };
        let map = |position: &PositionLogprobs| {
            let best = position.top.iter().take(top).map(entry);
            Value::Object(std::iter::once(entry(&position.chosen)).chain(best).collect())
        };
        std::iter::once(Value::Null).chain(positions.iter().map(map)).collect()
    }
}

impl CompletionLogprobs {
    /// Adds a prompt token of which nothing is known: the first.
    pub fn push_unknown(&mut self, names: &TokenNames, token: u32, offset: &mut usize) {
        self.push_name(names, token, offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// Adds a token. `offset` is where it begins, and is moved behind it.
    pub fn push(&mut self, names: &TokenNames, position: &PositionLogprobs, top: usize, offset: &mut usize) {
        self.push_name(names, position.chosen.token, offset);
        self.token_logprobs.push(Some(finite(position.chosen.logprob)));
        let mut map = Map::new();
        for best in position.top.iter().take(top).chain(std::iter::once(&position.chosen)) {
            // Of two tokens with the same text the more probable one stays.
            map.entry(names.completion(best.token)).or_insert_with(|| json!(finite(best.logprob)));
        }
        self.top_logprobs.push(Some(map));
    }

    fn push_name(&mut self, names: &TokenNames, token: u32, offset: &mut usize) {
        self.tokens.push(names.completion(token));
        self.text_offset.push(*offset);
        *offset += names.characters(token);
    }
}

/// The number for JSON. Double precision, since a JSON value in memory has no other: a single one written directly has
/// fewer digits, and clients that compare the two would find them different.
fn finite(logprob: f32) -> f64 {
    f64::from(logprob.max(LEAST))
}
