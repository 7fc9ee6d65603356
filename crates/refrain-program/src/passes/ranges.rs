//! Programs for ranges of rows: what is best for few rows is not for many.

use super::{Applied, FEW_ROWS, PassConfig, compile};
use crate::Program;

/// How a program is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileOptions {
    /// Which passes run.
    pub passes: PassConfig,
    /// Numbers of rows with which ranges end: a program is made for each, and one for all steps with more rows than the
    /// last.
    pub endpoints: Vec<u32>,
}

impl Default for CompileOptions {
    /// All passes, for few rows and for many.
    fn default() -> CompileOptions {
        CompileOptions { passes: PassConfig::default(), endpoints: vec![FEW_ROWS as u32] }
    }
}

/// What was compiled for steps with more rows than the range before has, and at most so many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledRange {
    /// Rows of its largest step; the last range has no end.
    pub most_rows: u32,
    /// What each pass has done.
    pub applied: Vec<Applied>,
}

/// Compiles a program for every range, ascending.
pub fn compile_ranges(program: &Program, options: &CompileOptions) -> Vec<(CompiledRange, Program)> {
    let mut ends: Vec<u32> = options.endpoints.iter().copied().chain([u32::MAX]).collect();
    ends.sort_unstable();
    ends.dedup();
    let range = |most_rows: u32| {
        let compiled = compile(program, &options.passes, most_rows as usize);
        (CompiledRange { most_rows, applied: compiled.applied }, compiled.program)
    };
    ends.into_iter().map(range).collect()
}
