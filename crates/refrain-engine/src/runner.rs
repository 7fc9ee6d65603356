//! The engine thread: takes commands, plans a step, has it executed, chooses tokens, sends events; again and again.
//!
//! Where the backend can, a step is planned and begun while the one before it still runs, so that the device never waits
//! for the host: [`work`] says when that is sound, and [`flight`] keeps what must be known of a step until it ends.

mod active;
mod build;
mod flight;
mod pace;
mod results;
#[cfg(test)]
mod tests;
mod work;

use crate::RequestFailure;
use crate::sampling::Sampler;
use crate::scheduler::{Rank, Sequence, State, StepPlan};
use crate::shared::{Command, Life, Shared, Submission};
use active::{Active, End};
use flight::Flight;
use pace::Pace;
use refrain_device::{Backend, Step, StepLimits, Trace};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

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
    /// What is left of a plan that is run as two steps.
    rest: Option<StepPlan>,
    /// The step that the device works on while the next one is planned.
    in_flight: Option<Flight>,
    pace: Pace,
    /// Ended requests whose last event is sent once the load is published.
    ended: Vec<(Active, End)>,
    last_end: Option<Instant>,
    draining: bool,
    stopping: bool,
    /// Why the device can't be used any more.
    lost: Option<String>,
    /// Where the time of steps is written down.
    trace: Option<Arc<Trace>>,
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
            rest: None,
            in_flight: None,
            pace: Pace::default(),
            ended: Vec::new(),
            last_end: None,
            draining: false,
            stopping: false,
            lost: None,
            trace: None,
        }
    }

    /// Works until it is told to end, until nobody is left who could tell it anything, or until the device is lost.
    pub fn run(&mut self) -> Life {
        loop {
            if self.requests.is_empty() && self.in_flight.is_none() {
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
                self.publish();
                return Life::Ended;
            }
            self.work();
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
        }
    }

    /// Obeys commands until the step behind the one in flight must be planned, so that whoever comes meanwhile is in it.
    fn await_latecomers(&mut self) {
        let Some((since, expected)) = self.shared.policy().oldest() else { return };
        let until = since + self.pace.delay(expected);
        while !self.stopping {
            let left = until - self.shared.watch.seconds();
            if left <= 0.0 {
                return;
            }
            match self.commands.recv_timeout(Duration::from_secs_f64(left)) {
                Ok(command) => self.obey(command),
                // That nobody is left is noticed where commands are taken between steps.
                Err(_) => return,
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
            Command::Trace(trace) => {
                // A step that has begun is the first of the trace, as far as it can be seen.
                if self.in_flight.is_some() {
                    trace.step_begins();
                }
                self.backend.trace(trace.clone());
                self.trace = Some(trace);
            }
        }
    }

    fn enter(&mut self, submission: Submission) {
        let rank = submission.rank;
        let active = Active::new(submission, &self.shared);
        self.state.add(Sequence::new(rank, active.prompt, active.params.prompt_logprobs.is_some()));
        self.requests.insert(rank, active);
    }

    /// Takes a request out and frees what it holds. Unknown ones have ended already. A step in flight may still use it;
    /// whoever gets it next uses it in a later step, and the device runs them in order.
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
