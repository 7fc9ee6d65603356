//! The text front end: prompts become tokens, tokens become text. Used by every endpoint, by `refrain chat` and by the
//! benchmarks that run inside the process.

mod answer;
mod block_on;
mod defaults;
mod engine;
mod error;
mod prompt;
mod request;
mod stop;
mod stream;

pub(crate) use block_on::block_on;
pub use defaults::SamplingDefaults;
pub use engine::TextEngine;
pub use error::TextError;
pub use prompt::PreparedPrompt;
pub use request::{
    ChatPrompt, GenerateRequest, MAX_BAD_WORDS, MAX_N, MAX_STOP_BYTES, MAX_STOP_STRINGS, Prompt, Truncation,
};
pub use stop::{StopMatcher, StopStep};
pub use stream::{Finish, StopCause, TextEvent, TextStream};
