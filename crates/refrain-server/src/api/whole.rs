//! The answer in one piece.

use super::answer::{Answers, Piece, PieceLogprobs, reasons};
use super::usage::Usage;
use serde::Serialize;
use serde_json::Value;

#[derive(Serialize)]
struct Whole<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    usage: Usage,
    system_fingerprint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<Value>>,
}

#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    message: Message,
    logprobs: Option<PieceLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<Value>>,
}

/// The JSON of a complete answer; `pieces` has the whole of each choice.
pub(crate) fn whole_answer(answers: &Answers, pieces: Vec<Piece>) -> serde_json::Result<String> {
    if answers.output.chat { chat(answers, pieces) } else { completion(answers, pieces) }
}

fn chat(answers: &Answers, pieces: Vec<Piece>) -> serde_json::Result<String> {
    let output = &answers.output;
    let choice = |(index, piece): (usize, Piece)| {
        let (finish_reason, stop_reason) = reasons(answers.answers[index].finish.as_ref());
        ChatChoice {
            index,
            message: Message { role: "assistant", content: piece.text, refusal: None },
            logprobs: piece.logprobs,
            finish_reason,
            stop_reason,
            token_ids: output.return_token_ids.then_some(piece.token_ids),
        }
    };
    serde_json::to_string(&Whole {
        id: &answers.head.id,
        object: "chat.completion",
        created: answers.head.created,
        model: &answers.head.model,
        choices: pieces.into_iter().enumerate().map(choice).collect(),
        usage: answers.usage(),
        system_fingerprint: &answers.head.fingerprint,
        // A chat has one prompt.
        prompt_token_ids: output.return_token_ids.then_some(&answers.prompts[0].ids),
        prompt_logprobs: answers.prompt_logprobs(0),
    })
}

fn completion(answers: &Answers, pieces: Vec<Piece>) -> serde_json::Result<String> {
    let output = &answers.output;
    let choice = |(index, piece): (usize, Piece)| {
        let (finish_reason, stop_reason) = reasons(answers.answers[index].finish.as_ref());
        CompletionChoice {
            index,
            text: piece.text,
            logprobs: piece.logprobs,
            finish_reason,
            stop_reason,
            token_ids: output.return_token_ids.then_some(piece.token_ids),
            prompt_token_ids: output.return_token_ids.then_some(&answers.prompt(index).ids),
            prompt_logprobs: answers.prompt_logprobs(index),
        }
    };
    serde_json::to_string(&Whole {
        id: &answers.head.id,
        object: "text_completion",
        created: answers.head.created,
        model: &answers.head.model,
        choices: pieces.into_iter().enumerate().map(choice).collect(),
        usage: answers.usage(),
        system_fingerprint: &answers.head.fingerprint,
        prompt_token_ids: None,
        prompt_logprobs: None,
    })
}
