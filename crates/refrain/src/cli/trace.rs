//! Flags of traces.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;

use super::values::human_readable_int;
use crate::trace::{DEFAULT_STEPS, MOST_STEPS, TraceRequest};

/// Where the time of steps goes, written to a file.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Trace")]
pub struct TraceArgs {
    /// Write what host and device do in each step to this file, in Chrome's trace format (for Perfetto)
    #[arg(long, value_name = "FILE")]
    pub trace_file: Option<PathBuf>,

    /// Steps to trace: so many from the first one on, or FROM..TO, at most 10000; each op of them is timed, which makes
    /// them slower [default: 64]
    #[arg(long, value_name = "STEPS", value_parser = steps, requires = "trace_file")]
    pub trace_steps: Option<Range<u64>>,
}

impl TraceArgs {
    /// What is asked for, if anything is.
    pub fn request(&self) -> Option<TraceRequest> {
        let file = self.trace_file.clone()?;
        Some(TraceRequest { file, steps: self.trace_steps.clone().unwrap_or(DEFAULT_STEPS) })
    }
}

fn steps(text: &str) -> Result<Range<u64>, String> {
    let wrong =
        || format!("must be a number of steps or FROM..TO, such as 64 or 100..164, of at most {MOST_STEPS} steps");
    let number = |text: &str| human_readable_int(text).map(|steps| steps as u64).map_err(|_| wrong());
    let steps = match text.split_once("..") {
        Some((from, to)) => number(from)?..number(to)?,
        None => 0..number(text)?,
    };
    match steps.end.checked_sub(steps.start) {
        Some(1..=MOST_STEPS) => Ok(steps),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_a_number_or_a_range() {
        assert_eq!(steps("64"), Ok(0..64));
        assert_eq!(steps("100..110"), Ok(100..110));
        assert_eq!(steps("1k..2k"), Ok(1000..2000));
        for text in ["", "0", "x", "5..5", "6..5", "..5", "5..", "-1", "20000", "0..10001", "1..2..3"] {
            assert!(steps(text).unwrap_err().contains("FROM..TO"), "{text}");
        }
    }
}
