//! Errors in OpenAI's JSON shape.

use crate::text::TextError;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use refrain_engine::{RequestFailure, SubmitError};
use refrain_model::TemplateError;
use serde::Serialize;
use std::time::Duration;

/// An answer that says what was wrong, where, and what would be right.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// A sentence for people.
    pub message: String,
    /// OpenAI's class of error, for example `invalid_request_error`.
    pub kind: &'static str,
    /// The field that is wrong, as a path: `messages[2].content`.
    pub param: Option<String>,
    /// For programs, for example `context_length_exceeded`.
    pub code: Option<&'static str>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

impl ApiError {
    /// The request is wrong as a whole.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request is wrong.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::bad_request(message) }
    }

    /// An error of this class.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: None, retry_after: None }
    }

    /// Something broke on our side.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The server takes no requests at the moment.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    /// The same with a code for programs.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The JSON body.
    pub fn to_json(&self) -> String {
        let error = Body { message: &self.message, kind: self.kind, param: self.param.as_deref(), code: self.code };
        serde_json::to_string(&Envelope { error }).unwrap_or_else(|_| "{\"error\":{}}".to_owned())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = super::json_response(self.status, self.to_json());
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs().max(1);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        let message = error.to_string();
        match error {
            TextError::Invalid { param, .. } => Self::param(param, message),
            TextError::PromptTooLong { .. } => Self::bad_request(message).code("context_length_exceeded"),
            TextError::MaxTokensTooLarge { .. } => Self::param("max_tokens", message).code("context_length_exceeded"),
            TextError::Template(TemplateError::Reserved { .. }) => Self::param("chat_template_kwargs", message),
            TextError::Template(TemplateError::Continue { .. }) => Self::param("continue_final_message", message),
            // Which field the prompt was, the endpoint knows; answers are too many by two fields together.
            TextError::EmptyPrompt
            | TextError::TooManyAnswers { .. }
            | TextError::NoTokenizer { .. }
            | TextError::Tokenizer(_)
            | TextError::NoTemplate
            | TextError::Template(_) => Self::bad_request(message),
            TextError::Internal => Self::internal(message),
            TextError::Submit(error) => Self::from(error),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::EmptyPrompt | SubmitError::TokenOutsideVocabulary { .. } => Self::bad_request(message),
            SubmitError::PromptTooLong { .. } => Self::bad_request(message).code("context_length_exceeded"),
            SubmitError::InvalidSampling { param, .. } => Self::param(param, message),
            SubmitError::QueueFull { retry_after, .. } => {
                let full = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
                Self { retry_after: Some(retry_after), ..full.code("queue_full") }
            }
            SubmitError::ShuttingDown => Self::unavailable(message).code("shutting_down"),
            SubmitError::NotRunning => Self::unavailable(message).code("engine_dead"),
        }
    }
}

impl From<RequestFailure> for ApiError {
    fn from(failure: RequestFailure) -> Self {
        let message = failure.to_string();
        match failure {
            RequestFailure::ShuttingDown => Self::unavailable(message).code("shutting_down"),
            RequestFailure::Device(_) => Self::internal(message).code("device_failure"),
            RequestFailure::NotFinite => Self::internal(message).code("not_finite"),
            RequestFailure::NoTokenAllowed => Self::bad_request(message).code("no_token_allowed"),
            RequestFailure::EngineDied => Self::internal(message).code("engine_died"),
        }
    }
}
