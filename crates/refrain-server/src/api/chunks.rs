//! The answer as server-sent events.

use super::ApiError;
use super::answer::{Answers, Piece, PieceLogprobs, reasons};
use super::usage::Usage;
use crate::text::TextEvent;
use serde::Serialize;
use serde_json::Value;

/// The last line of a stream.
pub(crate) const DONE: &str = "data: [DONE]\n\n";

#[derive(Serialize)]
struct Chunk<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [C],
    /// Outer none: the field is left out; inner none: null, as OpenAI has it before the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<PieceLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Value::is_null")]
    stop_reason: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: usize,
    text: String,
    logprobs: Option<PieceLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

/// Events for one piece of news; empty when there is nothing to tell yet.
pub(crate) fn chunks(answers: &mut Answers, event: TextEvent) -> Result<String, ApiError> {
    let index = event.index;
    let first = !answers.answers[index].begun;
    let mut out = String::new();
    let Some(piece) = answers.take(event) else { return Ok(out) };
    let finish = answers.answers[index].finish.as_ref();
    // A token whose text is held back is news only to those who count tokens.
    let news = finish.is_some()
        || !piece.text.is_empty()
        || piece.logprobs.is_some()
        || answers.output.return_token_ids
        || answers.output.continuous_usage;
    if answers.output.chat {
        if first {
            // The role comes with the first token and not before, so that it doesn't pass for one.
            chat_chunk(answers, index, Some("assistant"), Piece::default(), &mut out)?;
        }
        if news {
            chat_chunk(answers, index, None, piece, &mut out)?;
        }
    } else if news {
        completion_chunk(answers, index, first, piece, &mut out)?;
    }
    Ok(out)
}

/// The end of a complete stream: usage if asked for, and the mark that nothing more comes.
pub(crate) fn last_chunks(answers: &Answers) -> Result<String, ApiError> {
    let mut out = String::new();
    if answers.output.include_usage {
        write(answers, Contents::<Value> { choices: &[], usage: Some(Some(answers.usage())), prompt: None }, &mut out)?;
    }
    out.push_str(DONE);
    Ok(out)
}

/// The end of a stream that failed.
pub(crate) fn error_chunks(error: &ApiError) -> String {
    format!("data: {}\n\n{DONE}", error.to_json())
}

fn chat_chunk(
    answers: &Answers,
    index: usize,
    role: Option<&'static str>,
    piece: Piece,
    out: &mut String,
) -> Result<(), ApiError> {
    let output = &answers.output;
    let opening = role.is_some();
    let finish = answers.answers[index].finish.as_ref().filter(|_| !opening);
    let (finish_reason, stop_reason) = reasons(finish);
    let silent = finish.is_some() && piece.text.is_empty();
    let choice = ChatChoice {
        index,
        delta: Delta { role, content: (!silent).then_some(piece.text) },
        logprobs: piece.logprobs,
        finish_reason,
        stop_reason,
        token_ids: (output.return_token_ids && !opening).then_some(piece.token_ids),
    };
    let usage = running_usage(answers, index);
    let prompt = (opening && output.return_token_ids).then_some(answers.prompts[0].ids.as_slice());
    write(answers, Contents { choices: &[choice], usage, prompt }, out)
}

fn completion_chunk(
    answers: &Answers,
    index: usize,
    first: bool,
    piece: Piece,
    out: &mut String,
) -> Result<(), ApiError> {
    let output = &answers.output;
    let (finish_reason, stop_reason) = reasons(answers.answers[index].finish.as_ref());
    let choice = CompletionChoice {
        index,
        text: piece.text,
        logprobs: piece.logprobs,
        finish_reason,
        stop_reason,
        token_ids: output.return_token_ids.then_some(piece.token_ids),
        prompt_token_ids: (first && output.return_token_ids).then_some(answers.prompt(index).ids.as_slice()),
    };
    let usage = running_usage(answers, index);
    write(answers, Contents { choices: &[choice], usage, prompt: None }, out)
}

/// `usage` of a chunk before the last.
fn running_usage(answers: &Answers, index: usize) -> Option<Option<Usage>> {
    match (answers.output.include_usage, answers.output.continuous_usage) {
        (_, true) => Some(Some(answers.usage_of(index))),
        (true, false) => Some(None),
        (false, false) => None,
    }
}

struct Contents<'a, C> {
    choices: &'a [C],
    usage: Option<Option<Usage>>,
    prompt: Option<&'a [u32]>,
}

fn write<C: Serialize>(answers: &Answers, contents: Contents<'_, C>, out: &mut String) -> Result<(), ApiError> {
    let head = &answers.head;
    let chunk = Chunk {
        id: &head.id,
        object: if answers.output.chat { "chat.completion.chunk" } else { "text_completion" },
        created: head.created,
        model: &head.model,
        system_fingerprint: &head.fingerprint,
        choices: contents.choices,
        usage: contents.usage,
        prompt_token_ids: contents.prompt,
    };
    out.push_str("data: ");
    out.push_str(&serde_json::to_string(&chunk).map_err(|error| ApiError::internal(error.to_string()))?);
    out.push_str("\n\n");
    Ok(())
}
