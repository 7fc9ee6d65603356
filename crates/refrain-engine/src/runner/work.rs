//! Begins steps and finishes them, the next one before the one in flight where that is sound.

use super::active::End;
use super::build::{build_sampling, build_step};
use super::flight::{Flight, FlightSegment};
use super::results::Results;
use super::{Requests, Runner};
use crate::sampling::Sampler;
use crate::scheduler::{State, StepPlan, plan};
use crate::shared::Shared;
use crate::{Event, Policy, RequestFailure};
use refrain_device::{DeviceError, HostSpan, Segment, StepShape};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

impl Runner {
    /// Finishes one step, the one in flight if there is one, and sends what came of it. Before that it begins the one
    /// behind it, if it can.
    pub(super) fn work(&mut self) {
        let Some(older) = self.in_flight.take().or_else(|| self.begin_step(None)) else { return };
        let behind = self.backend.depth() > 1 && older.failed.is_none() && !older.wants_logits;
        // What is left of a plan takes nobody else in.
        if behind && self.rest.is_none() {
            self.await_latecomers();
        }
        if self.stopping {
            self.in_flight = Some(older);
            return;
        }
        let next = if behind { self.begin_step(Some(&older)) } else { None };
        self.finish_step(older);
        if next.is_some() {
            self.shared.watch.begin();
        }
        self.in_flight = next;
    }

    /// Plans a step and begins it. Behind another one it only does so where everybody who takes part can: nobody has to
    /// give back what the result of `before` might make unnecessary.
    fn begin_step(&mut self, before: Option<&Flight>) -> Option<Flight> {
        let start = Instant::now();
        let rest = self.take_rest();
        let planned = rest.is_some();
        let mut plan = rest.unwrap_or_else(|| plan(&self.state, &self.limits));
        if plan.segments.is_empty() || (before.is_some() && !plan.preempted.is_empty()) {
            return None;
        }
        let planning = self.trace.as_ref().and_then(|trace| {
            trace.step_begins();
            HostSpan::since(trace, "plan", start)
        });
        if !planned {
            self.state.apply(&plan);
            self.note_moves(&plan);
            self.publish();
        }
        build_step(&mut self.step, &plan, &mut self.state, &self.requests, before);
        if let Some(decoding) = self.splits() {
            let others = plan.segments.split_off(decoding);
            self.rest = Some(StepPlan { segments: others, ..StepPlan::default() });
            build_step(&mut self.step, &plan, &mut self.state, &self.requests, before);
        }
        let eos = &self.shared.config.eos_token_ids;
        let sampling = self.backend.sampling();
        build_sampling(&mut self.step, &plan, &mut self.state, &self.requests, eos, sampling);

        if before.is_none() {
            self.shared.watch.begin();
        }
        // A backend that panics leaves the states of this step's sequences undefined, as one that fails does; they are
        // never read again. So going on is sound, here and where the step is finished.
        let traced = self.trace.as_ref().is_some_and(|trace| trace.newest().is_some());
        let begin = if traced { Policy::begin_traced } else { Policy::begin };
        let cell = begin(&mut self.shared.policy(), &self.step.shape(), self.shared.watch.seconds());
        drop(planning);
        let call = AssertUnwindSafe((&mut *self.backend, &self.step));
        let begun = catch_unwind(|| {
            let AssertUnwindSafe((backend, step)) = { call };
            backend.begin(step, cell)
        });
        let mut flight = Flight::new(&plan, &mut self.state, &self.step);
        flight.failed = outcome(begun, &mut self.lost).err();
        if flight.failed.is_some() {
            self.shared.policy().fail_newest();
        }
        self.pace.began(start.elapsed().as_secs_f64());
        flight.segments.iter().for_each(|segment| note_wait(&mut self.state, &self.requests, segment));
        Some(flight)
    }

    /// What is left of a plan of which a part has begun, for all that are still there. Its sequences hold what they need.
    fn take_rest(&mut self) -> Option<StepPlan> {
        let mut rest = self.rest.take()?;
        rest.segments.retain(|segment| self.requests.contains_key(&segment.rank));
        (!rest.segments.is_empty()).then_some(rest)
    }

    /// With how many sequences, those that decode, the step is to begin, if the others are to be a step of their own.
    fn splits(&self) -> Option<usize> {
        let segments = &self.step.segments;
        let decoding = segments.iter().position(|segment| !segment.decodes()).filter(|&count| count > 0)?;
        // Whoever needs a token of the step in flight must be in the step behind it.
        if segments[decoding..].iter().any(Segment::decodes) {
            return None;
        }
        let shapes = [&segments[..], &segments[..decoding], &segments[decoding..]].map(StepShape::of);
        self.shared.policy().splits(&shapes[0], &shapes[1], &shapes[2]).then_some(decoding)
    }

    /// Waits for a step and works its result into the requests that are still there.
    fn finish_step(&mut self, flight: Flight) {
        let results = match flight.failed {
            Some(why) => Err(why),
            None => {
                let call = AssertUnwindSafe(&mut *self.backend);
                let finished = catch_unwind(|| {
                    let AssertUnwindSafe(backend) = { call };
                    backend.finish()
                });
                match finished {
                    Ok(Ok(_)) => self.shared.policy().finish(self.shared.watch.seconds()),
                    _ => self.shared.policy().fail_oldest(),
                }
                let vocab_size = self.shared.config.vocab_size;
                outcome(finished, &mut self.lost).and_then(|output| Results::new(output, flight.logit_rows, vocab_size))
            }
        };
        let working = self.trace.as_ref().and_then(|trace| HostSpan::of_oldest(trace, "results"));
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
                let segments = flight.segments.iter();
                segments.filter_map(|segment| Some((segment.rank, context.take_rows(segment, &mut results)?))).collect()
            }
            Err(why) => {
                let (sequences, tokens) = (flight.segments.len(), flight.tokens);
                tracing::error!(sequences, tokens, "a step failed: {why}");
                let failure = End::Failed(RequestFailure::Device(why));
                flight.segments.iter().map(|segment| (segment.rank, failure.clone())).collect::<Vec<_>>()
            }
        };
        self.shared.watch.end();
        self.shared.metrics.step(flight.tokens, failed);
        let mut line = self.shared.line();
        line.load.steps += 1;
        line.load.prefill_tokens -= prefilled;
        drop(line);
        ends.into_iter().for_each(|(rank, end)| self.end(rank, end));
        drop(working);
        if let Some(trace) = &self.trace {
            trace.step_ends();
        }
    }
}

/// What a backend's call gave, or what went wrong; a lost device is noted in `lost`.
fn outcome<T>(call: std::thread::Result<Result<T, DeviceError>>, lost: &mut Option<String>) -> Result<T, String> {
    match call {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            if error.is_fatal() {
                *lost = Some(error.to_string());
            }
            Err(error.to_string())
        }
        Err(panic) => Err(panic_message(panic.as_ref())),
    }
}

/// Lets a sequence wait for the tokens in flight, or go on, as its request wants.
fn note_wait(state: &mut State, requests: &Requests, segment: &FlightSegment) {
    let sequence = state.running_mut(segment.rank).expect("a step's sequences run");
    sequence.waits = requests[&segment.rank].needs_tokens(sequence.known);
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
    /// Takes the rows of one segment: sends prompt log-probabilities, and the next token if one was due. Says how the
    /// request ends, if it does. One that has ended while the step was in flight gets nothing.
    fn take_rows(&mut self, segment: &FlightSegment, results: &mut Results<'_>) -> Option<End> {
        let active = self.requests.get_mut(&segment.rank)?;
        if !segment.prompt.is_empty() {
            let top = active.params.prompt_logprobs.unwrap_or(0);
            let tokens = active.tokens[segment.prompt.start + 1..].iter();
            let logprobs = segment
                .prompt_rows()
                .zip(tokens)
                .map(|(row, &token)| results.prompt_logprobs(row, token, top, self.sampler))
                .collect::<Result<Vec<_>, _>>();
            match logprobs {
                Ok(logprobs) => active.send(Event::PromptLogprobs(logprobs)),
                Err(failure) => return Some(End::Failed(failure)),
            }
        }

        let eos = &self.shared.config.eos_token_ids;
        let (token, logprobs) = match results.next_token(segment.next_row()?, active, eos, self.sampler) {
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
        active.send(Event::Token { token, logprobs, at: results.now });
        let reason = active.push(token, eos);
        note_wait(self.state, self.requests, segment);
        reason.map(End::Finished)
    }
}

/// What a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", said.unwrap_or("without a message"))
}
