//! Where the time of some steps goes: what the host does for them and when, and what the device does.
//!
//! The engine says when it begins a step and when it is done with it; engine and backend add spans meanwhile.
//! Steps end in the order in which they begin, so that two numbers tell which step a span belongs to.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who was busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The engine's thread.
    Host,
    /// The device.
    Device,
}

/// Something that took time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Who was busy.
    pub lane: Lane,
    /// With what.
    pub name: Cow<'static, str>,
    /// For which step, from 0.
    pub step: u64,
    /// When it began, from the beginning of the trace.
    pub start: Duration,
    /// How long it took.
    pub length: Duration,
    /// More about it, for people.
    pub detail: String,
}

/// What is done with the spans once there will be no more.
type Sink = Box<dyn FnOnce(Vec<Span>) + Send>;

/// A record of some steps, shared by the engine and its backend.
pub struct Trace {
    origin: Instant,
    steps: Range<u64>,
    begun: AtomicU64,
    ended: AtomicU64,
    spans: Mutex<Vec<Span>>,
    sink: Mutex<Option<Sink>>,
}

impl Trace {
    /// A trace of the steps with these numbers. `sink` is given the spans, in the order of their beginnings, when the
    /// last of the steps has ended or the trace is dropped.
    pub fn new(steps: Range<u64>, sink: impl FnOnce(Vec<Span>) + Send + 'static) -> Arc<Trace> {
        Arc::new(Trace {
            origin: Instant::now(),
            steps,
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            spans: Mutex::default(),
            sink: Mutex::new(Some(Box::new(sink))),
        })
    }

    /// The engine has planned a step and begins it.
    pub fn step_begins(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    /// The engine is done with the oldest step that has begun.
    pub fn step_ends(&self) {
        let ended = self.ended.fetch_add(1, Relaxed) + 1;
        if ended == self.steps.end {
            self.end();
        }
    }

    /// The step that has begun last, if it is traced. None before the engine's first step, whatever a backend does.
    pub fn newest(&self) -> Option<u64> {
        self.begun.load(Relaxed).checked_sub(1).filter(|step| self.steps.contains(step))
    }

    /// The oldest step that has not ended, if it is traced.
    pub fn oldest(&self) -> Option<u64> {
        Some(self.ended.load(Relaxed)).filter(|step| *step < self.begun.load(Relaxed) && self.steps.contains(step))
    }

    /// Adds what took from `start` until `end`.
    pub fn add(
        &self,
        lane: Lane,
        name: impl Into<Cow<'static, str>>,
        step: u64,
        times: Range<Instant>,
        detail: String,
    ) {
        let start = times.start.saturating_duration_since(self.origin);
        let length = times.end.saturating_duration_since(times.start);
        let span = Span { lane, name: name.into(), step, start, length, detail };
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }

    fn end(&self) {
        let sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut spans = std::mem::take(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner));
        // Of two that begin together the one around the other comes first.
        spans.sort_by(|a, b| (a.lane, a.start).cmp(&(b.lane, b.start)).then(b.length.cmp(&a.length)));
        if let Some(sink) = sink {
            sink(spans);
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace of the steps {:?}", self.steps)
    }
}

/// What the host is doing, until this is dropped.
pub struct HostSpan {
    trace: Arc<Trace>,
    name: &'static str,
    step: u64,
    start: Instant,
}

impl HostSpan {
    /// For the step that has begun last; `None` unless it is traced.
    pub fn of_newest(trace: &Arc<Trace>, name: &'static str) -> Option<HostSpan> {
        HostSpan::since(trace, name, Instant::now())
    }

    /// The same of what was begun at `start`.
    pub fn since(trace: &Arc<Trace>, name: &'static str, start: Instant) -> Option<HostSpan> {
        let step = trace.newest()?;
        Some(HostSpan { trace: trace.clone(), name, step, start })
    }

    /// For the oldest step that has not ended.
    pub fn of_oldest(trace: &Arc<Trace>, name: &'static str) -> Option<HostSpan> {
        let step = trace.oldest()?;
        Some(HostSpan { trace: trace.clone(), name, step, start: Instant::now() })
    }
}

impl Drop for HostSpan {
    fn drop(&mut self) {
        self.trace.add(Lane::Host, self.name, self.step, self.start..Instant::now(), String::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn the_steps_of_the_range_are_traced_and_no_others() {
        let (sender, receiver) = channel();
        let trace = Trace::new(1..3, move |spans| sender.send(spans).unwrap());
        assert_eq!((trace.newest(), trace.oldest()), (None, None));
        assert!(HostSpan::of_newest(&trace, "before the first step").is_none());
        // Step 2 begins before step 1 ends.
        trace.step_begins();
        assert_eq!((trace.newest(), trace.oldest()), (None, None));
        trace.step_ends();
        trace.step_begins();
        drop(HostSpan::of_newest(&trace, "plan"));
        trace.step_begins();
        assert_eq!((trace.newest(), trace.oldest()), (Some(2), Some(1)));
        drop(HostSpan::of_oldest(&trace, "wait"));
        trace.step_ends();
        assert!(receiver.try_recv().is_err());
        trace.step_ends();
        let spans = receiver.try_recv().unwrap();
        assert_eq!(spans.iter().map(|span| (&*span.name, span.step)).collect::<Vec<_>>(), [("plan", 1), ("wait", 1)]);
        assert!(spans[0].start + spans[0].length <= spans[1].start);
        trace.step_begins();
        assert_eq!(trace.newest(), None);
    }

    #[test]
    fn a_trace_that_is_cut_short_gives_what_it_has() {
        let (sender, receiver) = channel();
        let trace = Trace::new(0..100, move |spans| sender.send(spans).unwrap());
        trace.step_begins();
        let now = Instant::now();
        let add = |name: &'static str, from: u64, to: u64| {
            let at = |milliseconds| now + Duration::from_millis(milliseconds);
            trace.add(Lane::Device, name, 0, at(from)..at(to), String::new());
        };
        add("inner", 1, 2);
        add("outer", 1, 5);
        drop(trace);
        let names: Vec<_> = receiver.try_recv().unwrap().into_iter().map(|span| span.name).collect();
        assert_eq!(names, ["outer", "inner"]);
    }
}
