//! How much memory the process may use.

/// Memory that the process can still take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsableMemory {
    /// Bytes.
    pub bytes: u64,
    /// What sets the limit, for reports.
    pub limited_by: &'static str,
}

/// The least of what the machine has available and of what every limit on the process leaves.
pub fn usable_memory() -> UsableMemory {
    todo!()
}
