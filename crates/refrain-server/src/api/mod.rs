//! The JSON of the HTTP API: requests are read into one validated request type, answers are written from it.

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
