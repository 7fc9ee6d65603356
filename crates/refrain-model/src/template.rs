//! Chat messages to a prompt, by the Jinja template of the model.
//!
//! Renders what Hugging Face transformers renders (`utils/chat_template_utils.py`): the same variables, `trim_blocks`
//! and `lstrip_blocks`, Python's spelling of values, its `tojson`. A template is data from the network: it runs with a
//! budget of instructions and bytes, and sees no files.

mod json;
mod python;
mod strftime;
mod sums;
mod tags;
#[cfg(test)]
mod tests;
mod variables;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde_json::{Map, Value};

/// Instructions, of which one also pays for 64 bytes of text: far more than the longest conversation takes, and done in
/// a few tenths of a second.
const FUEL: u64 = 4_000_000;
/// Whatever takes time without taking fuel runs into the clock. No thread can be stopped, so one that is given up goes on
/// in the background: nothing is known that does it, now that sums of lists take fuel (`template/sums.rs`).
const MOST_SECONDS: u64 = 10;
/// A rendering has a thread with this much stack, of which it touches next to nothing: the lists in lists that a
/// template can build from its fuel are dropped one call inside the other, and a stack that overflows ends the process.
const STACK_BYTES: usize = 256 << 20;
/// Longest prompt.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// The template's name in the line numbers of errors.
const NAME: &str = "chat_template";

/// Why a chat template can't be compiled or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is broken.
    #[error("the chat template does not compile: {problem}")]
    Syntax {
        /// What the compiler said, with the line.
        problem: String,
    },
    /// The template refused the messages with `raise_exception`.
    #[error("the chat template refuses these messages: {message}")]
    Raised {
        /// The template's own words.
        message: String,
    },
    /// The template ran into an error with these messages.
    #[error("the chat template fails on these messages: {problem}")]
    Failed {
        /// What the interpreter said, with the line.
        problem: String,
    },
    /// The template would not end, or writes too much.
    #[error("the chat template takes more than {limit} {what}")]
    Limit {
        /// The number.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// A template argument has a name that means something else.
    #[error("chat_template_kwargs: `{name}` has a field of its own in the request")]
    Reserved {
        /// The name.
        name: String,
    },
    /// The last message can't be continued.
    #[error("continue_final_message: {problem}")]
    Continue {
        /// Why.
        problem: String,
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
    /// An array of messages. Templates expect the arguments of tool calls as objects, not as JSON text.
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
pub struct ChatTemplate {
    compiled: Arc<Compiled>,
    patience: Duration,
}

#[derive(Debug)]
struct Compiled {
    environment: Environment<'static>,
    special_tokens: SpecialTokens,
}

impl ChatTemplate {
    /// Compiles a Jinja template and tries it on a greeting, so that one that doesn't end is refused here.
    pub fn new(source: &str, special_tokens: &SpecialTokens) -> Result<ChatTemplate, TemplateError> {
        ChatTemplate::with_patience(source, special_tokens, Duration::from_secs(MOST_SECONDS))
    }

    fn with_patience(
        source: &str,
        special_tokens: &SpecialTokens,
        patience: Duration,
    ) -> Result<ChatTemplate, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| TemplateError::Syntax { problem: error.to_string() })?;
        let source = without_generation_blocks(source);
        let source = tags::check(&source, &syntax)
            .and_then(|()| sums::with_counted_sums(&source, NAME, &syntax))
            .map_err(|problem| TemplateError::Syntax { problem })?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime::strftime_now);
        python::install(&mut environment);
        sums::install(&mut environment);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| TemplateError::Syntax { problem: described(&error) })?;
        let compiled = Arc::new(Compiled { environment, special_tokens: special_tokens.clone() });
        let template = ChatTemplate { compiled, patience };
        let greeting = ChatInput {
            messages: &serde_json::json!([{"role": "user", "content": "Hello"}]),
            tools: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs: &Map::new(),
        };
        match template.render(&greeting) {
            Err(limit @ TemplateError::Limit { .. }) => Err(limit),
            // Whatever else it says of a greeting, it may want other messages.
            _ => Ok(template),
        }
    }

    /// The prompt for a conversation.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TemplateError> {
        let (messages, tools) = (input.messages.clone(), input.tools.cloned());
        let (kwargs, add_generation_prompt) = (input.kwargs.clone(), input.add_generation_prompt);
        let continue_final_message = input.continue_final_message;
        let compiled = Arc::clone(&self.compiled);
        let (sender, receiver) = mpsc::sync_channel(1);
        let work = move || {
            let (messages, tools, kwargs) = (&messages, tools.as_ref(), &kwargs);
            let input = ChatInput { messages, tools, add_generation_prompt, continue_final_message, kwargs };
            // Nobody receives when it took too long.
            let _ = sender.send(compiled.render(&input));
        };
        let thread = std::thread::Builder::new().name(NAME.into()).stack_size(STACK_BYTES).spawn(work);
        thread.map_err(|error| TemplateError::Failed {
            problem: format!("can't start a thread to render it: {error}"),
        })?;
        let text = receiver.recv_timeout(self.patience).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => {
                    TemplateError::Limit { limit: self.patience.as_secs(), what: "seconds: does it end?" }
                }
                RecvTimeoutError::Disconnected => TemplateError::Failed { problem: "the interpreter broke".into() },
            })
        })?;
        if input.continue_final_message { variables::cut_at_final_message(input.messages, text) } else { Ok(text) }
    }
}

impl Compiled {
    /// Renders on this thread.
    fn render(&self, input: &ChatInput<'_>) -> Result<String, TemplateError> {
        let variables = variables::variables(input, &self.special_tokens)?;
        let template = self.environment.get_template(NAME).map_err(|error| described_failure(&error, false))?;
        let mut output = Limited { bytes: Vec::new(), full: false };
        let result = template.render_captured_to(variables, &mut output).map(|_| ());
        result.map_err(|error| described_failure(&error, output.full))?;
        String::from_utf8(output.bytes)
            .map_err(|error| TemplateError::Failed { problem: format!("wrote no UTF-8: {error}") })
    }
}

/// What `raise_exception` carries through the interpreter.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<minijinja::Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The error and the errors behind it.
fn chain<'a>(error: &'a Error) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
}

fn described_failure(error: &Error, output_full: bool) -> TemplateError {
    if output_full {
        return TemplateError::Limit { limit: MAX_OUTPUT_BYTES as u64, what: "bytes" };
    }
    for cause in chain(error) {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Raised { message: message.clone() };
        }
        if cause.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::Limit { limit: FUEL, what: "steps: does it end?" };
        }
    }
    TemplateError::Failed { problem: described(error) }
}

/// The error with its causes, each with its line.
fn described(error: &Error) -> String {
    chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// transformers marks what the assistant wrote with `{% generation %}` for training; for a prompt that is a scope.
fn without_generation_blocks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, behind) = tag.split_at(end);
        let name = tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match name {
            "generation" => text.push_str(&tag.replacen(name, "with", 1)),
            "endgeneration" => text.push_str(&tag.replacen(name, "endwith", 1)),
            _ => text.push_str(tag),
        }
        rest = behind;
    }
    text + rest
}

/// Takes bytes up to the limit.
struct Limited {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.full = true;
            return Err(io::Error::other("the prompt is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
