//! `POST /tokenize` and `POST /detokenize`, in vLLM's form.

use super::body::read_body;
use super::state::AppState;
use crate::api::{ApiError, Fields, json_response, read_chat_prompt};
use crate::text::{Prompt, TextError};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use std::sync::Arc;

/// Most tokens in one request to `/detokenize`.
const MAX_TOKENS: usize = 1 << 22;

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// A request to `/tokenize`.
#[derive(Debug)]
pub(crate) struct TokenizeRequest {
    model: Option<String>,
    prompt: Prompt,
    add_special_tokens: Option<bool>,
    return_token_strs: bool,
}

/// Reads the body of a request to `/tokenize`.
pub(crate) fn parse_tokenize(body: &[u8]) -> Result<TokenizeRequest, ApiError> {
    let mut fields = Fields::of_body(body)?;
    let prompt = match fields.string("prompt")? {
        Some(_) if fields.raw("messages").is_some() => {
            return Err(ApiError::param("messages", "prompt and messages are both given: give one of them"));
        }
        Some(text) => Prompt::Text(text),
        None => Prompt::Chat(read_chat_prompt(&mut fields).map_err(|error| match error.param.as_deref() {
            Some("messages") => ApiError::param("prompt", "either prompt or messages is required"),
            _ => error,
        })?),
    };
    let request = TokenizeRequest {
        model: fields.string("model")?,
        prompt,
        add_special_tokens: fields.boolean("add_special_tokens")?,
        return_token_strs: fields.boolean("return_token_strs")?.unwrap_or(false),
    };
    fields.finish()?;
    Ok(request)
}

/// Reads the body of a request to `/detokenize`: model and tokens.
pub(crate) fn parse_detokenize(body: &[u8]) -> Result<(Option<String>, Vec<u32>), ApiError> {
    let mut fields = Fields::of_body(body)?;
    let model = fields.string("model")?;
    let tokens = fields.ids("tokens", MAX_TOKENS)?;
    fields.finish()?;
    match tokens {
        Some(tokens) => Ok((model, tokens)),
        None => Err(ApiError::param("tokens", "tokens is required: a list of token ids")),
    }
}

/// `POST /tokenize`.
pub(super) async fn tokenize(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let body = read_body(request, state.config.max_body_bytes).await?;
    let request = parse_tokenize(&body)?;
    state.check_model(request.model.as_deref())?;
    if let Prompt::Chat(chat) = &request.prompt {
        chat.validate()?;
    }
    let tokens = state.text.tokenize(request.prompt, request.add_special_tokens).await?;
    let spell = |tokens: &Vec<u32>| {
        let tokenizer = state.text.tokenizer()?;
        Some(tokens.iter().map(|&token| tokenizer.token_string(token).unwrap_or_default()).collect())
    };
    let token_strs = if request.return_token_strs { spell(&tokens) } else { None };
    json(&Tokenized { count: tokens.len(), max_model_len: state.text.max_model_len(), tokens, token_strs })
}

/// `POST /detokenize`.
pub(super) async fn detokenize(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let body = read_body(request, state.config.max_body_bytes).await?;
    let (model, tokens) = parse_detokenize(&body)?;
    state.check_model(model.as_deref())?;
    let tokenizer = state.text.tokenizer().ok_or(TextError::NoTokenizer { what: "/detokenize" })?.clone();
    let vocabulary = state.engine().config().vocab_size;
    if let Some(index) = tokens.iter().position(|&token| token as usize >= vocabulary) {
        let path = format!("tokens[{index}]");
        let message = format!("{path} is {}, but the vocabulary ends at {}", tokens[index], vocabulary - 1);
        return Err(ApiError::param(path, message));
    }
    let prompt = state.text.off_thread(move || Ok(tokenizer.decode(&tokens, false))).await?;
    json(&Detokenized { prompt })
}

fn json(value: &impl Serialize) -> Result<Response, ApiError> {
    let json = serde_json::to_string(value).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(json_response(StatusCode::OK, json))
}
