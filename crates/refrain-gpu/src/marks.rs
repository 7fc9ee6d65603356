//! Times of ops on the device, for traces: an event behind each op, or behind each graph where ops are replayed.
//!
//! Events between kernels keep the next one from starting early, so a traced step is slower than others by that much.

use refrain_device::{DeviceError, Event, HostSpan, Lane, Runtime, StreamId, Trace};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Puts events between ops while the engine traces steps.
pub(crate) struct Marks {
    runtime: Arc<dyn Runtime>,
    stream: StreamId,
    trace: Arc<Trace>,
    /// An event that has passed, and when it did on the host's clock.
    anchor: Event,
    anchored: Instant,
    steps: RefCell<Steps>,
}

#[derive(Default)]
struct Steps {
    /// Steps that were enqueued and not finished, oldest first.
    flying: VecDeque<Marked>,
    /// The step that is being enqueued.
    open: Option<Marked>,
    /// Events that can be recorded anew.
    free: Vec<Event>,
    /// When the last step that was read had ended.
    ended: Option<Instant>,
}

/// The events of one step.
struct Marked {
    step: u64,
    name: String,
    first: Event,
    /// What was done before each event.
    ops: Vec<(String, Event)>,
}

impl Marks {
    /// Waits for all work of the stream once, to lay the device's clock beside the host's.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(runtime: &Arc<dyn Runtime>, stream: StreamId, trace: Arc<Trace>) -> Result<Marks, DeviceError> {
        let anchor = Event::new(runtime)?;
        runtime.record(anchor.id(), stream)?;
        runtime.synchronize(stream)?;
        let anchored = Instant::now();
        Ok(Marks { runtime: runtime.clone(), stream, trace, anchor, anchored, steps: RefCell::default() })
    }

    /// What the host does for the newest step, until it is dropped.
    pub fn host(&self, name: &'static str) -> Option<HostSpan> {
        HostSpan::of_newest(&self.trace, name)
    }

    /// The host waits for the oldest step, until it is dropped.
    pub fn waiting(&self) -> Option<HostSpan> {
        HostSpan::of_oldest(&self.trace, "wait")
    }

    /// The ops of a step follow, if it is traced.
    pub fn begin(&self, name: impl FnOnce() -> String) -> Result<(), DeviceError> {
        let Some(step) = self.trace.newest() else { return Ok(()) };
        let first = self.mark()?;
        self.steps.borrow_mut().open = Some(Marked { step, name: name(), first, ops: Vec::new() });
        Ok(())
    }

    /// What was enqueued since the last mark of a traced step is `name`.
    pub fn after(&self, name: &str) -> Result<(), DeviceError> {
        if self.steps.borrow().open.is_none() {
            return Ok(());
        }
        let event = self.mark()?;
        if let Some(open) = &mut self.steps.borrow_mut().open {
            open.ops.push((name.to_owned(), event));
        }
        Ok(())
    }

    /// All of a step was enqueued, or none of it will be waited for.
    pub fn end(&self, enqueued: bool) {
        let mut steps = self.steps.borrow_mut();
        if let Some(open) = steps.open.take().filter(|_| enqueued) {
            steps.flying.push_back(open);
        }
    }

    /// The oldest step has ended: reads its times, if it was traced.
    pub fn finish(&self) -> Result<(), DeviceError> {
        let Some(oldest) = self.trace.oldest() else { return Ok(()) };
        let mut steps = self.steps.borrow_mut();
        // Those that failed are waited for by nobody.
        while steps.flying.front().is_some_and(|marked| marked.step < oldest) {
            steps.flying.pop_front();
        }
        let Some(marked) = steps.flying.pop_front_if(|marked| marked.step == oldest) else { return Ok(()) };
        let Marked { step, name, first, ops } = marked;
        // Steps run one after another, whatever is lost to rounding.
        let begun = self.anchored + self.runtime.elapsed(self.anchor.id(), first.id())?;
        let begun = steps.ended.map_or(begun, |ended| ended.max(begun));
        let mut start = begun;
        for (name, event) in ops {
            // From the step's own beginning: a long way from the anchor the clock of events is coarse.
            let end = begun + self.runtime.elapsed(first.id(), event.id())?;
            self.trace.add(Lane::Device, name, step, start..end, String::new());
            start = end;
            steps.free.push(event);
        }
        self.trace.add(Lane::Device, format!("step {step}"), step, begun..start, name);
        steps.free.push(first);
        steps.ended = Some(start);
        Ok(())
    }

    fn mark(&self) -> Result<Event, DeviceError> {
        let free = self.steps.borrow_mut().free.pop();
        let event = free.map_or_else(|| Event::new(&self.runtime), Ok)?;
        self.runtime.record(event.id(), self.stream)?;
        Ok(event)
    }
}
