//! The callers' side of the engine: submit requests, read their events, stop it.

use crate::policy::{CellSteps, Policy, PolicyEntry, PolicyMode};
use crate::runner::Runner;
use crate::scheduler::Rank;
use crate::shared::{Command, Life, Line, Shared, Submission};
use crate::{EngineConfig, EngineError, EngineMetrics, Event, Request, RequestFailure, SchedulingPolicy, SubmitError};
use refrain_device::{Backend, Cell, DeviceInfo, Trace};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

/// Starts engines.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Starts the engine thread on a loaded backend. The thread ends after [`EngineHandle::shutdown`],
    /// [`EngineHandle::stop`], or when all handles and streams are dropped.
    ///
    /// # Errors
    /// [`EngineError`] when the settings contradict each other.
    pub fn start(backend: Box<dyn Backend>, config: EngineConfig) -> Result<EngineHandle, EngineError> {
        let policy = Policy::new(PolicyMode::default(), backend.cells(), &config.step_limits(), backend.depth());
        Engine::start_with(backend, config, policy)
    }

    /// The same with a policy over the backend's cells, which may have been calibrated.
    ///
    /// # Errors
    /// [`EngineError`] when the settings contradict each other.
    pub fn start_with(
        backend: Box<dyn Backend>,
        config: EngineConfig,
        policy: Policy,
    ) -> Result<EngineHandle, EngineError> {
        config.validate()?;
        let shared = Arc::new(Shared::new(config, &*backend, policy));
        let (commands, received) = channel();
        let (life, seen) = (shared.life.subscribe(), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("refrain-engine".to_owned()).spawn(move || {
            let mut runner = Runner::new(backend, Arc::clone(&seen), received);
            // Dropped before the runner, so that whoever finds a channel closed can see why.
            let mut last_words = LastWords { shared: seen, says: Life::Died };
            last_words.says = runner.run();
        })?;
        Ok(EngineHandle { shared, commands, life, thread: Arc::new(Mutex::new(Some(thread))) })
    }
}

/// Says how the engine thread ended: also when it panicked.
struct LastWords {
    shared: Arc<Shared>,
    says: Life,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        // Who was abandoned stays so, whatever becomes of it later.
        self.shared.life.send_if_modified(|life| {
            *life == Life::Running && {
                *life = self.says;
                true
            }
        });
    }
}

/// What the engine has to do at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that hold a state slot.
    pub running: usize,
    /// Requests that wait for their turn, preempted ones among them.
    pub waiting: usize,
    /// Prompt tokens of the requests that have no token of their answer yet, waiting or not. A prompt counts in full
    /// until then, as in vLLM.
    pub prefill_tokens: usize,
    /// KV blocks in use.
    pub kv_blocks_used: usize,
    /// KV blocks in the pool.
    pub kv_blocks_total: usize,
    /// State slots in use.
    pub slots_used: usize,
    /// State slots in the pool.
    pub slots_total: usize,
    /// Steps executed since the start.
    pub steps: u64,
    /// Preemptions since the start.
    pub preemptions: u64,
}

/// The engine, from outside. All clones are the same engine.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    life: watch::Receiver<Life>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl EngineHandle {
    /// Checks a request and puts it into the queue. Never waits.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing of the request remains in the engine then.
    pub fn submit(&self, request: Request) -> Result<RequestStream, SubmitError> {
        self.submit_all(vec![request]).map(|mut streams| streams.remove(0))
    }

    /// The same for requests that are of use together only: all are accepted, or none. The limit of prompt tokens looks
    /// at what is there before them, so that an engine with nothing to do never sends them away.
    ///
    /// # Errors
    /// [`SubmitError`] of the first one that is refused.
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<RequestStream>, SubmitError> {
        let config = &self.shared.config;
        for request in &requests {
            request.validate(config.vocab_size, config.max_model_len)?;
        }

        // The lock is held until the requests are in the channel: numbers follow the order of arrival there, and
        // nothing is accepted behind a shutdown.
        let mut line = self.shared.line();
        if !self.is_alive() {
            return Err(if line.accepting { SubmitError::NotRunning } else { SubmitError::ShuttingDown });
        } else if !line.accepting {
            return Err(SubmitError::ShuttingDown);
        }
        line.admit(requests.len(), config).inspect_err(|_| self.shared.metrics.rejected())?;
        let streams = requests.into_iter().map(|request| self.enqueue(&mut line, request)).collect();
        self.shared.metrics.set_load(&line.load);
        streams
    }

    /// Sends an admitted request to the engine thread.
    fn enqueue(&self, line: &mut Line, request: Request) -> Result<RequestStream, SubmitError> {
        let priority = match self.shared.config.scheduling_policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority => request.priority,
        };
        let (events, received) = unbounded_channel();
        let prompt = request.prompt.len();
        let rank = Rank { priority, arrival: line.next_arrival };
        let submission = Submission { rank, request, events, arrival: Instant::now() };
        self.commands.send(Command::Submit(Box::new(submission))).map_err(|_| SubmitError::NotRunning)?;
        line.next_arrival += 1;
        line.load.waiting += 1;
        line.load.prefill_tokens += prompt;
        Ok(RequestStream {
            rank,
            events: received,
            commands: self.commands.clone(),
            life: self.life.clone(),
            ended: false,
            satisfied: false,
        })
    }

    /// What the engine was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &DeviceInfo {
        &self.shared.device
    }

    /// What it has to do at the moment, as of the last step. When a request's last event arrives, what it held is
    /// already counted as free.
    pub fn load(&self) -> Load {
        self.shared.line().load
    }

    /// What it counts.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.shared.metrics
    }

    /// By which rule the cell of a step is chosen.
    pub fn policy(&self) -> PolicyMode {
        self.shared.policy().mode()
    }

    /// Chooses by another rule from now on: steps that begin after this call, and so all of requests that are submitted
    /// after it, are run as it says. What was measured stays.
    pub fn set_policy(&self, mode: PolicyMode) {
        self.shared.policy().set_mode(mode);
    }

    /// The ways in which steps can be run.
    pub fn cells(&self) -> Vec<Cell> {
        self.shared.policy().cells().into_iter().collect()
    }

    /// What is known about what steps cost in each cell.
    pub fn policy_table(&self) -> Vec<PolicyEntry> {
        self.shared.policy().table()
    }

    /// How the steps since the start were run.
    pub fn step_modes(&self) -> Vec<CellSteps> {
        self.shared.policy().steps()
    }

    /// Writes down in a trace, from the next step on, what engine and device do.
    pub fn trace(&self, trace: Arc<Trace>) {
        // An engine that has ended has no more steps.
        let _ = self.commands.send(Command::Trace(trace));
    }

    /// Whether the engine thread runs. False after [`EngineHandle::stop`], after the last request of a
    /// [`EngineHandle::shutdown`], and after a bug has ended it.
    pub fn is_alive(&self) -> bool {
        *self.life.borrow() == Life::Running
    }

    /// Whether the engine thread has ended by a bug or because its device is lost: nothing helps but a new process.
    pub fn is_dead(&self) -> bool {
        matches!(*self.life.borrow(), Life::Died | Life::Abandoned)
    }

    /// Whether new requests are taken.
    pub fn is_accepting(&self) -> bool {
        self.shared.line().accepting && self.is_alive()
    }

    /// How long the present step has been running, if that is longer than `least` and than five times the longest step
    /// so far: the device hangs.
    pub fn stuck(&self, least: Duration) -> Option<Duration> {
        self.shared.watch.stuck(least)
    }

    /// Takes no new requests, finishes all that were accepted, then ends the thread. Returns at once.
    pub fn shutdown(&self) {
        self.close(Command::Shutdown);
    }

    /// Ends the thread at the next step; what is not finished fails with [`RequestFailure::ShuttingDown`]. Returns at
    /// once.
    pub fn stop(&self) {
        self.close(Command::Stop);
    }

    /// Takes the thread for dead at once, without waiting for its step, which may never end: every request fails with
    /// [`RequestFailure::EngineDied`], and nobody waits for the thread any more. The process should end then.
    pub fn abandon(&self) {
        self.stop();
        self.shared.life.send_replace(Life::Abandoned);
    }

    /// Whether the thread was [abandoned](EngineHandle::abandon).
    pub fn is_abandoned(&self) -> bool {
        *self.life.borrow() == Life::Abandoned
    }

    /// Ends the thread at the next step and waits until it has given its device back, unless it was abandoned. A process
    /// that ends without it takes the driver's library away from under the thread.
    pub fn stop_and_join(&self) {
        self.stop();
        if self.is_abandoned() {
            return;
        }
        self.join();
    }

    pub(crate) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A thread that panicked has said so, and is gone too.
        let _ = thread.map(JoinHandle::join);
    }

    fn close(&self, command: Command) {
        let mut line = self.shared.line();
        line.accepting = false;
        // An engine that has ended already has nothing left to close.
        let _ = self.commands.send(command);
    }

    /// The thread's life, watched without keeping it alive.
    #[cfg(test)]
    pub(crate) fn life_for_tests(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    /// Waits until the thread has ended.
    pub async fn stopped(&self) {
        // An error means that the sender is gone, and so the thread.
        let _ = self.life.clone().wait_for(|life| *life != Life::Running).await;
    }
}

async fn abandoned(life: &mut watch::Receiver<Life>) {
    // An error means that all handles are gone; the channel of events closes then.
    if life.wait_for(|life| *life == Life::Abandoned).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The events of one request. Dropping it cancels the request within one step.
#[derive(Debug)]
pub struct RequestStream {
    rank: Rank,
    events: UnboundedReceiver<Event>,
    commands: Sender<Command>,
    life: watch::Receiver<Life>,
    ended: bool,
    satisfied: bool,
}

impl RequestStream {
    /// The next event; `None` after [`Event::Finished`] or [`Event::Failed`], one of which always comes.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = tokio::select! {
            biased;
            event = self.events.recv() => event,
            // An engine that was abandoned closes no channel.
            () = abandoned(&mut self.life) => self.events.try_recv().ok(),
        };
        Some(self.seen(event))
    }

    /// The same for callers without an async runtime. Of an engine that is abandoned meanwhile it never returns.
    ///
    /// # Panics
    /// When called from inside an async task.
    pub fn blocking_next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.seen(event))
    }

    /// Ends the request because the caller has all it wanted (a stop string, say): like dropping the stream, but
    /// counted as finished by `stop` instead of as aborted.
    pub fn finish(mut self) {
        self.satisfied = true;
    }

    fn seen(&mut self, event: Option<Event>) -> Event {
        // A channel that closes without a last word: the engine thread is gone.
        let event = event.unwrap_or_else(|| {
            let orderly = *self.life.borrow() == Life::Ended;
            Event::Failed(if orderly { RequestFailure::ShuttingDown } else { RequestFailure::EngineDied })
        });
        self.ended = matches!(event, Event::Finished { .. } | Event::Failed(_));
        event
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if !self.ended {
            // Without an engine there is nothing to cancel.
            let _ = self.commands.send(Command::Cancel { rank: self.rank, satisfied: self.satisfied });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_device::{Cell, DeviceError, PoolSizes, Step, StepOutput};
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    /// A device that takes a while to be given back.
    struct Slow(DeviceInfo, Arc<AtomicBool>);

    impl Backend for Slow {
        fn device(&self) -> &DeviceInfo {
            &self.0
        }

        fn begin(&mut self, _: &Step, _: Cell) -> Result<(), DeviceError> {
            unreachable!("nothing is asked of it")
        }

        fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
            unreachable!("nothing is asked of it")
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            std::thread::sleep(Duration::from_millis(100));
            self.1.store(true, SeqCst);
        }
    }

    #[test]
    fn who_joins_finds_the_device_given_back() {
        let config = EngineConfig {
            max_num_seqs: 1,
            max_num_batched_tokens: 65,
            max_model_len: 16,
            pools: PoolSizes { blocks: 1, slots: 1 },
            scheduling_policy: SchedulingPolicy::Fcfs,
            max_num_queued_reqs: None,
            max_num_queued_tokens: None,
            eos_token_ids: vec![],
            vocab_size: 2,
            seed: 0,
        };
        let given_back = Arc::new(AtomicBool::new(false));
        let engine = Engine::start(Box::new(Slow(DeviceInfo::default(), given_back.clone())), config).unwrap();
        engine.stop_and_join();
        assert!(given_back.load(SeqCst));
        assert!(!engine.is_alive() && !engine.is_dead());
        // Again, and by another handle: there is nothing left to wait for.
        engine.clone().stop_and_join();
    }
}
