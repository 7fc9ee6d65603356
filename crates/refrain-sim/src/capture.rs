//! Streams, events and captures: what is recorded, and the rules of recording. No work is done here.

use crate::driver::{
    CAPTURE_INVALIDATED, CAPTURE_UNJOINED, CAPTURE_UNSUPPORTED, Code, ILLEGAL_STATE, INVALID_HANDLE, INVALID_VALUE,
};
use refrain_device::{DeviceError, DevicePtr, EventId, FunctionId, StreamId};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// One piece of work.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Kernel(KernelNode),
    CopyToDevice { to: DevicePtr, from: *const u8, bytes: usize },
    CopyToHost { to: *mut u8, from: DevicePtr, bytes: usize },
    CopyOnDevice { to: DevicePtr, from: DevicePtr, bytes: usize },
    Fill { to: DevicePtr, value: u8, bytes: usize },
}

// SAFETY: host addresses are the caller's, who promised that they are valid until the work is done, on any thread.
unsafe impl Send for Node {}
// SAFETY: a node is only read.
unsafe impl Sync for Node {}

/// A launch, with a copy of its arguments in whole words, so that they are aligned.
#[derive(Clone, Debug)]
pub(crate) struct KernelNode {
    pub function: FunctionId,
    pub name: String,
    pub grid: [u32; 3],
    pub shared_bytes: u32,
    pub arguments: Vec<u64>,
}

/// How much of each stream's captured work lies before a point.
type Clock = HashMap<StreamId, usize>;

struct Capture {
    origin: StreamId,
    nodes: Vec<Node>,
    /// For each stream that takes part, what its next work comes after.
    clocks: HashMap<StreamId, Clock>,
    /// The call that the capture doesn't survive.
    broken: Option<String>,
}

#[derive(Clone)]
enum EventState {
    Unrecorded,
    Recorded(Instant),
    Captured { capture: u64, clock: Clock },
}

/// All streams, events and captures of a device.
#[derive(Default)]
pub(crate) struct Streams {
    streams: HashMap<StreamId, Option<u64>>,
    events: HashMap<EventId, EventState>,
    captures: HashMap<u64, Capture>,
    next: u64,
}

impl Streams {
    /// A number that no handle has.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn create_stream(&mut self) -> StreamId {
        let stream = StreamId(self.number());
        self.streams.insert(stream, None);
        stream
    }

    /// A stream that records takes its capture with it.
    pub(crate) fn destroy_stream(&mut self, stream: StreamId) {
        if let Some(capture) = self.streams.remove(&stream).flatten()
            && let Some(capture) = self.captures.get_mut(&capture)
        {
            capture.broken = Some("destroying a stream that takes part".to_owned());
        }
    }

    pub(crate) fn create_event(&mut self) -> EventId {
        let event = EventId(self.number());
        self.events.insert(event, EventState::Unrecorded);
        event
    }

    pub(crate) fn destroy_event(&mut self, event: EventId) {
        self.events.remove(&event);
    }

    /// Fails, and breaks every capture, while there is one.
    pub(crate) fn forbid_capture(&mut self, call: &str) -> Result<(), DeviceError> {
        for capture in self.captures.values_mut() {
            capture.broken.get_or_insert_with(|| call.to_owned());
        }
        if self.captures.is_empty() { Ok(()) } else { Err(CAPTURE_UNSUPPORTED.error(call, "")) }
    }

    /// The capture that a stream takes part in.
    fn capture_of(&mut self, stream: StreamId, call: &str) -> Result<Option<u64>, DeviceError> {
        self.streams.get(&stream).copied().ok_or_else(|| INVALID_HANDLE.error(call, &format!("no {stream:?}")))
    }

    /// Records the work when its stream records; otherwise it is given back, to be done.
    pub(crate) fn record_node(
        &mut self,
        stream: StreamId,
        node: Node,
        call: impl Fn() -> String,
    ) -> Result<Option<Node>, DeviceError> {
        let Some(id) = self.capture_of(stream, "enqueueing work")? else { return Ok(Some(node)) };
        let Some(capture) = self.captures.get_mut(&id) else { return Err(CAPTURE_INVALIDATED.error(call(), "")) };
        if let Some(why) = &capture.broken {
            return Err(CAPTURE_INVALIDATED.error(call(), why));
        }
        capture.nodes.push(node);
        *capture.clocks.entry(stream).or_default().entry(stream).or_default() += 1;
        Ok(None)
    }

    /// Whether what is enqueued in the stream is recorded.
    pub(crate) fn records(&mut self, stream: StreamId, call: &str) -> Result<bool, DeviceError> {
        Ok(self.capture_of(stream, call)?.is_some())
    }

    pub(crate) fn begin_capture(&mut self, stream: StreamId) -> Result<(), DeviceError> {
        let call = "beginning a capture";
        if self.capture_of(stream, call)?.is_some() {
            return Err(ILLEGAL_STATE.error(call, "the stream already takes part in one"));
        }
        let id = self.number();
        let clocks = HashMap::from([(stream, Clock::new())]);
        self.captures.insert(id, Capture { origin: stream, nodes: Vec::new(), clocks, broken: None });
        self.streams.insert(stream, Some(id));
        Ok(())
    }

    pub(crate) fn end_capture(&mut self, stream: StreamId) -> Result<Vec<Node>, DeviceError> {
        let call = "ending a capture";
        let Some(id) = self.capture_of(stream, call)? else {
            return Err(ILLEGAL_STATE.error(call, "the stream does not record"));
        };
        if self.captures.get(&id).is_some_and(|capture| capture.origin != stream) {
            return Err(ILLEGAL_STATE.error(call, "it was begun in another stream"));
        }
        let capture = self.captures.remove(&id);
        for member in self.streams.values_mut().filter(|member| **member == Some(id)) {
            *member = None;
        }
        let Some(capture) = capture else { return Err(CAPTURE_INVALIDATED.error(call, "its stream was destroyed")) };
        if let Some(why) = capture.broken {
            return Err(CAPTURE_INVALIDATED.error(call, &why));
        }
        let joined = &capture.clocks[&stream];
        let open = capture.clocks.iter().find(|&(member, clock)| {
            let done = |clock: &Clock| clock.get(member).copied().unwrap_or(0);
            *member != stream && (done(clock) > done(joined) || !joined.contains_key(member))
        });
        match open {
            Some((member, _)) => {
                let why = format!("{member:?} was never waited for by the stream that began the capture");
                Err(CAPTURE_UNJOINED.error(call, &why))
            }
            None => Ok(capture.nodes),
        }
    }

    pub(crate) fn record_event(&mut self, event: EventId, stream: StreamId) -> Result<(), DeviceError> {
        let call = "recording an event";
        let capture = self.capture_of(stream, call)?;
        let state = match capture {
            None => EventState::Recorded(Instant::now()),
            Some(id) => {
                let capture = self.captures.get_mut(&id);
                let capture = capture.ok_or_else(|| CAPTURE_INVALIDATED.error(call, ""))?;
                let clock = capture.clocks.entry(stream).or_default();
                clock.entry(stream).or_default();
                EventState::Captured { capture: id, clock: clock.clone() }
            }
        };
        *self.event(event, call)? = state;
        Ok(())
    }

    /// Work is done in the order in which it is enqueued, so what is left of waiting is who takes part in a capture.
    pub(crate) fn wait(&mut self, stream: StreamId, event: EventId) -> Result<(), DeviceError> {
        let call = "waiting for an event";
        let own = self.capture_of(stream, call)?;
        let state = self.event(event, call)?.clone();
        match (own, state) {
            (_, EventState::Captured { capture, clock }) if own.is_none() || own == Some(capture) => {
                let Some(recording) = self.captures.get_mut(&capture) else {
                    return Err(INVALID_VALUE.error(call, "the event was recorded in a capture that has ended"));
                };
                let after = recording.clocks.entry(stream).or_default();
                for (member, done) in clock {
                    let before = after.entry(member).or_default();
                    *before = done.max(*before);
                }
                self.streams.insert(stream, Some(capture));
                Ok(())
            }
            (_, EventState::Captured { .. }) => Err(self.isolation(own, call, "the event belongs to another capture")),
            (Some(_), EventState::Recorded(_)) => {
                Err(self.isolation(own, call, "the event was recorded outside of the capture"))
            }
            _ => Ok(()),
        }
    }

    /// A capture that depends on work outside of it.
    fn isolation(&mut self, capture: Option<u64>, call: &str, why: &str) -> DeviceError {
        if let Some(capture) = capture.and_then(|id| self.captures.get_mut(&id)) {
            capture.broken.get_or_insert_with(|| why.to_owned());
        }
        Code(905, "dependency created on uncaptured work in another stream").error(call, why)
    }

    fn event(&mut self, event: EventId, call: &str) -> Result<&mut EventState, DeviceError> {
        self.events.get_mut(&event).ok_or_else(|| INVALID_HANDLE.error(call, &format!("no {event:?}")))
    }

    /// What `query` and waiting on the host need: an event that is no part of a capture.
    pub(crate) fn passed(&mut self, event: EventId, call: &str) -> Result<(), DeviceError> {
        match self.event(event, call)? {
            EventState::Captured { .. } => {
                Err(INVALID_VALUE.error(call, "the event was recorded in a capture and has no time"))
            }
            // One that was never recorded counts as passed, as with CUDA.
            EventState::Unrecorded | EventState::Recorded(_) => Ok(()),
        }
    }

    pub(crate) fn elapsed(&mut self, from: EventId, to: EventId) -> Result<Duration, DeviceError> {
        let call = "taking the time between two events";
        let mut time = |event| match self.event(event, call)? {
            EventState::Recorded(time) => Ok(*time),
            EventState::Unrecorded => Err(INVALID_HANDLE.error(call, "the event was never recorded")),
            EventState::Captured { .. } => {
                Err(INVALID_VALUE.error(call, "the event was recorded in a capture and has no time"))
            }
        };
        let (from, to): (Instant, Instant) = (time(from)?, time(to)?);
        Ok(to.saturating_duration_since(from))
    }
}

impl Node {
    /// Whether a graph with one of the nodes can become one with the other.
    pub(crate) fn same_kind(&self, other: &Node) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}
