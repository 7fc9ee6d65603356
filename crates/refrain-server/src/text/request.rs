//! What every front end asks for: one validated request for text.

use refrain_engine::SamplingParams;
use serde_json::{Map, Value};

use super::TextError;

/// Most answers to one prompt.
pub const MAX_N: usize = 16;
/// Most stop strings.
pub const MAX_STOP_STRINGS: usize = 4;
/// Most bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most bad words.
pub const MAX_BAD_WORDS: usize = 128;

/// A request for one or several answers to one prompt. Every endpoint, `refrain chat` and the benchmarks make this.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Name of the request, for logs; need not be unique.
    pub request_id: String,
    /// What to continue or answer.
    pub prompt: Prompt,
    /// Let the tokenizer add its special tokens. `None`: for text yes, for chats no (the template writes them).
    pub add_special_tokens: Option<bool>,
    /// Keep only that much of the prompt's end.
    pub truncate_prompt_tokens: Option<Truncation>,
    /// How to choose tokens. Start from [`super::TextEngine::default_sampling`]; `max_tokens` and `bad_words` in here
    /// are set by the text engine from the fields below.
    pub sampling: SamplingParams,
    /// Most tokens of an answer. `None`: as many as the context still holds.
    pub max_tokens: Option<usize>,
    /// Words that an answer must not contain.
    pub bad_words: Vec<String>,
    /// Number of answers; answer `i` uses `seed + i`.
    pub n: usize,
    /// The first of these strings to appear ends the answer.
    pub stop: Vec<String>,
    /// Leave the stop string, or the text of the stop token, in the answer.
    pub include_stop_str_in_output: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Keep the prompt as text too, see [`super::PreparedPrompt::text`].
    pub echo: bool,
    /// With the `priority` policy, smaller goes first.
    pub priority: i32,
}

impl GenerateRequest {
    /// One answer to `prompt` with these sampling parameters, and otherwise the defaults.
    pub fn new(prompt: Prompt, sampling: SamplingParams) -> Self {
        Self {
            request_id: String::new(),
            prompt,
            add_special_tokens: None,
            truncate_prompt_tokens: None,
            sampling,
            max_tokens: None,
            bad_words: Vec::new(),
            n: 1,
            stop: Vec::new(),
            include_stop_str_in_output: false,
            skip_special_tokens: true,
            echo: false,
            priority: 0,
        }
    }

    /// Checks what can be checked without a tokenizer; the engine checks the sampling parameters when it is given
    /// them.
    ///
    /// # Errors
    /// [`TextError::Invalid`] naming the field, its value and what would be right.
    pub fn validate(&self) -> Result<(), TextError> {
        let invalid = |param, message| Err(TextError::Invalid { param, message });
        if self.n == 0 || self.n > MAX_N {
            return invalid("n", format!("n must be between 1 and {MAX_N}, got {}", self.n));
        }
        if self.stop.len() > MAX_STOP_STRINGS {
            return invalid("stop", format!("at most {MAX_STOP_STRINGS} stop strings, got {}", self.stop.len()));
        }
        if self.stop.iter().any(String::is_empty) {
            return invalid("stop", "a stop string must not be empty".to_owned());
        }
        if let Some(long) = self.stop.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
            let message = format!("a stop string may have {MAX_STOP_BYTES} bytes, one has {}", long.len());
            return invalid("stop", message);
        }
        if self.bad_words.len() > MAX_BAD_WORDS {
            return invalid("bad_words", format!("at most {MAX_BAD_WORDS} bad words, got {}", self.bad_words.len()));
        }
        if self.bad_words.iter().any(|word| word.trim().is_empty() || word.len() > MAX_STOP_BYTES) {
            let message =
                format!("each of bad_words must have 1 to {MAX_STOP_BYTES} bytes and be more than white space");
            return invalid("bad_words", message);
        }
        if self.max_tokens == Some(0) {
            return invalid("max_tokens", "max_tokens must be at least 1".to_owned());
        }
        if let Some(Truncation::Last(0)) = self.truncate_prompt_tokens {
            return invalid(
                "truncate_prompt_tokens",
                "truncate_prompt_tokens must be at least 1, or -1 for the context limit".to_owned(),
            );
        }
        match &self.prompt {
            Prompt::Chat(chat) => chat.validate(),
            _ => Ok(()),
        }
    }
}

/// What a request starts from.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Text to tokenize.
    Text(String),
    /// Token ids, used as they are.
    Ids(Vec<u32>),
    /// Messages, for the model's chat template.
    Chat(ChatPrompt),
}

/// A conversation and how to write it as a prompt.
#[derive(Clone, Debug)]
pub struct ChatPrompt {
    /// Array of messages, each an object with `role` and `content`, as the template shall see them.
    pub messages: Value,
    /// Array of tool definitions.
    pub tools: Option<Value>,
    /// Further variables of the template, for example `enable_thinking`.
    pub kwargs: Map<String, Value>,
    /// End the prompt with the opening of an assistant message.
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the answer continues it.
    pub continue_final_message: bool,
}

impl ChatPrompt {
    /// A conversation to answer, with the template's defaults.
    pub fn new(messages: Value) -> Self {
        Self { messages, tools: None, kwargs: Map::new(), add_generation_prompt: true, continue_final_message: false }
    }
}

impl ChatPrompt {
    /// Checks what can be checked without a template.
    ///
    /// # Errors
    /// [`TextError::Invalid`] when the end of the prompt is asked for in two ways.
    pub fn validate(&self) -> Result<(), TextError> {
        if self.add_generation_prompt && self.continue_final_message {
            let message = "continue_final_message and add_generation_prompt can't both be true: set \
                           add_generation_prompt to false to continue the last message";
            return Err(TextError::Invalid { param: "continue_final_message", message: message.to_owned() });
        }
        Ok(())
    }
}

/// How many tokens of the prompt's end to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// That many.
    Last(usize),
    /// What the context holds beside `max_tokens` (or one token, without it).
    Context,
}
