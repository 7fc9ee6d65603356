//! From a prompt of any kind to token ids.

use super::{ChatPrompt, Prompt, TextError, Truncation};
use refrain_model::{ChatInput, ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

/// A prompt as the engine takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedPrompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Its text, if `echo` asked for it.
    pub text: Option<String>,
}

/// What is needed to read prompts.
pub(super) struct PromptReader<'a> {
    pub tokenizer: Option<&'a Tokenizer>,
    pub template: Option<&'a Template>,
    /// Most tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Bytes of the longest token: a longer text than so many times the context can't fit.
    pub max_token_bytes: usize,
}

/// What to do with a prompt beside reading it.
#[derive(Clone, Copy)]
pub(super) struct PromptOptions {
    pub add_special_tokens: Option<bool>,
    pub truncate: Option<Truncation>,
    /// Tokens that the answer shall have room for.
    pub max_tokens: Option<usize>,
    pub keep_text: bool,
}

/// A chat template and what it understands.
pub(super) struct Template {
    pub template: std::sync::Arc<ChatTemplate>,
    /// Whether it reads `content` given as a list of parts; otherwise the parts' texts are joined for it.
    reads_parts: bool,
}

impl Template {
    pub fn new(template: std::sync::Arc<ChatTemplate>) -> Self {
        let reads_parts = reads_parts(&template);
        Self { template, reads_parts }
    }
}

/// Unicode normalization (NFC) makes a text at most three times shorter.
const NORMALIZATION_SHRINKS: usize = 4;

impl PromptReader<'_> {
    /// Token ids of `prompt`, and its text if wanted.
    pub fn read(&self, prompt: &Prompt, options: PromptOptions) -> Result<PreparedPrompt, TextError> {
        let (mut ids, mut text) = match prompt {
            Prompt::Ids(ids) => (ids.clone(), None),
            Prompt::Text(text) => {
                let add_special_tokens = options.add_special_tokens.unwrap_or(true);
                (self.encode(text, add_special_tokens, options.truncate)?, Some(text.clone()))
            }
            Prompt::Chat(chat) => {
                let text = self.render(chat)?;
                let add_special_tokens = options.add_special_tokens.unwrap_or(false);
                (self.encode(&text, add_special_tokens, options.truncate)?, Some(text))
            }
        };
        if let Some(truncation) = options.truncate {
            let keep = match truncation {
                Truncation::Last(keep) => keep,
                Truncation::Context => self.max_model_len.saturating_sub(options.max_tokens.unwrap_or(1)).max(1),
            };
            if ids.len() > keep {
                ids.drain(..ids.len() - keep);
                text = None;
            }
        }
        if ids.is_empty() {
            return Err(TextError::EmptyPrompt);
        }
        let text = match (options.keep_text, text) {
            (false, _) => None,
            (true, Some(text)) => Some(text),
            (true, None) => Some(self.tokenizer("echo")?.decode(&ids, false)),
        };
        Ok(PreparedPrompt { ids, text })
    }

    /// The prompt text of a conversation.
    pub fn render(&self, chat: &ChatPrompt) -> Result<String, TextError> {
        let template = self.template.ok_or(TextError::NoTemplate)?;
        let joined;
        let messages = if template.reads_parts {
            &chat.messages
        } else {
            joined = join_parts(&chat.messages);
            &joined
        };
        let input = ChatInput {
            messages,
            tools: chat.tools.as_ref(),
            add_generation_prompt: chat.add_generation_prompt,
            continue_final_message: chat.continue_final_message,
            kwargs: &chat.kwargs,
        };
        template.template.render(&input).map_err(TextError::Template)
    }

    fn encode(&self, text: &str, special: bool, truncate: Option<Truncation>) -> Result<Vec<u32>, TextError> {
        let tokenizer = self.tokenizer("a prompt given as text")?;
        let at_least = text.len() / (self.max_token_bytes.max(1) * NORMALIZATION_SHRINKS);
        if truncate.is_none() && at_least > self.max_model_len {
            let max_model_len = self.max_model_len;
            return Err(TextError::PromptTooLong { prompt_tokens: at_least, exact: false, max_model_len });
        }
        tokenizer.encode(text, special).map_err(TextError::Tokenizer)
    }

    fn tokenizer(&self, what: &'static str) -> Result<&Tokenizer, TextError> {
        self.tokenizer.ok_or(TextError::NoTokenizer { what })
    }
}

/// The same messages with each list of text parts joined by newlines, as vLLM does for templates that want strings.
fn join_parts(messages: &Value) -> Value {
    let mut messages = messages.clone();
    for message in messages.as_array_mut().into_iter().flatten() {
        let Some(Value::Array(parts)) = message.get("content") else { continue };
        let texts: Vec<&str> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
        message["content"] = Value::String(texts.join("\n"));
    }
    messages
}

/// Whether the template writes a list with one text part as it writes the text itself.
fn reads_parts(template: &ChatTemplate) -> bool {
    let render = |content: Value| {
        let messages = json!([{"role": "user", "content": content}]);
        let kwargs = Map::new();
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs: &kwargs,
        };
        template.render(&input).ok()
    };
    const PROBE: &str = "one two";
    let as_text = render(json!(PROBE));
    as_text.is_some() && as_text == render(json!([{"type": "text", "text": PROBE}]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_by_newlines() {
        let messages = json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null},
        ]);
        let joined = join_parts(&messages);
        assert_eq!(joined[0]["content"], "a\nb");
        assert_eq!(joined[1]["content"], Value::Null);
    }
}
