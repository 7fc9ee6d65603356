//! The JSON of the HTTP API: requests are read into one validated request type, answers are written from it.
//!
//! The fields are OpenAI's, with vLLM's additions. Where the two leave a choice, or this server differs:
//! - A field that nobody knows is an error, and so is one that can't be honoured yet (`fields.rs` lists them all).
//!   `null` is the same as leaving a field out.
//! - Tools are written into the prompt by the model's template, except with `tool_choice` `none`. The calls that the
//!   model writes come back in the text; `required` and named tools are refused.
//! - A stop string counts where it is first completed. Text that could still become one is held back.
//! - An end-of-sequence or stop token has no text, but counts in `usage` and in `logprobs`, as in vLLM.
//! - In `/v1/completions` tokens that are no text by themselves are named as OpenAI does, `bytes:\xe2\x80`.
//! - Prompt and `max_tokens` together must fit the context; nothing is cut unless `truncate_prompt_tokens` says so.
//! - The sampling defaults are those of the model's `generation_config.json`, as in vLLM.

mod answer;
mod chat;
mod chunks;
mod completions;
mod error;
mod fields;
mod generation;
mod json;
mod logprobs;
mod messages;
mod usage;
mod whole;

pub(crate) use answer::{AnswerHead, Answers, Piece};
pub use chat::parse_chat;
pub(crate) use chat::read_chat_prompt;
pub(crate) use chunks::{chunks, error_chunks, last_chunks};
pub use completions::{MAX_PROMPTS, parse_completion};
pub use error::ApiError;
pub(crate) use generation::is_request_id;
pub use generation::{
    Echo, GenerationRequest, MAX_ALLOWED_TOKENS, MAX_LOGIT_BIAS, MAX_REQUEST_ID, MAX_STOP_TOKENS, OutputOptions,
};
pub(crate) use json::{Fields, clip};
pub(crate) use logprobs::TokenNames;
pub use messages::MAX_MESSAGES;
pub use usage::{PromptTokensDetails, Usage};
pub(crate) use whole::whole_answer;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

/// A response with a JSON body.
pub(crate) fn json_response(status: StatusCode, json: impl Into<Body>) -> Response {
    let mut response = Response::new(json.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
