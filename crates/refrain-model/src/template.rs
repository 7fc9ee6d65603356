//! Chat messages to a prompt.

use serde_json::{Map, Value};

/// Why a chat template can't be compiled or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is broken.
    #[error("chat template does not compile: {problem}")]
    Syntax {
        /// What the compiler said, with the line.
        problem: String,
    },
    /// The template refused the messages with `raise_exception`.
    #[error("chat template refuses these messages: {message}")]
    Raised {
        /// The template's own words.
        message: String,
    },
    /// The template ran into an error with these messages.
    #[error("chat template fails: {problem}")]
    Failed {
        /// What the interpreter said, with the line.
        problem: String,
    },
    /// The template would not end, or writes too much.
    #[error("chat template exceeds the limit of {limit} {what}")]
    Limit {
        /// The number.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
    /// A template argument has a name that means something else.
    #[error("chat_template_kwargs: `{name}` is reserved")]
    Reserved {
        /// The name.
        name: String,
    },
}

/// The special tokens that a template may name, from tokenizer_config.json.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
}

/// What a template is rendered with.
#[derive(Clone, Copy, Debug)]
pub struct ChatInput<'a> {
    /// An array of messages.
    pub messages: &'a Value,
    /// An array of tools, if there are any.
    pub tools: Option<&'a Value>,
    /// Whether the prompt ends with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends inside the last message, so that the answer continues it.
    pub continue_final_message: bool,
    /// More variables for the template, such as `enable_thinking`.
    pub kwargs: &'a Map<String, Value>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Compiles a Jinja template.
    pub fn new(_source: &str, _special_tokens: &SpecialTokens) -> Result<ChatTemplate, TemplateError> {
        todo!()
    }

    /// The prompt for a conversation.
    pub fn render(&self, _input: &ChatInput<'_>) -> Result<String, TemplateError> {
        todo!()
    }
}
