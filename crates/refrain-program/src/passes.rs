//! Passes rewrite a program into one that gives the same logits and leaves the same states behind.

use crate::{Program, ProgramError};

mod add_rms_norm;
mod compile;
mod config;
mod dead_code;
mod elementwise;
mod fuse;
mod gdn;
mod linear_add;
mod norm_linear;
mod operands;
mod qk_norm_rope_append;
mod ranges;
mod sigmoid_gate;
mod silu_mul;

pub use compile::{Applied, BytesSaved, Compiled, FEW_ROWS, compile};
pub use config::PassConfig;
pub use dead_code::RemoveDeadCode;
pub use ranges::{CompileOptions, CompiledRange, compile_ranges};

/// One rewriting of a program.
pub trait Pass {
    /// Name, as the configuration, errors and reports say it.
    fn name(&self) -> &'static str;

    /// Rewrites a sound program and says at how many places. The result must compute the same logits from the same tokens
    /// and states, and leave the same states behind.
    fn run(&self, program: &mut Program) -> usize;

    /// What it looks for, for a report that it found none.
    fn looks_for(&self) -> &'static str;
}

/// Runs passes one after another on a sound program and validates what each gives.
///
/// # Errors
/// What [`Program::validate`] finds in the given program; [`ProgramError::Pass`] naming the pass whose result is unsound.
pub fn run(mut program: Program, passes: &[&dyn Pass]) -> Result<Program, ProgramError> {
    program.validate()?;
    for pass in passes {
        pass.run(&mut program);
        let unsound = |error| ProgramError::Pass { pass: pass.name(), error: Box::new(error) };
        program.validate().map_err(unsound)?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests;
