//! The answers to one request as they are made: several engine streams merged into one stream of text events.

use super::answer::AnswerText;
use super::{PreparedPrompt, block_on};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use refrain_engine::{Event, FinishReason, PositionLogprobs, RequestFailure, RequestStream};
use std::sync::Arc;

/// A piece of one answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextEvent {
    /// Which of the answers.
    pub index: usize,
    /// Text that came to it; may be empty while a character or a stop string is not complete.
    pub text: String,
    /// Tokens that came to it.
    pub token_ids: Vec<u32>,
    /// For each of `token_ids`, if asked for.
    pub logprobs: Vec<PositionLogprobs>,
    /// For prompt tokens after the first, in order, before the first token, if asked for.
    pub prompt_logprobs: Vec<PositionLogprobs>,
    /// Present in the last event of this answer.
    pub finish: Option<Finish>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: StopCause,
    /// Tokens generated, the one that ended the answer among them.
    pub completion_tokens: usize,
    /// Prompt tokens that were taken from a cache. Unknown, and 0, when a stop string ended the answer.
    pub cached_tokens: usize,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The model's end-of-sequence token.
    EndOfSequence,
    /// One of `stop_token_ids`.
    Token(u32),
    /// A stop string.
    Text(String),
    /// `max_tokens` or the context limit.
    Length,
}

/// What one answer starts from.
pub(super) struct AnswerParts {
    pub stream: RequestStream,
    pub text: AnswerText,
    pub end: Arc<AnswerEnd>,
}

/// One answer in progress.
struct Answer {
    text: AnswerText,
    end: Arc<AnswerEnd>,
    /// The last token, until the engine has said why it is the last.
    held: Option<TextEvent>,
}

/// What ends an answer.
pub(super) struct AnswerEnd {
    /// Tokens that do.
    pub tokens: Vec<u32>,
    /// Whether their text is part of the answer.
    pub shown: bool,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

type NextEvent = BoxFuture<'static, (usize, Option<Event>, RequestStream)>;

/// The answers to one request, or to several that were started together. Dropping it cancels what is still running.
pub struct TextStream {
    prompts: Vec<PreparedPrompt>,
    answers: Vec<Answer>,
    pending: FuturesUnordered<NextEvent>,
}

impl TextStream {
    pub(super) fn new(prompts: Vec<PreparedPrompt>, parts: Vec<AnswerParts>) -> Self {
        let mut answers = Vec::with_capacity(parts.len());
        let pending = FuturesUnordered::new();
        for (index, AnswerParts { stream, text, end }) in parts.into_iter().enumerate() {
            answers.push(Answer { text, end, held: None });
            pending.push(next_event(index, stream));
        }
        Self { prompts, answers, pending }
    }

    /// The prompts that are answered, in the order of the requests. With `n` answers to each, answer `i` belongs to
    /// prompt `i / n`.
    pub fn prompts(&self) -> &[PreparedPrompt] {
        &self.prompts
    }

    /// The next event of any of the answers; `None` once all are complete.
    ///
    /// # Errors
    /// [`RequestFailure`] when the engine could not finish one of them; the others are then cancelled.
    pub async fn next(&mut self) -> Option<Result<TextEvent, RequestFailure>> {
        loop {
            let (index, event, stream) = self.pending.next().await?;
            let answer = &mut self.answers[index];
            let event = match event {
                None => {
                    self.pending.clear();
                    return Some(Err(RequestFailure::EngineDied));
                }
                Some(Event::Failed(failure)) => {
                    self.pending.clear();
                    return Some(Err(failure));
                }
                Some(Event::Finished { reason, cached_tokens }) => answer.finished(index, &reason, cached_tokens),
                Some(Event::PromptLogprobs(prompt_logprobs)) => {
                    self.pending.push(next_event(index, stream));
                    TextEvent { index, prompt_logprobs, ..TextEvent::default() }
                }
                Some(Event::Token { token, logprobs, .. }) => {
                    let event = answer.token(index, token, logprobs);
                    if event.finish.is_some() {
                        stream.finish();
                        return Some(Ok(event));
                    }
                    self.pending.push(next_event(index, stream));
                    if answer.is_last(token) {
                        // The end comes at once: told together, the last token is not followed by an empty event.
                        answer.held = Some(event);
                        continue;
                    }
                    event
                }
            };
            return Some(Ok(event));
        }
    }

    /// [`TextStream::next`] for threads that run no async code.
    ///
    /// # Errors
    /// As [`TextStream::next`].
    pub fn blocking_next(&mut self) -> Option<Result<TextEvent, RequestFailure>> {
        block_on(self.next())
    }
}

fn next_event(index: usize, mut stream: RequestStream) -> NextEvent {
    Box::pin(async move {
        let event = stream.next().await;
        (index, event, stream)
    })
}

impl Answer {
    fn token(&mut self, index: usize, token: u32, logprobs: Option<PositionLogprobs>) -> TextEvent {
        let hidden = !self.end.shown && self.end.tokens.contains(&token);
        let (text, matched) = self.text.push(token, hidden);
        let mut event = self.held.take().unwrap_or(TextEvent { index, ..TextEvent::default() });
        event.text.push_str(&text);
        event.token_ids.push(token);
        event.logprobs.extend(logprobs);
        event.finish = matched.map(|stop| self.finish(StopCause::Text(stop), 0));
        event
    }

    fn is_last(&self, token: u32) -> bool {
        self.end.tokens.contains(&token) || self.text.tokens() == self.end.max_tokens
    }

    fn finished(&mut self, index: usize, reason: &FinishReason, cached_tokens: usize) -> TextEvent {
        let (text, matched) = self.text.finish();
        let reason = match (matched, reason) {
            (Some(stop), _) => StopCause::Text(stop),
            (None, FinishReason::EndOfSequence) => StopCause::EndOfSequence,
            (None, FinishReason::StopToken(token)) => StopCause::Token(*token),
            (None, FinishReason::Length) => StopCause::Length,
        };
        let mut event = self.held.take().unwrap_or(TextEvent { index, ..TextEvent::default() });
        event.text.push_str(&text);
        event.finish = Some(self.finish(reason, cached_tokens));
        event
    }

    fn finish(&self, reason: StopCause, cached_tokens: usize) -> Finish {
        Finish { reason, completion_tokens: self.text.tokens(), cached_tokens }
    }
}
