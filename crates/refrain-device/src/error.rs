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
    /// The driver refused a call.
    #[error("{device}: {call} failed: {code} ({text})")]
    Driver {
        /// Kind and index of the device, such as `cuda:0`.
        device: String,
        /// The call and what it was about: the kernel with its grid, the bytes of an allocation.
        call: String,
        /// The driver's code.
        code: i64,
        /// The driver's words.
        text: String,
    },
    /// The device has failed for good: nothing on it can be used any more, and the process should end.
    #[error(
        "{device} is lost: {call} failed: {code} ({text}); restart the process, and look into the system's log if it happens again"
    )]
    Lost {
        /// Kind and index of the device.
        device: String,
        /// The call that found out.
        call: String,
        /// The driver's code.
        code: i64,
        /// The driver's words.
        text: String,
    },
    /// There is no such device, or it can't be used.
    #[error("no {device} device can be used: {why}")]
    Unavailable {
        /// Kind of device.
        device: &'static str,
        /// What was looked for, what was found, and what to do.
        why: String,
    },
    /// There is no compiler for the kernels of a device; code that was compiled before can still run on it.
    #[error("no {compiler} to compile kernels with: {why}")]
    NoCompiler {
        /// Name of the compiler.
        compiler: &'static str,
        /// What was looked for, what was found, and what to do.
        why: String,
    },
    /// A kernel does not compile.
    #[error("{kernel} does not compile for {arch} with {compiler}:\n{log}")]
    Compile {
        /// File and entry.
        kernel: String,
        /// Architecture.
        arch: String,
        /// Compiler.
        compiler: String,
        /// Its messages.
        log: String,
    },
    /// No code for a kernel: no compiler, no pack.
    #[error("no code for kernel {kernel} on {arch}: {why}")]
    NoCode {
        /// The kernel.
        kernel: String,
        /// Architecture.
        arch: String,
        /// Why it can't be compiled, and what would help.
        why: String,
    },
    /// The vendor's matrix products were asked for and can't be had.
    #[error("the vendor's matrix products can't be used: {why}")]
    NoProducts {
        /// Why not.
        why: String,
    },
    /// Steps were to be recorded as graphs, strictly, and some can't be.
    #[error("{cell} can't be recorded{}: {why}", more(*others))]
    GraphRefused {
        /// The first of them.
        cell: String,
        /// Why not, and what would help.
        why: String,
        /// How many others can't be.
        others: usize,
    },
    /// Graphs were asked for that no step could ever use.
    #[error("{setting}: {why}")]
    GraphSetting {
        /// The setting.
        setting: &'static str,
        /// Its value, and what would be right.
        why: String,
    },
}

fn more(others: usize) -> String {
    match others {
        0 => String::new(),
        others => format!(", and neither can {others} others"),
    }
}

impl DeviceError {
    /// Whether nothing on the device can be used any more, so that the process should end.
    pub fn is_fatal(&self) -> bool {
        matches!(self, DeviceError::Lost { .. })
    }
}
