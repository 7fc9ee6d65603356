//! Kernels against double precision: on the simulated GPU in tests, on any real one with `refrain device --check`.
//!
//! A case draws fresh random inputs, poisons what the kernel must write, runs it, and compares with plain loops in f64.

mod attention;
mod elementwise;
mod gdn;
mod linear;
mod norm;
mod operand;
mod rig;
mod sample;

pub use rig::{Buffer, Rig, rounded};

use crate::Target;
use refrain_device::DeviceError;

/// How large the operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Small and ragged: odd sizes, single rows, several sequences. For the simulated GPU and quick checks.
    Ragged,
    /// The shapes of Qwen3.5-4B, timed.
    Model,
}

/// Runs a kernel on operands of its own and compares.
type Run = dyn Fn(&Rig) -> Result<Outcome, DeviceError>;

/// One kernel on one set of operands.
pub struct Case {
    /// The kernel's entry.
    pub kernel: &'static str,
    /// What is special about the operands: `bf16, T 8192`.
    pub name: String,
    /// Runs and compares it.
    pub run: Box<Run>,
}

impl Case {
    /// A case.
    pub fn new(
        kernel: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Rig) -> Result<Outcome, DeviceError> + 'static,
    ) -> Case {
        Case { kernel, name: name.into(), run: Box::new(run) }
    }
}

/// What came of a case.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// `|out - reference| / |reference|`, in the Euclidean norm; NaN never passes.
    pub error: f64,
    /// What it may be.
    pub tolerance: f64,
    /// Bytes that the kernel must move through device memory, for the roofline; 0 when not timed.
    pub bytes: u64,
    /// Floating-point operations that it must do.
    pub flops: u64,
    /// Device seconds of one run, the median of many; `None` when not timed.
    pub seconds: Option<f64>,
}

impl Outcome {
    /// The error of `got` against `want`.
    pub fn compare(got: &[f32], want: &[f64], tolerance: f64) -> Outcome {
        assert_eq!(got.len(), want.len());
        let difference: f64 = got.iter().zip(want).map(|(&got, &want)| (f64::from(got) - want).powi(2)).sum();
        let norm: f64 = want.iter().map(|want| want * want).sum();
        Outcome { error: (difference / norm.max(f64::MIN_POSITIVE)).sqrt(), tolerance, ..Outcome::default() }
    }

    /// The worse of two, against its own tolerance.
    pub fn and(self, other: Outcome) -> Outcome {
        if other.passes() && (!self.passes() || self.error / self.tolerance >= other.error / other.tolerance) {
            self
        } else {
            other
        }
    }

    /// With what the kernel cost.
    pub fn timed(self, bytes: u64, flops: u64, seconds: Option<f64>) -> Outcome {
        Outcome { bytes, flops, seconds, ..self }
    }

    /// Whether the error is within the tolerance.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// All cases for a device.
pub fn cases(target: &Target, scale: Scale) -> Vec<Case> {
    let groups = [attention::cases, elementwise::cases, gdn::cases, linear::cases, norm::cases, sample::cases];
    groups.iter().flat_map(|cases| cases(target, scale)).collect()
}

/// Runs cases and says of each that fails by how much, or why it could not run.
pub fn failures<'a>(rig: &Rig, cases: impl IntoIterator<Item = &'a Case>) -> Vec<String> {
    let failure = |case: &Case| {
        let what = match (case.run)(rig) {
            Ok(outcome) if outcome.passes() => return None,
            Ok(outcome) => format!("error {:.2e}, allowed {:.2e}", outcome.error, outcome.tolerance),
            Err(error) => error.to_string(),
        };
        Some(format!("{} {}: {what}", case.kernel, case.name))
    };
    cases.into_iter().filter_map(failure).collect()
}

/// Cases that time products of one row in many ways, to choose the constants of kernels by. All are right.
pub fn plans(target: &Target) -> Vec<Case> {
    linear::plans(target)
}
