//! Passes rewrite a program into one that gives the same logits and the same states.

use crate::{Program, ProgramError};

mod dead_code;
mod operands;

pub use dead_code::RemoveDeadCode;

/// One rewriting of a program.
pub trait Pass {
    /// Name, as errors and reports print it.
    fn name(&self) -> &'static str;

    /// The rewritten program. It must compute the same logits from the same tokens and states, and leave the same
    /// states behind.
    ///
    /// # Errors
    /// [`ProgramError`] when the program isn't what the pass expects.
    fn run(&self, program: Program) -> Result<Program, ProgramError>;
}

/// Runs passes one after another on a sound program and validates what each gives.
///
/// # Errors
/// What [`Program::validate`] finds in the given program; [`ProgramError::Pass`] naming the pass that failed, or whose result is unsound.
pub fn run(program: Program, passes: &[&dyn Pass]) -> Result<Program, ProgramError> {
    program.validate()?;
    passes.iter().try_fold(program, |program, pass| {
        let result = pass.run(program).and_then(|program| program.validate().map(|()| program));
        result.map_err(|error| ProgramError::Pass { pass: pass.name(), error: Box::new(error) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BF16, tinytales};

    struct DropLastOp;

    impl Pass for DropLastOp {
        fn name(&self) -> &'static str {
            "drop-last-op"
        }

        fn run(&self, mut program: Program) -> Result<Program, ProgramError> {
            program.nodes.pop();
            Ok(program)
        }
    }

    #[test]
    fn a_pass_that_breaks_the_program_is_named() {
        let program = Program::build(&tinytales(), &BF16).unwrap();
        let error = run(program.clone(), &[&RemoveDeadCode, &DropLastOp]).unwrap_err();
        assert_eq!(error.to_string(), "pass drop-last-op: logits: no op writes logits in full");
        assert_eq!(run(program.clone(), &[]).unwrap(), program);
    }
}
