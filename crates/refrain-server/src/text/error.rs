//! What can be wrong with a request for text.

use refrain_engine::SubmitError;
use refrain_model::{ModelError, TemplateError};

/// A request was refused before anything was computed.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A field has a value that can't be.
    #[error("{message}")]
    Invalid {
        /// The field, as the HTTP API names it.
        param: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty: it must have at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "This model's maximum context length is {max_model_len} tokens. However, your request has {at_least}\
         {prompt_tokens} input tokens. Please reduce the length of the input, or set truncate_prompt_tokens.",
        at_least = if *.exact { "" } else { "at least " }
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Whether that is the count, or a lower bound because the text is far too long to tokenize.
        exact: bool,
        /// Most tokens of prompt and answer together.
        max_model_len: usize,
    },
    /// Prompt and `max_tokens` together don't fit the context.
    #[error(
        "'max_tokens' or 'max_completion_tokens' is too large: {max_tokens}. This model's maximum context length is \
         {max_model_len} tokens and your request has {prompt_tokens} input tokens ({max_tokens} > {max_model_len} - \
         {prompt_tokens})."
    )]
    MaxTokensTooLarge {
        /// Tokens asked for.
        max_tokens: usize,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Most tokens of prompt and answer together.
        max_model_len: usize,
    },
    /// Text can't be read or written without a tokenizer.
    #[error("{what} needs a tokenizer, and this model folder has none: send token ids")]
    NoTokenizer {
        /// What was asked for.
        what: &'static str,
    },
    /// Chats need a template.
    #[error("this model has no chat template: use /v1/completions, or start the server with --chat-template")]
    NoTemplate,
    /// The template refused the messages or failed.
    #[error(transparent)]
    Template(TemplateError),
    /// The tokenizer failed.
    #[error("the prompt can't be tokenized: {0}")]
    Tokenizer(#[source] ModelError),
    /// The engine refused the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// More answers than the engine holds at a time, even when it has nothing else to do.
    #[error(
        "the request asks for {answers} answers (prompts x n), but this server holds at most {limit} at a time, running \
         and waiting: send fewer prompts, or a smaller n"
    )]
    TooManyAnswers {
        /// Answers asked for.
        answers: usize,
        /// `max_num_seqs` + `max_num_queued_reqs`.
        limit: usize,
    },
    /// Preparing the prompt died by a bug, which the log has.
    #[error("the server made a mistake with this prompt; its log says more")]
    Internal,
}

impl TextError {
    /// Whether the prompt is what is wrong.
    pub fn is_about_prompt(&self) -> bool {
        match self {
            Self::EmptyPrompt | Self::PromptTooLong { .. } | Self::Tokenizer(_) | Self::NoTemplate => true,
            Self::Template(error) => !matches!(error, TemplateError::Reserved { .. } | TemplateError::Continue { .. }),
            Self::Submit(error) => matches!(
                error,
                SubmitError::EmptyPrompt
                    | SubmitError::PromptTooLong { .. }
                    | SubmitError::TokenOutsideVocabulary { .. }
            ),
            Self::Invalid { .. }
            | Self::MaxTokensTooLarge { .. }
            | Self::NoTokenizer { .. }
            | Self::TooManyAnswers { .. }
            | Self::Internal => false,
        }
    }
}
