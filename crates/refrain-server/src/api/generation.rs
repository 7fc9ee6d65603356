//! The request that both endpoints make: what to generate, and how to write the answer.

use super::ApiError;
use super::fields::take_quiet;
use super::json::{Fields, clip, number};
use crate::text::{GenerateRequest, MAX_BAD_WORDS, MAX_N, MAX_STOP_STRINGS, Prompt, SamplingDefaults, Truncation};
use refrain_engine::{MAX_LOGPROBS, SamplingParams};
use std::collections::BTreeMap;

/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIAS: usize = 300;
/// Most `stop_token_ids`.
pub const MAX_STOP_TOKENS: usize = 1024;
/// Most `allowed_token_ids`.
pub const MAX_ALLOWED_TOKENS: usize = 1 << 20;
/// Most bytes of a `request_id`.
pub const MAX_REQUEST_ID: usize = 128;

/// A request for text over HTTP, checked, from either endpoint.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// Name of the model, if the client gave one.
    pub model: Option<String>,
    /// The client's name for the request.
    pub request_id: Option<String>,
    /// One request for each prompt; they differ in the prompt only.
    pub requests: Vec<GenerateRequest>,
    /// How to write the answer.
    pub output: OutputOptions,
}

/// How an answer is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputOptions {
    /// In the form of chat completions, otherwise of completions.
    pub chat: bool,
    /// As server-sent events.
    pub stream: bool,
    /// The stream ends with the usage.
    pub include_usage: bool,
    /// Each event of the stream has the usage so far.
    pub continuous_usage: bool,
    /// Write log-probabilities of this many best tokens.
    pub logprobs: Option<usize>,
    /// Write log-probabilities of the prompt's tokens.
    pub prompt_logprobs: Option<usize>,
    /// What to put before each answer.
    pub echo: Echo,
    /// `max_tokens` is 0: write the prompt only.
    pub echo_only: bool,
    /// Write token ids beside the text.
    pub return_token_ids: bool,
    /// Name tokens `token_id:N` in log-probabilities.
    pub return_tokens_as_token_ids: bool,
    /// Special tokens are not in the text.
    pub skip_special_tokens: bool,
    /// Answers to each prompt.
    pub n: usize,
}

/// What is put before each answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Nothing.
    No,
    /// The prompt, with its log-probabilities if there are any.
    Prompt,
    /// This text.
    Text(String),
}

/// What the endpoints read before the fields that they share.
pub(crate) struct Head {
    pub chat: bool,
    pub echo: Echo,
    pub prompts: Vec<Prompt>,
    /// `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    pub echo_only: bool,
    pub logprobs: Option<usize>,
}

/// Reads the fields that both endpoints have, and refuses what is left.
pub(crate) fn read_shared(
    mut owned: Fields<'_>,
    head: Head,
    defaults: &SamplingDefaults,
) -> Result<GenerationRequest, ApiError> {
    let fields = &mut owned;
    let model = fields.string("model")?;
    let request_id = read_request_id(fields)?;
    let mut sampling = read_sampling(fields, defaults)?;
    let n = fields.integer("n", 1..=MAX_N as i64)?.unwrap_or(1) as usize;
    let stop = fields.strings("stop", MAX_STOP_STRINGS)?.unwrap_or_default();
    let bad_words = fields.strings("bad_words", MAX_BAD_WORDS)?.unwrap_or_default();
    let include_stop_str_in_output = fields.boolean("include_stop_str_in_output")?.unwrap_or(false);
    let skip_special_tokens = fields.boolean("skip_special_tokens")?.unwrap_or(true);
    let add_special_tokens = fields.boolean("add_special_tokens")?;
    let truncate_prompt_tokens = match fields.integer("truncate_prompt_tokens", -1..=1 << 31)? {
        Some(-1) => Some(Truncation::Context),
        Some(keep) => Some(Truncation::Last(keep as usize)),
        None => None,
    };
    let priority = fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?.unwrap_or(0) as i32;
    let prompt_logprobs = fields.integer("prompt_logprobs", 0..=MAX_LOGPROBS as i64)?.map(|top| top as usize);
    let (stream, include_usage, continuous_usage) = read_stream(fields)?;
    let output = OutputOptions {
        chat: head.chat,
        stream,
        include_usage,
        continuous_usage,
        logprobs: head.logprobs,
        prompt_logprobs,
        echo: head.echo.clone(),
        echo_only: head.echo_only,
        return_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
        return_tokens_as_token_ids: fields.boolean("return_tokens_as_token_ids")?.unwrap_or(false),
        skip_special_tokens,
        n,
    };
    take_quiet(fields, head.chat)?;
    owned.finish()?;
    if stream && prompt_logprobs.is_some() {
        let message = "prompt_logprobs are not available in a stream: set stream to false";
        return Err(ApiError::param("prompt_logprobs", message));
    }
    sampling.logprobs = head.logprobs;
    // Echoed completions with logprobs have those of the prompt too.
    let echo_prompt = head.echo == Echo::Prompt;
    let echoed = if echo_prompt { head.logprobs } else { None };
    sampling.prompt_logprobs = prompt_logprobs.max(echoed);
    let request = |prompt: Prompt| GenerateRequest {
        request_id: String::new(),
        prompt,
        add_special_tokens,
        truncate_prompt_tokens,
        sampling: sampling.clone(),
        max_tokens: head.max_tokens,
        bad_words: bad_words.clone(),
        n,
        stop: stop.clone(),
        include_stop_str_in_output,
        skip_special_tokens,
        echo: echo_prompt,
        priority,
    };
    let requests: Vec<GenerateRequest> = head.prompts.into_iter().map(request).collect();
    for request in &requests {
        request.validate()?;
    }
    Ok(GenerationRequest { model, request_id, requests, output })
}

fn read_request_id(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    let id = fields.string("request_id")?;
    match id {
        Some(id) if !is_request_id(&id) => {
            let message = format!("request_id must have 1 to {MAX_REQUEST_ID} visible ASCII characters");
            Err(ApiError::param("request_id", message))
        }
        id => Ok(id),
    }
}

/// Whether a client's name for a request can be used in logs and headers.
pub(crate) fn is_request_id(id: &str) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// `stream` and `stream_options`: streaming, usage at the end, usage in each event.
fn read_stream(fields: &mut Fields<'_>) -> Result<(bool, bool, bool), ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let Some(mut options) = fields.object("stream_options")? else { return Ok((stream, false, false)) };
    if !stream {
        let message = "stream_options can only be given when stream is true";
        return Err(ApiError::param("stream_options", message));
    }
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    let continuous = options.boolean("continuous_usage_stats")?.unwrap_or(false);
    // Padding against traffic analysis; accepted as false or true, since OpenAI's own clients send it. It is not added.
    options.boolean("include_obfuscation")?;
    options.finish()?;
    Ok((stream, include_usage, include_usage && continuous))
}

/// The engine checks the ranges; here only what differs over HTTP.
fn read_sampling(fields: &mut Fields<'_>, defaults: &SamplingDefaults) -> Result<SamplingParams, ApiError> {
    let mut sampling = defaults.params();
    if let Some(temperature) = fields.number("temperature")? {
        if !(0.0..=2.0).contains(&temperature) {
            let message = format!("temperature must be between 0 and 2, got {temperature}");
            return Err(ApiError::param("temperature", message));
        }
        sampling.temperature = temperature;
    }
    let set = |value: Option<f32>, field: &mut f32| {
        if let Some(value) = value {
            *field = value;
        }
    };
    set(fields.number("top_p")?, &mut sampling.top_p);
    set(fields.number("min_p")?, &mut sampling.min_p);
    set(fields.number("presence_penalty")?, &mut sampling.presence_penalty);
    set(fields.number("frequency_penalty")?, &mut sampling.frequency_penalty);
    set(fields.number("repetition_penalty")?, &mut sampling.repetition_penalty);
    if let Some(top_k) = fields.integer("top_k", -1..=i64::from(u32::MAX))? {
        sampling.top_k = top_k.max(0) as u32;
    }
    // Any 64-bit integer; a negative one is taken by its bits.
    sampling.seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map(|seed| seed as u64);
    sampling.min_tokens = fields.count("min_tokens", 0)?.unwrap_or(0);
    sampling.stop_token_ids = fields.ids("stop_token_ids", MAX_STOP_TOKENS)?.unwrap_or_default();
    sampling.ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
    sampling.allowed_token_ids = fields.ids("allowed_token_ids", MAX_ALLOWED_TOKENS)?;
    sampling.logit_bias = read_logit_bias(fields)?;
    Ok(sampling)
}

fn read_logit_bias(fields: &mut Fields<'_>) -> Result<BTreeMap<u32, f32>, ApiError> {
    let Some(bias) = fields.object("logit_bias")? else { return Ok(BTreeMap::new()) };
    let entries = bias.into_entries();
    if entries.len() > MAX_LOGIT_BIAS {
        let message = format!("logit_bias may have at most {MAX_LOGIT_BIAS} entries, got {}", entries.len());
        return Err(ApiError::param("logit_bias", message));
    }
    let read = |(token, raw): (String, &serde_json::value::RawValue)| {
        let path = format!("logit_bias.{}", clip(&token));
        let id = token.parse::<u32>().map_err(|_| {
            let message = format!("logit_bias: {:?} is not a token id", clip(&token));
            ApiError::param(path.clone(), message)
        })?;
        Ok((id, number(path, raw)?))
    };
    entries.into_iter().map(read).collect()
}
