//! What one answer has become so far, and the answers of a whole request.

use super::generation::{Echo, OutputOptions};
use super::logprobs::{ChatLogprobs, CompletionLogprobs, TokenNames};
use super::usage::Usage;
use crate::text::{Finish, PreparedPrompt, StopCause, TextEvent};
use refrain_engine::PositionLogprobs;
use serde::Serialize;
use serde_json::{Value, json};

/// What stands at the top of every answer.
#[derive(Clone, Debug)]
pub(crate) struct AnswerHead {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
}

/// The answers of a request.
pub(crate) struct Answers {
    pub head: AnswerHead,
    pub output: OutputOptions,
    pub names: TokenNames,
    pub prompts: Vec<PreparedPrompt>,
    pub answers: Vec<Answer>,
}

/// One answer so far.
#[derive(Default)]
pub(crate) struct Answer {
    /// Tokens generated.
    pub tokens: usize,
    /// Of the prompt, until they are written.
    pub prompt_logprobs: Vec<PositionLogprobs>,
    /// Where the next token begins in the text, in characters.
    pub offset: usize,
    /// The first piece has been written.
    pub begun: bool,
    pub finish: Option<Finish>,
}

/// A piece of an answer, ready to be written: a token's worth in a stream, all of it otherwise.
#[derive(Default)]
pub(crate) struct Piece {
    pub text: String,
    pub token_ids: Vec<u32>,
    pub logprobs: Option<PieceLogprobs>,
}

/// Log-probabilities in the form of the endpoint.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum PieceLogprobs {
    Chat(ChatLogprobs),
    Completion(CompletionLogprobs),
}

impl Answers {
    pub fn new(head: AnswerHead, output: OutputOptions, names: TokenNames, prompts: Vec<PreparedPrompt>) -> Self {
        let answers = (0..prompts.len() * output.n).map(|_| Answer::default()).collect();
        Self { head, output, names, prompts, answers }
    }

    /// The prompt of answer `index`.
    pub fn prompt(&self, index: usize) -> &PreparedPrompt {
        &self.prompts[index / self.output.n]
    }

    /// Takes an event and gives what it adds to its answer; nothing while only the prompt is known.
    pub fn take(&mut self, event: TextEvent) -> Option<Piece> {
        let Self { output, names, prompts, answers, .. } = self;
        let answer = &mut answers[event.index];
        answer.prompt_logprobs.extend(event.prompt_logprobs);
        if event.token_ids.is_empty() && event.finish.is_none() {
            return None;
        }
        let mut piece = Piece { logprobs: PieceLogprobs::empty(output), ..Piece::default() };
        if !answer.begun {
            let prompt = &prompts[event.index / output.n];
            piece.begin(output, names, prompt, answer);
        }
        if !output.echo_only {
            answer.tokens += event.token_ids.len();
            piece.text.push_str(&event.text);
            for position in &event.logprobs {
                piece.push_logprobs(output, names, position, &mut answer.offset);
            }
            piece.token_ids = event.token_ids;
        }
        if let Some(mut finish) = event.finish {
            if output.echo_only {
                finish.reason = StopCause::Length;
            }
            answer.finish = Some(finish);
        }
        Some(piece)
    }

    /// Tokens of the whole request so far.
    pub fn usage(&self) -> Usage {
        let prompt_tokens = self.prompts.iter().map(|prompt| prompt.ids.len()).sum();
        let completion_tokens = self.answers.iter().map(|answer| answer.tokens).sum();
        let cached = |answer: &Answer| answer.finish.as_ref().map_or(0, |finish| finish.cached_tokens);
        let cached_tokens =
            self.answers.chunks(self.output.n).map(|answers| answers.iter().map(cached).max().unwrap_or(0)).sum();
        Usage::new(prompt_tokens, completion_tokens, cached_tokens)
    }

    /// Tokens of one answer and its prompt so far.
    pub fn usage_of(&self, index: usize) -> Usage {
        let answer = &self.answers[index];
        let cached_tokens = answer.finish.as_ref().map_or(0, |finish| finish.cached_tokens);
        Usage::new(self.prompt(index).ids.len(), answer.tokens, cached_tokens)
    }

    /// `prompt_logprobs` of answer `index`, if asked for.
    pub fn prompt_logprobs(&self, index: usize) -> Option<Vec<Value>> {
        let top = self.output.prompt_logprobs?;
        Some(self.names.prompt(&self.answers[index].prompt_logprobs, top))
    }
}

impl PieceLogprobs {
    fn empty(output: &OutputOptions) -> Option<Self> {
        output.logprobs.map(|_| match output.chat {
            true => Self::Chat(ChatLogprobs::default()),
            false => Self::Completion(CompletionLogprobs::default()),
        })
    }
}

impl Piece {
    /// What stands before the answer's first token.
    fn begin(&mut self, output: &OutputOptions, names: &TokenNames, prompt: &PreparedPrompt, answer: &mut Answer) {
        answer.begun = true;
        match &output.echo {
            Echo::No => {}
            Echo::Text(text) => self.text.push_str(text),
            Echo::Prompt => {
                self.text.push_str(prompt.text.as_deref().unwrap_or_default());
                if let (Some(PieceLogprobs::Completion(logprobs)), Some(top)) = (&mut self.logprobs, output.logprobs) {
                    // The prompt's text has its special tokens.
                    let names = TokenNames { skip_special: false, ..names.clone() };
                    logprobs.push_unknown(&names, prompt.ids[0], &mut answer.offset);
                    for position in &answer.prompt_logprobs {
                        logprobs.push(&names, position, top, &mut answer.offset);
                    }
                }
            }
        }
    }

    fn push_logprobs(
        &mut self,
        output: &OutputOptions,
        names: &TokenNames,
        position: &PositionLogprobs,
        offset: &mut usize,
    ) {
        let top = output.logprobs.unwrap_or(0);
        match &mut self.logprobs {
            Some(PieceLogprobs::Chat(logprobs)) => logprobs.content.push(names.chat_token(position, top)),
            Some(PieceLogprobs::Completion(logprobs)) => logprobs.push(names, position, top, offset),
            None => {}
        }
    }

    /// Joins the next piece to this one.
    pub fn append(&mut self, next: Piece) {
        self.text.push_str(&next.text);
        self.token_ids.extend(next.token_ids);
        match (&mut self.logprobs, next.logprobs) {
            (Some(PieceLogprobs::Chat(all)), Some(PieceLogprobs::Chat(next))) => all.content.extend(next.content),
            (Some(PieceLogprobs::Completion(all)), Some(PieceLogprobs::Completion(next))) => {
                all.text_offset.extend(next.text_offset);
                all.token_logprobs.extend(next.token_logprobs);
                all.tokens.extend(next.tokens);
                all.top_logprobs.extend(next.top_logprobs);
            }
            (all @ None, next) => *all = next,
            _ => {}
        }
    }
}

/// `finish_reason` of OpenAI and `stop_reason` of vLLM.
pub(crate) fn reasons(finish: Option<&Finish>) -> (Option<&'static str>, Value) {
    match finish.map(|finish| &finish.reason) {
        None => (None, Value::Null),
        Some(StopCause::EndOfSequence) => (Some("stop"), Value::Null),
        Some(StopCause::Token(token)) => (Some("stop"), json!(token)),
        Some(StopCause::Text(text)) => (Some("stop"), json!(text)),
        Some(StopCause::Length) => (Some("length"), Value::Null),
    }
}
