//! `POST /v1/chat/completions` and `POST /v1/completions`: one way for both.

use super::access::{EffectiveId, LastSent, client_request_id};
use super::body::read_body;
use super::ids::new_id;
use super::state::{AppState, InFlight, unix_now};
use crate::api::{
    AnswerHead, Answers, ApiError, GenerationRequest, Piece, TokenNames, chunks, error_chunks, json_response,
    last_chunks, parse_chat, parse_completion, whole_answer,
};
use crate::text::{TextError, TextStream};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;

/// Larger bodies are parsed on a blocking thread.
const LARGE_BODY: usize = 256 << 10;

/// `POST /v1/chat/completions`.
pub(super) async fn chat(state: State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    generate(state.0, request, true).await
}

/// `POST /v1/completions`.
pub(super) async fn completions(state: State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    generate(state.0, request, false).await
}

async fn generate(state: Arc<AppState>, request: Request, chat: bool) -> Result<Response, ApiError> {
    if state.is_draining() {
        return Err(ApiError::unavailable("the server is shutting down").code("shutting_down"));
    }
    let in_flight = state.enter();
    let client_id = client_request_id(request.headers());
    let effective_id = EffectiveId::of(&request);
    let body = read_body(request, state.config.max_body_bytes).await?;
    let parse = {
        let state = state.clone();
        let parse = if chat { parse_chat } else { parse_completion };
        move |body: &[u8]| parse(body, state.text.defaults())
    };
    let mut request =
        if body.len() < LARGE_BODY { parse(&body)? } else { state.text.off_thread(move || Ok(parse(&body))).await?? };
    let name = client_id.or(request.request_id.take()).unwrap_or_else(new_id);
    effective_id.set(&name);
    state.check_model(request.model.as_deref())?;
    answer(state, request, name, in_flight).await
}

async fn answer(
    state: Arc<AppState>,
    request: GenerationRequest,
    name: String,
    in_flight: InFlight,
) -> Result<Response, ApiError> {
    let GenerationRequest { mut requests, output, .. } = request;
    let prefix = if output.chat { "chatcmpl" } else { "cmpl" };
    let id = format!("{prefix}-{name}");
    for request in &mut requests {
        request.request_id.clone_from(&id);
    }
    let mut head =
        AnswerHead { id, created: unix_now(), model: state.model_name().to_owned(), fingerprint: String::new() };
    head.fingerprint.clone_from(&state.fingerprint);
    let names = TokenNames {
        text: state.text.clone(),
        as_ids: output.return_tokens_as_token_ids,
        skip_special: output.skip_special_tokens,
    };
    let prompt_field = if output.chat { "messages" } else { "prompt" };
    let stream = state.text.generate_all(requests).await.map_err(|error| about_prompt(error, prompt_field))?;
    let streaming = output.stream;
    let answers = Answers::new(head, output, names, stream.prompts().to_vec());
    if streaming { Ok(as_events(answers, stream, in_flight)) } else { as_a_whole(answers, stream).await }
}

/// The error, with the prompt's field of this endpoint where it is about the prompt.
fn about_prompt(error: TextError, field: &str) -> ApiError {
    let is_about_prompt = error.is_about_prompt();
    let error = ApiError::from(error);
    if is_about_prompt { ApiError { param: Some(field.to_owned()), ..error } } else { error }
}

/// Reads all answers to their ends.
async fn as_a_whole(mut answers: Answers, mut stream: TextStream) -> Result<Response, ApiError> {
    let mut pieces: Vec<Piece> = answers.answers.iter().map(|_| Piece::default()).collect();
    while let Some(event) = stream.next().await {
        let event = event?;
        let index = event.index;
        if let Some(piece) = answers.take(event) {
            pieces[index].append(piece);
        }
    }
    let json = whole_answer(&answers, pieces).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(json_response(StatusCode::OK, json))
}

/// Sends each piece as it comes. Dropping the body (the client has gone) drops the stream, which cancels the requests.
fn as_events(answers: Answers, stream: TextStream, in_flight: InFlight) -> Response {
    let last_sent = LastSent::default();
    let start = Some((answers, stream, in_flight, last_sent.clone()));
    let events = stream::unfold(start, async move |running| {
        let (mut answers, mut stream, in_flight, last_sent) = running?;
        loop {
            let news = match stream.next().await {
                Some(Ok(event)) => chunks(&mut answers, event),
                Some(Err(failure)) => Err(ApiError::from(failure)),
                None => {
                    let end = last_chunks(&answers).unwrap_or_else(|error| error_chunks(&error));
                    last_sent.set();
                    return Some((Ok::<_, Infallible>(end), None));
                }
            };
            match news {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => return Some((Ok(chunk), Some((answers, stream, in_flight, last_sent)))),
                Err(error) => {
                    last_sent.set();
                    return Some((Ok(error_chunks(&error)), None));
                }
            }
        }
    });
    let mut response = Response::new(Body::from_stream(events));
    response.extensions_mut().insert(last_sent);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise collect events before it passes them on.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}
