//! What is known of the captures that are under way. HIP before 7.1 does not report everything that goes wrong in one,
//! so each is watched here: what was recorded is counted, what is not permitted is refused, and a failure is remembered
//! until the capture ends.

use crate::api::Device;
use crate::arguments::Arguments;
use refrain_device::{DeviceError, EventId, StreamId};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{ThreadId, current};

/// One capture.
pub(crate) struct Capture {
    thread: ThreadId,
    /// The stream in which it began; behind it those that wait for its events and so take part.
    streams: Vec<StreamId>,
    events: Vec<EventId>,
    /// Those of the launches that were recorded.
    pub(crate) arguments: Vec<Arguments>,
    /// Nodes that the graph must have at least.
    pub(crate) recorded: usize,
    /// The first call that failed.
    pub(crate) failure: Option<String>,
    /// Memory that was given back meanwhile; freeing it would spoil the capture.
    pub(crate) freed: Vec<Device>,
}

/// All captures of a runtime.
#[derive(Default)]
pub(crate) struct Captures {
    active: Mutex<Vec<Capture>>,
}

impl Captures {
    pub(crate) fn begin(&self, stream: StreamId) {
        let capture = Capture {
            thread: current().id(),
            streams: vec![stream],
            events: Vec::new(),
            arguments: Vec::new(),
            recorded: 0,
            failure: None,
            freed: Vec::new(),
        };
        self.lock().push(capture);
    }

    /// Ends the capture that began in a stream.
    pub(crate) fn end(&self, stream: StreamId) -> Option<Capture> {
        let mut active = self.lock();
        let place = active.iter().position(|capture| capture.streams[0] == stream)?;
        Some(active.swap_remove(place))
    }

    /// Whether what a stream is given is recorded now.
    pub(crate) fn records(&self, stream: StreamId) -> bool {
        self.lock().iter().any(|capture| capture.streams.contains(&stream))
    }

    /// Whether an event stands for a place in a graph, so that nobody can wait for it.
    pub(crate) fn has_event(&self, event: EventId) -> bool {
        self.lock().iter().any(|capture| capture.events.contains(&event))
    }

    /// Whether the calling thread captures.
    pub(crate) fn on_this_thread(&self) -> bool {
        self.lock().iter().any(|capture| capture.thread == current().id())
    }

    /// Takes memory that can't be freed before a capture of this thread ends; false when there is none.
    pub(crate) fn keep_until_the_end(&self, memory: Device) -> bool {
        let mut active = self.lock();
        let capture = active.iter_mut().find(|capture| capture.thread == current().id());
        capture.map(|capture| capture.freed.push(memory)).is_some()
    }

    /// Notes what came of giving a stream work that makes `nodes` nodes or more.
    pub(crate) fn note(
        &self,
        stream: StreamId,
        nodes: usize,
        arguments: Option<Arguments>,
        result: &Result<(), DeviceError>,
    ) {
        let mut active = self.lock();
        let Some(capture) = active.iter_mut().find(|capture| capture.streams.contains(&stream)) else { return };
        match result {
            Ok(()) => {
                capture.recorded += nodes;
                capture.arguments.extend(arguments);
            }
            Err(error) => {
                capture.failure.get_or_insert_with(|| error.to_string());
            }
        }
    }

    /// An event was recorded in a stream.
    pub(crate) fn mark(&self, event: EventId, stream: StreamId) {
        for capture in self.lock().iter_mut() {
            capture.events.retain(|&known| known != event);
            if capture.streams.contains(&stream) {
                capture.events.push(event);
            }
        }
    }

    /// A stream waits for an event: where that is one of a capture, the stream takes part from now on.
    pub(crate) fn join(&self, stream: StreamId, event: EventId) {
        for capture in self.lock().iter_mut() {
            if capture.events.contains(&event) && !capture.streams.contains(&stream) {
                capture.streams.push(stream);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Capture>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: the addresses of device memory are only handed back to the driver, which takes them from any thread.
unsafe impl Send for Capture {}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: StreamId = StreamId(1);
    const SIDE: StreamId = StreamId(2);
    const EVENT: EventId = EventId(9);

    #[test]
    fn streams_that_wait_for_a_captured_event_take_part() {
        let captures = Captures::default();
        captures.join(SIDE, EVENT);
        captures.begin(MAIN);
        captures.mark(EVENT, MAIN);
        assert!(captures.records(MAIN) && !captures.records(SIDE) && captures.has_event(EVENT));
        captures.join(SIDE, EVENT);
        assert!(captures.records(SIDE));
        captures.note(SIDE, 1, Some(Arguments::new(&[1])), &Ok(()));
        captures.note(MAIN, 2, None, &Ok(()));
        assert!(captures.end(SIDE).is_none(), "a capture ends where it began");
        let capture = captures.end(MAIN).unwrap();
        assert_eq!((capture.recorded, capture.arguments.len()), (3, 1));
        assert!(!captures.records(MAIN) && !captures.records(SIDE) && !captures.has_event(EVENT));
    }

    #[test]
    fn an_event_that_is_recorded_elsewhere_leaves_the_capture() {
        let captures = Captures::default();
        captures.begin(MAIN);
        captures.mark(EVENT, MAIN);
        captures.mark(EVENT, SIDE);
        assert!(!captures.has_event(EVENT));
    }

    #[test]
    fn the_first_failure_stays() {
        let captures = Captures::default();
        captures.begin(MAIN);
        for what in ["first", "second"] {
            captures.note(MAIN, 1, None, &Err(DeviceError::InvalidStep { what: what.to_owned() }));
        }
        let capture = captures.end(MAIN).unwrap();
        assert_eq!((capture.failure.unwrap().as_str(), capture.recorded), ("invalid step: first", 0));
    }

    #[test]
    fn only_the_thread_that_captures_keeps_memory() {
        let captures = Captures::default();
        captures.begin(MAIN);
        let other = std::thread::scope(|scope| {
            scope
                .spawn(|| (captures.on_this_thread(), captures.keep_until_the_end(std::ptr::null_mut())))
                .join()
                .unwrap()
        });
        assert_eq!(other, (false, false));
        assert!(captures.on_this_thread() && captures.keep_until_the_end(std::ptr::null_mut()));
        assert_eq!(captures.end(MAIN).unwrap().freed.len(), 1);
    }
}
