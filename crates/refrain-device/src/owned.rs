//! Owners of what a [`Runtime`] hands out: each gives its thing back when it is dropped.

use crate::{DeviceError, DevicePtr, EventId, GraphId, Runtime, StreamId};
use std::sync::Arc;

/// A range of device memory.
pub struct DeviceMemory {
    runtime: Arc<dyn Runtime>,
    base: DevicePtr,
    bytes: usize,
}

impl DeviceMemory {
    /// Reserves `bytes` (at least 1) of device memory with undefined contents.
    ///
    /// # Errors
    /// [`DeviceError`] when the device has not that much.
    pub fn new(runtime: &Arc<dyn Runtime>, bytes: usize, what: &'static str) -> Result<DeviceMemory, DeviceError> {
        let base = runtime.allocate(bytes.max(1), what)?;
        Ok(DeviceMemory { runtime: runtime.clone(), base, bytes })
    }

    /// First address, aligned to 256 bytes.
    pub fn base(&self) -> DevicePtr {
        self.base
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: it is from `allocate`; owners of addresses into it wait for their streams before they drop it.
        unsafe { self.runtime.free(self.base) };
    }
}

/// Host memory for copies that run beside the CPU.
pub struct PinnedMemory {
    runtime: Arc<dyn Runtime>,
    base: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory that this struct owns.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// Reserves `bytes` (at least 1), zeroed.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(runtime: &Arc<dyn Runtime>, bytes: usize) -> Result<PinnedMemory, DeviceError> {
        let base = runtime.allocate_pinned(bytes.max(1))?;
        // SAFETY: just allocated with that size.
        unsafe { base.write_bytes(0, bytes.max(1)) };
        Ok(PinnedMemory { runtime: runtime.clone(), base, bytes })
    }

    /// First byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it.
    ///
    /// # Safety
    /// No copy that uses it is under way.
    pub unsafe fn slice(&mut self) -> &mut [u8] {
        // SAFETY: owned, initialised when it was made, and idle by contract.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // SAFETY: it is from `allocate_pinned`; owners wait for their streams before they drop it.
        unsafe { self.runtime.free_pinned(self.base) };
    }
}

/// A stream.
pub struct Stream {
    runtime: Arc<dyn Runtime>,
    id: StreamId,
}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(runtime: &Arc<dyn Runtime>) -> Result<Stream, DeviceError> {
        Ok(Stream { id: runtime.create_stream()?, runtime: runtime.clone() })
    }

    /// Its handle.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Waits until all its work is done.
    ///
    /// # Errors
    /// [`DeviceError`], also of work that failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.runtime.synchronize(self.id)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.runtime.destroy_stream(self.id);
    }
}

/// An event.
pub struct Event {
    runtime: Arc<dyn Runtime>,
    id: EventId,
}

impl Event {
    /// A new event.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(runtime: &Arc<dyn Runtime>) -> Result<Event, DeviceError> {
        Ok(Event { id: runtime.create_event()?, runtime: runtime.clone() })
    }

    /// Its handle.
    pub fn id(&self) -> EventId {
        self.id
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.runtime.destroy_event(self.id);
    }
}

/// A recorded graph.
pub struct Graph {
    runtime: Arc<dyn Runtime>,
    id: GraphId,
}

impl Graph {
    /// Records what `enqueue` puts into the stream that it is given, which executes none of it. The stream is a new one,
    /// for [`Runtime::begin_capture`] wants one that was not captured before.
    ///
    /// # Errors
    /// [`DeviceError`] of `enqueue`, or of the recording.
    pub fn record(
        runtime: &Arc<dyn Runtime>,
        enqueue: impl FnOnce(StreamId) -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        let stream = Stream::new(runtime)?;
        runtime.begin_capture(stream.id())?;
        let enqueued = enqueue(stream.id());
        // In any case, for a stream that records can't be destroyed.
        let ended = runtime.end_capture(stream.id()).map(|id| Graph { id, runtime: runtime.clone() });
        enqueued.and(ended)
    }

    /// Its handle.
    pub fn id(&self) -> GraphId {
        self.id
    }

    /// Its nodes.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn nodes(&self) -> Result<usize, DeviceError> {
        self.runtime.graph_nodes(self.id)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.runtime.destroy_graph(self.id);
    }
}
