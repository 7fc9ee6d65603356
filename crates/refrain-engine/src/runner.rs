//! The engine thread: takes commands, plans a step, has it executed, chooses tokens, sends events; again and again.

mod active;
mod build;
mod results;
#[cfg(test)]
mod tests;

use crate::sampling::Sampler;
use crate::scheduler::{PlannedSegment, Rank, Sequence, State, StepPlan, plan};
use crate::shared::{Command, Life, Shared, Submission};
use crate::{Event, RequestFailure};
use active::{Active, End};
use build::{build_sampling, build_step};
use refrain_device::{Backend, DeviceError, Step, StepLimits};
use results::Results;
use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

type Requests = HashMap<Rank, Active>;

/// How much a new interval counts in the moving average of the time between finished requests.
const NEW_WEIGHT: f64 = 0.1;

/// Everything the engine thread owns.
pub(crate) struct Runner {
    backend: Box<dyn Backend>,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    limits: StepLimits,
    state: State,
    requests: Requests,
    sampler: Sampler,
    step: Step,
    /// Ended requests whose last event is sent once the load is published.
    ended: Vec<(Active, End)>,
    last_end: Option<Instant>,
    draining: bool,
    stopping: bool,
    /// Why the device can't be used any more.
    lost: Option<String>,
}

impl Runner {
    /// A runner with nothing to do.
    pub fn new(backend: Box<dyn Backend>, shared: Arc<Shared>, commands: Receiver<Command>) -> Self {
        let (limits, pools) = (shared.config.step_limits(), shared.config.pools);
        Self {
            backend,
            shared,
            commands,
            limits,
            state: State::new(pools),
            requests: Requests::new(),
            sampler: Sampler::default(),
            step: Step::default(),
            ended: Vec::new(),
            last_end: None,
            draining: false,
            stopping: false,
            lost: None,
        }
    }

    /// Works until it is told to end, until nobody is left who could tell it anything, or until the device is lost.
    pub fn run(&mut self) -> Life {
        loop {
            if self.requests.is_empty() {
                self.last_end = None;
                if self.draining {
                    return Life::Ended;
                }
                match self.commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return Life::Ended,
                }
            }
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    // All streams are gone, and each has cancelled its request.
                    Err(TryRecvError::Disconnected) => return Life::Ended,
                }
            }
            if self.stopping {
                self.fail_all(&RequestFailure::ShuttingDown);
            } else if !self.requests.is_empty() {
                self.execute_step();
            }
            if let Some(why) = self.lost.take() {
                // Whoever has come meanwhile is told the reason too.
                while let Ok(command) = self.commands.try_recv() {
                    self.obey(command);
                }
                self.fail_all(&RequestFailure::Device(why));
                self.publish();
                return Life::Died;
            }
            self.publish();
            if self.stopping {
                return Life::Ended;
            }
        }
    }

    fn fail_all(&mut self, failure: &RequestFailure) {
        let all: Vec<Rank> = self.requests.keys().copied().collect();
        all.into_iter().for_each(|rank| self.end(rank, End::Failed(failure.clone())));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.enter(*submission),
            Command::Cancel { rank, satisfied } => self.end(rank, End::Cancelled { satisfied }),
            Command::Shutdown => self.draining = true,
            Command::Stop => self.stopping = true,
        }
    }

    fn enter(&mut self, submission: Submission) {
        let rank = submission.rank;
        let active = Active::new(submission, &self.shared);
        self.state.add(Sequence::new(rank, active.prompt, active.params.prompt_logprobs.is_some()));
        self.requests.insert(rank, active);
    }

    /// Takes a request out and frees what it holds. Unknown ones have ended already.
    fn end(&mut self, rank: Rank, end: End) {
        if let Some(active) = self.requests.remove(&rank) {
            self.state.remove(rank).expect("every request has its sequence");
            self.ended.push((active, end));
        }
    }

    /// Makes the load known, then sends the last events: whoever sees one finds the pools freed.
    fn publish(&mut self) {
        let now = Instant::now();
        let mut line = self.shared.line();
        for (active, end) in &self.ended {
            if active.waiting {
                line.load.waiting -= 1;
            }
            if active.output().is_empty() {
                line.load.prefill_tokens -= active.prompt;
            }
            active.count_end(end, &self.shared.metrics);
            if let Some(last) = self.last_end.replace(now) {
                let interval = (now - last).as_secs_f64();
                line.seconds_per_request += NEW_WEIGHT * (interval - line.seconds_per_request);
            }
        }
        line.load.running = self.state.running.len();
        line.load.kv_blocks_used = self.state.blocks.used();
        line.load.slots_used = self.state.slots.used();
        self.shared.metrics.set_load(&line.load);
        drop(line);
        for (active, end) in self.ended.drain(..) {
            if let End::Failed(failure) = &end {
                tracing::warn!(request = active.id, "request failed: {failure}");
            }
            if let Some(event) = end.event() {
                active.send(event);
            }
        }
    }

    fn execute_step(&mut self) {
        let plan = plan(&self.state, &self.limits);
        self.state.apply(&plan);
        self.note_moves(&plan);
        self.publish();
        build_step(&mut self.step, &plan, &mut self.state, &self.requests);
        let eos = &self.shared.config.eos_token_ids;
        let sampling = self.backend.sampling();
        build_sampling(&mut self.step, &plan, &mut self.state, &self.requests, eos, sampling);

        self.shared.watch.begin();
        // A backend that panics leaves the states of this step's sequences undefined, as one that fails does; they are
        // never read again. So going on is sound.
        let call = AssertUnwindSafe((&mut *self.backend, &self.step, &*self.shared));
        let executed = catch_unwind(|| {
            let AssertUnwindSafe((backend, step, shared)) = { call };
            let cell = shared.policy().begin(&step.shape(), shared.watch.seconds());
            backend.begin(step, cell)?;
            let output = backend.finish()?;
            shared.policy().finish(shared.watch.seconds());
            Ok::<_, DeviceError>(output)
        });
        let (rows, vocab_size) = (self.step.logit_rows.len(), self.shared.config.vocab_size);
        let results = match executed {
            Ok(Ok(output)) => Results::new(output, rows, vocab_size),
            Ok(Err(error)) => {
                if error.is_fatal() {
                    self.lost = Some(error.to_string());
                }
                Err(error.to_string())
            }
            Err(panic) => Err(panic_message(panic.as_ref())),
        };
        let failed = results.is_err();
        let mut prefilled = 0;
        let ends = match results {
            Ok(mut results) => {
                let context = &mut Context {
                    state: &mut self.state,
                    requests: &mut self.requests,
                    sampler: &mut self.sampler,
                    shared: &self.shared,
                    prefilled: &mut prefilled,
                };
                plan.segments
                    .iter()
                    .filter_map(|segment| Some((segment.rank, context.take_rows(segment, &mut results)?)))
                    .collect()
            }
            Err(why) => {
                self.shared.policy().fail_all();
                tracing::error!(
                    sequences = plan.segments.len(),
                    tokens = self.step.tokens.len(),
                    "a step failed: {why}"
                );
                let failure = End::Failed(RequestFailure::Device(why));
                plan.segments.iter().map(|segment| (segment.rank, failure.clone())).collect::<Vec<_>>()
            }
        };
        self.shared.watch.end();
        self.shared.metrics.step(self.step.tokens.len(), failed);
        let mut line = self.shared.line();
        line.load.steps += 1;
        line.load.prefill_tokens -= prefilled;
        drop(line);
        ends.into_iter().for_each(|(rank, end)| self.end(rank, end));
    }

    /// Tells line, clocks and metrics who was preempted and who was admitted.
    fn note_moves(&mut self, plan: &StepPlan) {
        if plan.preempted.is_empty() && plan.admitted.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut line = self.shared.line();
        for rank in &plan.preempted {
            let active = self.requests.get_mut(rank).expect("every sequence has its request");
            active.waiting = true;
            active.clock.preemptions += 1;
            line.load.waiting += 1;
            tracing::debug!(request = active.id, tokens = active.tokens.len(), "preempted: no free KV block");
        }
        for rank in &plan.admitted {
            let active = self.requests.get_mut(rank).expect("every sequence has its request");
            active.waiting = false;
            active.clock.admitted(now);
            line.load.waiting -= 1;
        }
        // Under the same lock, so that nobody who moves is seen twice or not at all.
        line.load.running = self.state.running.len();
        line.load.preemptions += plan.preempted.len() as u64;
        self.shared.metrics.preempted(plan.preempted.len());
    }
}

/// What the results of a step are worked into, while the backend still lends them.
struct Context<'a> {
    state: &'a mut State,
    requests: &'a mut Requests,
    sampler: &'a mut Sampler,
    shared: &'a Shared,
    /// Prompt tokens of the requests that get their first token.
    prefilled: &'a mut usize,
}

impl Context<'_> {
    /// Takes the rows of one segment: sends prompt log-probabilities, and chooses the next token if it is due. Says how
    /// the request ends, if it does.
    fn take_rows(&mut self, segment: &PlannedSegment, results: &mut Results<'_>) -> Option<End> {
        let sequence = self.state.running_mut(segment.rank).expect("a step's sequences run");
        let active = self.requests.get_mut(&segment.rank).expect("every sequence has its request");
        let prompt_rows = sequence.prompt_rows(segment.end());
        sequence.advance(segment.end());

        // All rows of the segment are taken, even after a failure: the next segment's come behind them.
        let prompt_results = results.take(prompt_rows.len());
        let next_result = (segment.end() == sequence.known).then(|| results.take(1).start);
        if !prompt_rows.is_empty() {
            let top = active.params.prompt_logprobs.unwrap_or(0);
            let tokens = active.tokens[prompt_rows.start + 1..].iter();
            let logprobs = prompt_results
                .zip(tokens)
                .map(|(row, &token)| results.prompt_logprobs(row, token, top, self.sampler))
                .collect::<Result<Vec<_>, _>>();
            match logprobs {
                Ok(logprobs) => active.send(Event::PromptLogprobs(logprobs)),
                Err(failure) => return Some(End::Failed(failure)),
            }
        }

        let eos = &self.shared.config.eos_token_ids;
        let (token, logprobs) = match results.next_token(next_result?, active, eos, self.sampler) {
            Ok(chosen) => chosen,
            Err(failure) => return Some(End::Failed(failure)),
        };
        match active.clock.token(results.now) {
            None => {
                *self.prefilled += active.prompt;
                self.shared.metrics.first_token(active.prompt, active.clock.until_first_token());
            }
            Some(since_last) => self.shared.metrics.token(since_last),
        }
        active.send(Event::Token { token, logprobs });
        let reason = active.push(token, eos);
        sequence.known += 1;
        reason.map(End::Finished)
    }
}

/// What a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", said.unwrap_or("without a message"))
}
