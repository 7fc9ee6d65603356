//! `POST /v1/completions`: the request.

use super::ApiError;
use super::generation::{Echo, GenerationRequest, Head, read_shared};
use super::json::{Fields, bounded, string, token_ids, wrong_kind};
use crate::text::{Prompt, SamplingDefaults};
use refrain_engine::MAX_LOGPROBS;
use serde_json::value::RawValue;

/// Most prompts in one request.
pub const MAX_PROMPTS: usize = 256;
/// Most tokens read from one list; any context is shorter.
const MAX_IDS: usize = 1 << 24;
/// `max_tokens` when the client gives none, as OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Reads the body of a request to `/v1/completions`.
///
/// # Errors
/// [`ApiError`] with status 400, naming the field.
pub fn parse_completion(body: &[u8], defaults: &SamplingDefaults) -> Result<GenerationRequest, ApiError> {
    let mut fields = Fields::of_body(body)?;
    let prompts = match fields.raw("prompt") {
        Some(raw) => read_prompts(raw)?,
        None => return Err(ApiError::param("prompt", "prompt is required: text, a list of texts, or token ids")),
    };
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let max_tokens = fields.count("max_tokens", u32::from(!echo))?.unwrap_or(DEFAULT_MAX_TOKENS);
    let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS as i64)?.map(|top| top as usize);
    let head = Head {
        chat: false,
        echo: if echo { Echo::Prompt } else { Echo::No },
        prompts,
        // With 0 one token is made and not shown: the engine has no requests without an answer.
        max_tokens: Some(max_tokens.max(1)),
        echo_only: max_tokens == 0,
        logprobs,
    };
    read_shared(fields, head, defaults)
}

/// Text, a list of texts, token ids, or a list of lists of token ids.
fn read_prompts(raw: &RawValue) -> Result<Vec<Prompt>, ApiError> {
    let text = raw.get();
    if text.starts_with('"') {
        return Ok(vec![Prompt::Text(string("prompt".to_owned(), raw)?)]);
    }
    let Some(inside) = text.strip_prefix('[') else {
        return Err(wrong_kind("prompt".to_owned(), "a string, a list of strings, or token ids", raw));
    };
    match inside.trim_start().as_bytes().first() {
        Some(b']') | None => Err(ApiError::param("prompt", "prompt must not be an empty list")),
        Some(b'"') => {
            let items = bounded::<&RawValue>("prompt", raw, MAX_PROMPTS)?;
            let read = |(index, raw): (usize, &&RawValue)| string(format!("prompt[{index}]"), raw).map(Prompt::Text);
            items.iter().enumerate().map(read).collect()
        }
        Some(b'[') => {
            let items = bounded::<&RawValue>("prompt", raw, MAX_PROMPTS)?;
            let read = |(index, raw): (usize, &&RawValue)| ids(&format!("prompt[{index}]"), raw);
            items.iter().enumerate().map(read).collect()
        }
        Some(_) => Ok(vec![ids("prompt", raw)?]),
    }
}

fn ids(path: &str, raw: &RawValue) -> Result<Prompt, ApiError> {
    let ids = token_ids(path, raw, MAX_IDS)?;
    if ids.is_empty() {
        return Err(ApiError::param(path, format!("{path} must not be an empty list")));
    }
    Ok(Prompt::Ids(ids))
}
