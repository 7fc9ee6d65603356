//! Who may come in, and what is noted about it.

use super::ids::new_id;
use super::state::AppState;
use crate::api::{ApiError, is_request_id};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;
use subtle::{Choice, ConstantTimeEq};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Lets only requests with one of the keys through, if there are keys.
pub(super) async fn authenticate(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let keys = &state.config.api_keys;
    if keys.is_empty() || has_key(request.headers(), keys) {
        return next.run(request).await;
    }
    let message = match request.headers().contains_key(AUTHORIZATION) {
        true => "this API key is not valid here",
        false => "this server wants an API key: send the header Authorization: Bearer KEY",
    };
    let error = ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message).code("invalid_api_key");
    let mut response = error.into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Compares with all keys, so that the time says nothing about which came how near.
fn has_key(headers: &HeaderMap, keys: &[String]) -> bool {
    let Some((scheme, key)) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' ')) else {
        return false;
    };
    let any = keys.iter().fold(Choice::from(0), |any, known| any | known.as_bytes().ct_eq(key.trim().as_bytes()));
    scheme.eq_ignore_ascii_case("bearer") && bool::from(any)
}

/// The id that a handler settled on, for the head of the answer.
#[derive(Clone, Default)]
pub(super) struct EffectiveId(Arc<OnceLock<String>>);

impl EffectiveId {
    /// Where the handler of this request can leave its id; nobody looks there when the headers are off.
    pub fn of(request: &Request) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// Settles on an id. The first one stays.
    pub fn set(&self, id: &str) {
        self.0.get_or_init(|| id.to_owned());
    }
}

/// The client's `X-Request-Id`, if it can be used.
pub(super) fn client_request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    is_request_id(id).then(|| id.to_owned())
}

/// Gives every answer an `X-Request-Id`: the client's, else the one that the handler settled on (it knows the body's
/// `request_id`), else a new one. A body that can't be read gives no id.
pub(super) async fn request_id(mut request: Request, next: Next) -> Response {
    let given = client_request_id(request.headers());
    let settled = EffectiveId::default();
    request.extensions_mut().insert(settled.clone());
    let mut response = next.run(request).await;
    let id = given.or_else(|| settled.0.get().cloned()).unwrap_or_else(new_id);
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Writes a line about every request when its answer has ended.
pub(super) async fn log(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if state.config.disable_access_log_for_endpoints.iter().any(|quiet| quiet == path) {
        return next.run(request).await;
    }
    let mut line = Line {
        method: request.method().to_string(),
        path: path.to_owned(),
        start: Instant::now(),
        status: None,
        complete: false,
    };
    let response = next.run(request).await;
    line.status = Some(response.status().as_u16());
    let last_sent = response.extensions().get::<LastSent>().cloned();
    response.map(|body| Body::new(LoggedBody { body, line, last_sent }))
}

/// Set by a handler of streams when it gives its last piece. Many clients close the connection when they have read
/// that, before the body has formally ended.
#[derive(Clone, Default)]
pub(super) struct LastSent(Arc<AtomicBool>);

impl LastSent {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One line of the access log, written when it is dropped.
struct Line {
    method: String,
    path: String,
    start: Instant,
    /// None until the head of the answer is known.
    status: Option<u16>,
    complete: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        let Self { method, path, status, complete, .. } = self;
        let seconds = self.start.elapsed().as_secs_f64();
        let status = status.map_or("-".to_owned(), |status| status.to_string());
        let end = if *complete { "" } else { " (client gone)" };
        tracing::info!(target: "refrain_server::access", "{method} {path} {status} {seconds:.3}s{end}");
    }
}

/// A body that knows whether it was read to its end.
struct LoggedBody {
    body: Body,
    line: Line,
    last_sent: Option<LastSent>,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) {
            self.line.complete = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        // A body of known length is not asked again after its last byte.
        self.line.complete |= self.body.is_end_stream();
        self.line.complete |= self.last_sent.as_ref().is_some_and(|LastSent(sent)| sent.load(Ordering::Relaxed));
    }
}
