//! Reading the body of a request, within limits.

use crate::api::ApiError;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::time::Duration;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// The whole body of a request that says it is JSON.
///
/// # Errors
/// 415 for other types, 413 beyond `limit` bytes, 408 when it takes too long.
pub(super) async fn read_body(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    check_type(request.headers())?;
    let too_large = || {
        let message = format!("the body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).code("body_too_large")
    };
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let reading = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the body can't be read: {error}"))),
        Err(_) => {
            let message = format!("the body did not arrive within {} seconds", BODY_TIMEOUT.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message))
        }
    }
}

/// Only `application/json` is read. Web pages of other origins can't send that without asking first (CORS), which
/// they could with `text/plain`.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let refuse =
        |message: String| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message));
    let found = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let essence = found.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let found = found.map_or("none".to_owned(), |found| format!("{found:?}"));
        return refuse(format!("the header Content-Type must be application/json, got {found}"));
    }
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            refuse("compressed bodies are not supported: send no Content-Encoding".to_owned())
        }
        _ => Ok(()),
    }
}
