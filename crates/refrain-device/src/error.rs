//! What can go wrong on a device.

/// A device failed, or was asked for something it was not planned for.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The step does not fit what the backend was loaded for: a bug of the caller.
    #[error("invalid step: {what}")]
    InvalidStep {
        /// What is wrong with it.
        what: String,
    },
    /// Memory could not be had.
    #[error("can't allocate {bytes} bytes for {what}: {source}")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// What they were for.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The device can't run this program at all.
    #[error("{device} can't run this model: {why}")]
    Unsupported {
        /// The device.
        device: &'static str,
        /// Why.
        why: String,
    },
    /// A weight is missing or not what the program expects.
    #[error("weight {name}: {why}")]
    Weight {
        /// Name in the checkpoint.
        name: String,
        /// What is wrong.
        why: String,
    },
}
