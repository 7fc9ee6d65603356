//! What each step in flight has for itself on the host, so that the next one can be written while it runs.

use crate::StepLayout;
use crate::kernels::sample::SampleSpace;
use refrain_device::{DeviceError, Event, PinnedMemory, Runtime};
use std::sync::Arc;

/// Steps that may have begun before the oldest is finished. On the device they share everything, for there they run one
/// after another.
pub(crate) const DEPTH: usize = 2;

/// The memory of one step in flight. Two steps have it by turns.
pub(crate) struct Turn {
    /// What is copied to the device before the step.
    pub block: PinnedMemory,
    /// What is copied from it after the step, where tokens are chosen.
    pub result: PinnedMemory,
    /// Marks the end of the step, its copies included.
    pub ended: Event,
}

impl Turn {
    /// For steps of that layout, with such results.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(runtime: &Arc<dyn Runtime>, layout: &StepLayout, space: &SampleSpace) -> Result<Turn, DeviceError> {
        Ok(Turn {
            block: PinnedMemory::new(runtime, layout.bytes)?,
            result: PinnedMemory::new(runtime, space.result_bytes())?,
            ended: Event::new(runtime)?,
        })
    }
}

/// A step that has begun.
pub(crate) struct Begun {
    /// Which turn it has.
    pub turn: usize,
    /// How much of its result is copied to the host.
    pub bytes: usize,
    /// Where tokens are chosen, how many log-probabilities each logit row wants.
    pub wanted: Option<Vec<Option<u32>>>,
}

impl Begun {
    /// Whether it gives logits, for which the host has room once.
    pub fn gives_logits(&self) -> bool {
        self.wanted.is_none() && self.bytes > 0
    }
}
