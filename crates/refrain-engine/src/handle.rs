//! The callers' side of the engine: submit requests, read their events, stop it.

use crate::{EngineConfig, EngineError, EngineMetrics, Event, Request, SubmitError};
use refrain_device::{Backend, DeviceInfo};
use std::time::Duration;

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
        let _ = (backend, config);
        todo!()
    }
}

/// What the engine has to do at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that hold a state slot.
    pub running: usize,
    /// Requests that wait for their turn, preempted ones among them.
    pub waiting: usize,
    /// Known tokens of the waiting requests.
    pub waiting_tokens: usize,
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
pub struct EngineHandle {}

impl EngineHandle {
    /// Checks a request and puts it into the queue. Never waits.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing of the request remains in the engine then.
    pub fn submit(&self, request: Request) -> Result<RequestStream, SubmitError> {
        let _ = request;
        todo!()
    }

    /// What the engine was started with.
    pub fn config(&self) -> &EngineConfig {
        todo!()
    }

    /// The device it runs on.
    pub fn device(&self) -> &DeviceInfo {
        todo!()
    }

    /// What it has to do at the moment, as of the last step.
    pub fn load(&self) -> Load {
        todo!()
    }

    /// What it counts.
    pub fn metrics(&self) -> &EngineMetrics {
        todo!()
    }

    /// Whether the engine thread runs. False after [`EngineHandle::stop`], after the last request of a
    /// [`EngineHandle::shutdown`], and after a bug has ended it.
    pub fn is_alive(&self) -> bool {
        todo!()
    }

    /// Whether new requests are taken.
    pub fn is_accepting(&self) -> bool {
        todo!()
    }

    /// How long the present step has been running, if that is longer than 30 s and than five times the longest step so
    /// far: the device hangs.
    pub fn stuck(&self) -> Option<Duration> {
        todo!()
    }

    /// Takes no new requests, finishes all that were accepted, then ends the thread. Returns at once.
    pub fn shutdown(&self) {
        todo!()
    }

    /// Ends the thread at the next step; what is not finished fails with
    /// [`crate::RequestFailure::ShuttingDown`]. Returns at once.
    pub fn stop(&self) {
        todo!()
    }

    /// Waits until the thread has ended.
    pub async fn stopped(&self) {
        todo!()
    }
}

/// The events of one request. Dropping it cancels the request within one step.
#[derive(Debug)]
pub struct RequestStream {}

impl RequestStream {
    /// The next event; `None` after [`Event::Finished`] or [`Event::Failed`], one of which always comes.
    pub async fn next(&mut self) -> Option<Event> {
        todo!()
    }

    /// The same for callers without an async runtime.
    ///
    /// # Panics
    /// When called from inside an async task.
    pub fn blocking_next(&mut self) -> Option<Event> {
        todo!()
    }

    /// Ends the request because the caller has all it wanted (a stop string, say): like dropping the stream, but
    /// counted as finished by `stop` instead of as aborted.
    pub fn finish(self) {
        todo!()
    }
}
