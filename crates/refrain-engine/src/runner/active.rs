//! A request inside the engine thread.

use crate::clock::Clock;
use crate::metrics::{EndedRequest, EngineMetrics, Outcome};
use crate::sampling::{SequenceSampling, random_u64};
use crate::shared::{Shared, Submission};
use crate::{Event, FinishReason, RequestFailure, SamplingParams};
use tokio::sync::mpsc::UnboundedSender;

/// An accepted request, until it ends.
pub(super) struct Active {
    /// Its name, for logs.
    pub id: String,
    /// How to choose its tokens.
    pub params: SamplingParams,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    /// Most tokens that the answer can have: `max_tokens`, or less when the context limit comes first.
    pub max_output: usize,
    /// Sampling state.
    pub sampling: SequenceSampling,
    /// Whether it waits for a slot.
    pub waiting: bool,
    /// Its times.
    pub clock: Clock,
    events: UnboundedSender<Event>,
}

impl Active {
    /// A request that has just arrived.
    pub fn new(submission: Submission, shared: &Shared) -> Self {
        let Submission { rank, request, events, arrival } = submission;
        let prompt = request.prompt.len();
        Self {
            id: request.id,
            prompt,
            max_output: request.sampling.max_tokens.min(shared.config.max_model_len - prompt),
            sampling: SequenceSampling::new(
                &request.sampling,
                &request.prompt,
                random_u64(shared.config.seed, rank.arrival),
            ),
            params: request.sampling,
            tokens: request.prompt,
            waiting: true,
            clock: Clock::new(arrival),
            events,
        }
    }

    /// The answer so far.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }

    /// Whether the token that comes after `known` ones can only be asked for when all of those are there: which they are
    /// makes a difference, or the last of them ends the answer anyway.
    pub fn needs_tokens(&self, known: usize) -> bool {
        self.tokens.len() < known
            && (self.sampling.reads_output(&self.params) || known - self.prompt >= self.max_output)
    }

    /// Sends an event. A client that is gone says so with a cancel command, so a closed channel is no news here.
    pub fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Takes the next token of the answer; says why the answer ends with it, if it does.
    pub fn push(&mut self, token: u32, eos: &[u32]) -> Option<FinishReason> {
        self.tokens.push(token);
        self.sampling.push(token);
        if !self.params.ignore_eos && eos.contains(&token) {
            Some(FinishReason::EndOfSequence)
        } else if self.params.stop_token_ids.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else {
            (self.output().len() >= self.max_output).then_some(FinishReason::Length)
        }
    }

    /// Counts the end of the request.
    pub fn count_end(&self, end: &End, metrics: &EngineMetrics) {
        let outcome = match end {
            End::Finished(FinishReason::Length) => Outcome::Length,
            End::Finished(_) | End::Cancelled { satisfied: true } => Outcome::Stop,
            End::Cancelled { satisfied: false } | End::Failed(RequestFailure::ShuttingDown) => Outcome::Abort,
            End::Failed(failure) => {
                if *failure == RequestFailure::NotFinite {
                    metrics.corrupted();
                }
                Outcome::Error
            }
        };
        let ended = EndedRequest {
            prompt: self.prompt,
            generated: self.output().len(),
            max_tokens: self.params.max_tokens,
            clock: &self.clock,
        };
        metrics.ended(outcome, &ended);
    }
}

/// How a request ends.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// The answer is complete.
    Finished(FinishReason),
    /// It could not be completed.
    Failed(RequestFailure),
    /// Nobody listens any more.
    Cancelled {
        /// Because the caller had what it wanted.
        satisfied: bool,
    },
}

impl End {
    /// The last event that the client sees.
    pub fn event(self) -> Option<Event> {
        match self {
            Self::Finished(reason) => Some(Event::Finished { reason, cached_tokens: 0 }),
            Self::Failed(failure) => Some(Event::Failed(failure)),
            Self::Cancelled { .. } => None,
        }
    }
}
