//! What the callers' side and the engine thread both see.

use crate::policy::Policy;
use crate::scheduler::Rank;
use crate::{EngineConfig, EngineMetrics, Event, Load, Request, SubmitError};
use refrain_device::{Backend, DeviceInfo, Trace};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

/// What callers tell the engine thread.
pub(crate) enum Command {
    /// A request that was accepted.
    Submit(Box<Submission>),
    /// Its client is gone, or has what it wanted (`satisfied`).
    Cancel {
        /// The request.
        rank: Rank,
        /// Counted as finished, not as aborted.
        satisfied: bool,
    },
    /// End when there is nothing left to do.
    Shutdown,
    /// End now.
    Stop,
    /// Write down where the time of steps goes from now on.
    Trace(Arc<Trace>),
}

/// An accepted request on its way to the engine thread.
pub(crate) struct Submission {
    /// Its name and place in line.
    pub rank: Rank,
    /// The request.
    pub request: Request,
    /// Where its events go. The channel has no bound of its own: a request sends at most `max_tokens` tokens, so that a
    /// client that doesn't read costs no more than the answer it asked for, and never holds up the others.
    pub events: UnboundedSender<Event>,
    /// When it arrived.
    pub arrival: Instant,
}

/// How the engine thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It runs.
    Running,
    /// It ended as it was told to.
    Ended,
    /// It panicked, or its device is lost.
    Died,
    /// Its step doesn't end, and nobody waits for it any more.
    Abandoned,
}

/// The line of requests, seen from the door.
#[derive(Debug)]
pub(crate) struct Line {
    /// Whether new requests are taken.
    pub accepting: bool,
    /// Number of the next request.
    pub next_arrival: u64,
    /// How much there is to do. `waiting` counts requests from their submission on.
    pub load: Load,
    /// Moving average of the time between two requests that finish, in seconds.
    pub seconds_per_request: f64,
}

impl Line {
    /// Whether so many requests may join.
    ///
    /// Requests wait until the engine thread looks at them, between two steps; those for which there will be a slot then
    /// are not queued, so that an engine takes a burst of as many as it can run and queue. The limit of prompt tokens
    /// bounds the time to the first token and so counts all that is before the new ones, with a slot or without; what
    /// they add themselves doesn't matter, so that any prompt has its turn. The latter as in vLLM
    /// (`AsyncLLM.check_admission`).
    pub fn admit(&self, requests: usize, config: &EngineConfig) -> Result<(), SubmitError> {
        let Load { running, waiting, prefill_tokens, .. } = self.load;
        let queued = (running + waiting).saturating_sub(config.max_num_seqs);
        let would_be = (running + waiting).saturating_add(requests).saturating_sub(config.max_num_seqs);
        let full = config.max_num_queued_reqs.is_some_and(|most| would_be > most)
            || config.max_num_queued_tokens.is_some_and(|most| prefill_tokens >= most);
        if !full {
            return Ok(());
        }
        let half = (self.seconds_per_request * waiting as f64 / 2.0).ceil().clamp(1.0, 60.0);
        Err(SubmitError::QueueFull { queued, prefill_tokens, retry_after: Duration::from_secs_f64(half) })
    }
}

/// State shared between the callers and the engine thread.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What the engine was started with.
    pub config: EngineConfig,
    /// The device it runs on.
    pub device: DeviceInfo,
    /// What it counts.
    pub metrics: EngineMetrics,
    /// The watch on the steps.
    pub watch: StepWatch,
    /// How the engine thread is.
    pub life: watch::Sender<Life>,
    policy: Arc<Mutex<Policy>>,
    line: Mutex<Line>,
}

impl Shared {
    /// An engine with nothing to do.
    pub fn new(config: EngineConfig, backend: &dyn Backend, policy: Policy) -> Self {
        let load = Load { kv_blocks_total: config.pools.blocks, slots_total: config.pools.slots, ..Load::default() };
        let policy = Arc::new(Mutex::new(policy));
        let mut metrics = EngineMetrics::new(config.max_model_len, config.pools.blocks, Arc::clone(&policy));
        metrics.prepared(backend);
        metrics.set_load(&load);
        Self {
            metrics,
            config,
            device: backend.device().clone(),
            watch: StepWatch::new(),
            life: watch::Sender::new(Life::Running),
            policy,
            line: Mutex::new(Line { accepting: true, next_arrival: 0, load, seconds_per_request: 0.0 }),
        }
    }

    /// The line. A panic while somebody held it left counters only, which are whole at any time.
    pub fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What says how steps are run. Of a panic the same holds.
    pub fn policy(&self) -> MutexGuard<'_, Policy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notices when a step doesn't end.
#[derive(Debug)]
pub(crate) struct StepWatch {
    epoch: Instant,
    /// Milliseconds since the epoch at which the present step began, plus 1; 0 between steps.
    began: AtomicU64,
    /// Milliseconds of the longest step so far.
    longest: AtomicU64,
}

impl StepWatch {
    fn new() -> Self {
        Self { epoch: Instant::now(), began: AtomicU64::new(0), longest: AtomicU64::new(0) }
    }

    /// Seconds since the engine was started.
    pub fn seconds(&self) -> f64 {
        self.epoch.elapsed().as_secs_f64()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// A step begins.
    pub fn begin(&self) {
        self.began.store(self.now() + 1, Relaxed);
    }

    /// The step has ended.
    pub fn end(&self) {
        let began = self.began.swap(0, Relaxed);
        self.longest.fetch_max((self.now() + 1).saturating_sub(began), Relaxed);
    }

    /// How long the present step has run, if that is longer than `least` and far too long.
    pub fn stuck(&self, least: Duration) -> Option<Duration> {
        let began = self.began.load(Relaxed).checked_sub(1)?;
        let elapsed = Duration::from_millis(self.now().saturating_sub(began));
        let longest = Duration::from_millis(self.longest.load(Relaxed));
        (elapsed > least.max(longest * 5)).then_some(elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_stuck_after_the_given_time_and_five_times_the_longest() {
        let seconds = Duration::from_secs;
        let mut watch = StepWatch::new();
        assert_eq!(watch.stuck(Duration::ZERO), None);
        watch.begin();
        watch.epoch -= seconds(20);
        assert!(watch.stuck(seconds(19)).is_some_and(|elapsed| elapsed >= seconds(20)));
        assert_eq!(watch.stuck(seconds(30)), None);
        watch.longest.store(5000, Relaxed);
        assert_eq!(watch.stuck(seconds(1)), None);
        watch.longest.store(3000, Relaxed);
        assert!(watch.stuck(seconds(1)).is_some());
        watch.end();
        assert_eq!(watch.began.load(Relaxed), 0);
    }
}
