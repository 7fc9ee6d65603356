//! What can go wrong before a request runs.

use std::time::Duration;

/// The engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A setting is below what the others require.
    #[error("{setting} is {value}, but must be at least {least}: {why}")]
    TooSmall {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: usize,
        /// The smallest value that works.
        least: usize,
        /// What needs it.
        why: &'static str,
    },
    /// The system gave no thread.
    #[error("can't start the engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A request was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The prompt has no tokens.
    #[error("the prompt is empty; it must have at least one token")]
    EmptyPrompt,
    /// Prompt and at least one token of the answer don't fit.
    #[error(
        "the prompt has {prompt_tokens} tokens, but the context limit is {max_model_len} tokens for prompt and answer \
         together; shorten the prompt to at most {} tokens", max_model_len - 1
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The limit for prompt and answer together.
        max_model_len: usize,
    },
    /// A token id that the model doesn't have.
    #[error("token {index} of the prompt is {token}, but the vocabulary ends at {}", vocab_size - 1)]
    TokenOutsideVocabulary {
        /// The id.
        token: u32,
        /// Where in the prompt, from 0.
        index: usize,
        /// Number of ids.
        vocab_size: usize,
    },
    /// A sampling parameter has an impossible value.
    #[error("{param}: {message}")]
    InvalidSampling {
        /// Field of [`crate::SamplingParams`].
        param: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// Too many requests are waiting.
    #[error(
        "the queue is full: {queued} requests wait for a slot, and {prefill_tokens} prompt tokens are to be computed \
         before this one's; try again in {} s", retry_after.as_secs()
    )]
    QueueFull {
        /// Requests that are waiting and find no free slot.
        queued: usize,
        /// Prompt tokens of the requests that have no token of their answer yet.
        prefill_tokens: usize,
        /// When about half of the queue will have been served at the present rate: 1 s to 60 s.
        retry_after: Duration,
    },
    /// The engine finishes what it has and takes nothing new.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The engine thread has ended, by a bug or because it was stopped.
    #[error("the engine is not running")]
    NotRunning,
}
