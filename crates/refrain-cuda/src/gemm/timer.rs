//! Device time between two points of a stream.

use crate::bindings::driver::{CUevent, CUstream};
use crate::context::Context;
use refrain_device::{DeviceError, StreamId};

/// A stopwatch of two events.
pub(super) struct Timer<'a> {
    context: &'a Context,
    events: [CUevent; 2],
}

impl Timer<'_> {
    pub(super) fn new(context: &Context) -> Result<Timer<'_>, DeviceError> {
        let mut timer = Timer { context, events: [std::ptr::null_mut(); 2] };
        for event in &mut timer.events {
            // SAFETY: the handle is stored before the call returns.
            context.check(unsafe { (context.driver.table.cuEventCreate)(event, 0) }, || "cuEventCreate".to_owned())?;
        }
        Ok(timer)
    }

    pub(super) fn start(&self, stream: StreamId) -> Result<(), DeviceError> {
        self.record(0, stream)
    }

    /// Waits for the stream; milliseconds since the start.
    pub(super) fn stop(&self, stream: StreamId) -> Result<f32, DeviceError> {
        self.record(1, stream)?;
        let (table, [start, end]) = (&self.context.driver.table, self.events);
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive and were recorded.
        unsafe {
            self.context.check((table.cuEventSynchronize)(end), || "cuEventSynchronize".to_owned())?;
            let code = (table.cuEventElapsedTime)(&raw mut milliseconds, start, end);
            self.context.check(code, || "cuEventElapsedTime".to_owned())?;
        }
        Ok(milliseconds)
    }

    fn record(&self, which: usize, stream: StreamId) -> Result<(), DeviceError> {
        // SAFETY: the event is alive, the stream is the caller's.
        let code = unsafe { (self.context.driver.table.cuEventRecord)(self.events[which], stream.0 as CUstream) };
        self.context.check(code, || "cuEventRecord".to_owned())
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        for event in self.events.into_iter().filter(|event| !event.is_null()) {
            // SAFETY: made once.
            unsafe { (self.context.driver.table.cuEventDestroy_v2)(event) };
        }
    }
}
