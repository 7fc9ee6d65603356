//! When what happened to a request.

use std::time::{Duration, Instant};

/// The times of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    arrival: Instant,
    first_step: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// How often it was thrown back.
    pub preemptions: u32,
}

impl Clock {
    /// It has arrived.
    pub fn new(arrival: Instant) -> Self {
        Self { arrival, first_step: None, first_token: None, last_token: None, preemptions: 0 }
    }

    /// It takes part in a step for the first time, or again after a preemption.
    pub fn admitted(&mut self, now: Instant) {
        self.first_step.get_or_insert(now);
    }

    /// A token is there; the time since the last one, unless it is the first.
    pub fn token(&mut self, now: Instant) -> Option<Duration> {
        self.first_token.get_or_insert(now);
        self.last_token.replace(now).map(|last| now - last)
    }

    /// From arrival to the first token.
    pub fn until_first_token(&self) -> Duration {
        self.first_token.map_or(Duration::ZERO, |first| first - self.arrival)
    }

    /// From arrival to the last token, or until now when there is none.
    pub fn end_to_end(&self) -> Duration {
        self.last_token.map_or_else(|| self.arrival.elapsed(), |last| last - self.arrival)
    }

    /// From arrival to the first step.
    pub fn queue(&self) -> Option<Duration> {
        Some(self.first_step? - self.arrival)
    }

    /// From the first step to the first token.
    pub fn prefill(&self) -> Option<Duration> {
        Some(self.first_token? - self.first_step?)
    }

    /// From the first token to the last.
    pub fn decode(&self) -> Option<Duration> {
        Some(self.last_token? - self.first_token?)
    }

    /// From the first step to the last token.
    pub fn inference(&self) -> Option<Duration> {
        Some(self.last_token? - self.first_step?)
    }
}
