//! Work that is left undone until somebody waits for it, as on a device that is slower than the host: whoever reads a
//! result too early doesn't find it, and whoever changes what is still to be copied spoils it.

use crate::capture::Node;
use crate::device::Device;
use refrain_device::{DeviceError, EventId};
use std::collections::VecDeque;

/// What was enqueued, in one order for all streams.
#[derive(Default)]
pub(crate) struct Late {
    entries: VecDeque<Entry>,
}

enum Entry {
    Work(Node),
    Mark(EventId),
}

impl Late {
    /// Marks the present end.
    pub(crate) fn mark(&mut self, event: EventId) {
        self.entries.push_back(Entry::Mark(event));
    }

    /// Entries up to the last mark of an event; 0 once they are done.
    fn up_to(&self, event: EventId) -> usize {
        let mark = self.entries.iter().rposition(|entry| matches!(entry, Entry::Mark(other) if *other == event));
        mark.map_or(0, |index| index + 1)
    }

    /// Whether all before an event is done.
    pub(crate) fn is_done(&self, event: EventId) -> bool {
        self.up_to(event) == 0
    }
}

impl Device {
    /// Does a piece of work, now or later.
    ///
    /// # Safety
    /// As [`Device::execute`], until it is done.
    pub(crate) unsafe fn enqueue(&mut self, node: Node) -> Result<(), DeviceError> {
        if self.options.late {
            self.late.entries.push_back(Entry::Work(node));
            return Ok(());
        }
        // SAFETY: by contract.
        unsafe { self.execute(&node) }
    }

    /// Does what was left undone before an event, or all of it. A failure is told to who waits first.
    pub(crate) fn catch_up(&mut self, event: Option<EventId>) -> Result<(), DeviceError> {
        let count = event.map_or(self.late.entries.len(), |event| self.late.up_to(event));
        for _ in 0..count {
            if let Err(error) = self.alive("working on what was enqueued") {
                self.late.entries.clear();
                return Err(error);
            }
            if let Some(Entry::Work(node)) = self.late.entries.pop_front() {
                // SAFETY: by the contract of what was enqueued.
                unsafe { self.execute(&node)? };
            }
        }
        Ok(())
    }
}
