//! What can be wrong with a program, or with the configuration it is built from.

/// A program that can't be built or run. Op indices count from 0 in [`crate::Program::nodes`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// The configuration describes no possible model.
    #[error("config: {field} is {value}, expected {expected}")]
    Config {
        /// Field of [`refrain_model::ModelConfig`].
        field: &'static str,
        /// What it is.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// Two tensors, two weights or two states have the same name.
    #[error("two {what}s are named {name:?}")]
    DuplicateName {
        /// `tensor`, `weight` or `state`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The definition of a tensor, weight or state contradicts itself.
    #[error("{what} {name:?}: {problem}")]
    Definition {
        /// `tensor`, `weight` or `state`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// An op names a tensor, weight or state that doesn't exist.
    #[error("op {op} ({kind}): {what} {id} does not exist, the program has {count}")]
    UnknownId {
        /// Index of the op.
        op: usize,
        /// Its name.
        kind: &'static str,
        /// `tensor`, `weight` or `state`.
        what: &'static str,
        /// The id.
        id: usize,
        /// How many there are.
        count: usize,
    },
    /// Something about an op isn't as it must be.
    #[error("op {op} ({kind}): {what} is {found}, expected {expected}")]
    Mismatch {
        /// Index of the op.
        op: usize,
        /// Its name.
        kind: &'static str,
        /// Which of its operands, and which property of it, such as `width of q`.
        what: String,
        /// What it is.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// An op reads columns that no op before it has written.
    #[error("op {op} ({kind}) reads {view}, which no earlier op has written in full")]
    ReadBeforeWrite {
        /// Index of the op.
        op: usize,
        /// Its name.
        kind: &'static str,
        /// The columns, such as `layers.3.proj[0:512]`.
        view: String,
    },
    /// An op writes over what it reads in a way that its kernel can't.
    #[error("op {op} ({kind}) writes {out} while it reads {input}: {expected}")]
    Overlap {
        /// Index of the op.
        op: usize,
        /// Its name.
        kind: &'static str,
        /// The columns written.
        out: String,
        /// The columns read, or the other columns written.
        input: String,
        /// What this kind of op allows.
        expected: &'static str,
    },
    /// The result isn't what callers rely on.
    #[error("logits: {problem}")]
    Logits {
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A pass failed, or gave an unsound program.
    #[error("pass {pass}: {error}")]
    Pass {
        /// Its name.
        pass: &'static str,
        /// What is wrong.
        error: Box<ProgramError>,
    },
}
