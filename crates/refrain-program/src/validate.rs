//! Checks that a program is sound: the builder and every pass end with it, so backends may rely on it.

use crate::columns::Columns;
use crate::{CacheDtype, Node, Op, Program, ProgramError, Rows, StateKind, View, WeightDef, WeightKind};
use refrain_model::Dtype;
use std::collections::HashSet;

mod shapes;

impl Program {
    /// Checks names, ids, the shape of every operand of every op, that whatever is read has been written before, that
    /// ops work in place only where they may, that every state is updated once, and that the logits are f32
    /// `[S, vocab]`.
    ///
    /// # Errors
    /// The first [`ProgramError`] found, in the order of the ops.
    pub fn validate(&self) -> Result<(), ProgramError> {
        unique("tensor", self.tensors.iter().map(|tensor| &tensor.name))?;
        unique("weight", self.weights.iter().map(|weight| &weight.name))?;
        unique("state", self.states.iter().map(|state| &state.name))?;
        for tensor in &self.tensors {
            define(tensor.width > 0, "tensor", &tensor.name, || "has no columns".to_owned())?;
        }
        for weight in &self.weights {
            self.check_weight(weight)?;
        }
        for state in &self.states {
            let gdn = matches!(state.kind, StateKind::GdnState { .. });
            define(!gdn || state.dtype == Dtype::F32.into(), "state", &state.name, || {
                format!("is {}, the delta rule keeps its state in f32", state.dtype)
            })?;
            let scaled = matches!(state.dtype, CacheDtype::Fp8(_));
            define(!scaled || matches!(state.kind, StateKind::KvCache { .. }), "state", &state.name, || {
                format!("is {}, which is for keys and values only", state.dtype)
            })?;
        }
        let mut written = Columns::new(self.tensors.len());
        let mut updated = vec![false; self.states.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            let check = Check { program: self, op: index, kind: node.op.name() };
            check.ids(node)?;
            check.shapes(&node.op)?;
            check.reads(node, &written)?;
            check.clash(&node.op)?;
            check.state(&node.op, &mut updated)?;
            node.op.staged().into_iter().for_each(|view| written.remove(view));
            node.op.writes().into_iter().for_each(|view| written.insert(view));
        }
        self.check_logits(&written)
    }

    fn check_weight(&self, weight: &WeightDef) -> Result<(), ProgramError> {
        let define = |sound: bool, problem: &dyn Fn() -> String| define(sound, "weight", &weight.name, problem);
        let rows = match weight.kind {
            WeightKind::Matrix { outputs, .. } => outputs,
            WeightKind::Vector { length } => length,
            WeightKind::Convolution { channels, .. } => channels,
        };
        define(weight.kind.elements() > 0, &|| "has no elements".to_owned())?;
        let matrix = matches!(weight.kind, WeightKind::Matrix { .. });
        define(matrix || weight.dtype == Dtype::F32, &|| {
            format!("is {}, vectors and convolutions are kept in f32", weight.dtype)
        })?;
        let given: usize = weight.parts.iter().map(|part| part.rows).sum();
        define(given == rows, &|| format!("its parts have {given} rows, expected {rows}"))?;
        for part in &weight.parts {
            define(part.rows > 0 && part.run > 0, &|| format!("takes no rows of {}", part.source))?;
            define(part.rows <= part.run || part.stride >= part.run, &|| {
                format!("takes rows of {} twice: runs of {} every {}", part.source, part.run, part.stride)
            })?;
            let last = part.source_row(part.rows - 1);
            define(last < part.source_rows, &|| {
                format!("takes row {last} of {}, which has {}", part.source, part.source_rows)
            })?;
        }
        Ok(())
    }

    fn check_logits(&self, written: &Columns) -> Result<(), ProgramError> {
        let fail = |problem: String| Err(ProgramError::Logits { problem });
        let Some(tensor) = self.tensors.get(self.logits.tensor.0) else {
            return fail(format!("tensor {} does not exist", self.logits.tensor.0));
        };
        let whole = View { tensor: self.logits.tensor, column: 0, width: self.vocab_size };
        if self.logits != whole || tensor.width != self.vocab_size {
            return fail(format!(
                "{} columns of {}, expected the vocabulary of {}",
                self.logits.width,
                tensor.width,
                { self.vocab_size }
            ));
        }
        if tensor.rows != Rows::Logits || tensor.dtype != Dtype::F32 {
            return fail(format!("{} is {} rows {}, expected S rows f32", tensor.name, tensor.rows, tensor.dtype));
        }
        if !written.contain(self.logits) {
            return fail(format!("no op writes {} in full", tensor.name));
        }
        Ok(())
    }

    /// A view as people read it: `layers.3.proj[0:512]`, without the columns when it is the whole tensor.
    pub(crate) fn view_name(&self, view: View) -> String {
        let tensor = self.tensor(view.tensor);
        if view.column == 0 && view.width == tensor.width {
            return tensor.name.clone();
        }
        format!("{}[{}:{}]", tensor.name, view.column, view.end())
    }
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), ProgramError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ProgramError::DuplicateName { what, name: name.clone() });
        }
    }
    Ok(())
}

fn define(sound: bool, what: &'static str, name: &str, problem: impl Fn() -> String) -> Result<(), ProgramError> {
    if sound { Ok(()) } else { Err(ProgramError::Definition { what, name: name.to_owned(), problem: problem() }) }
}

/// The checks of one op.
struct Check<'a> {
    program: &'a Program,
    op: usize,
    kind: &'static str,
}

impl Check<'_> {
    fn mismatch<T>(&self, what: &str, found: impl ToString, expected: impl ToString) -> Result<T, ProgramError> {
        let (what, found, expected) = (what.to_owned(), found.to_string(), expected.to_string());
        Err(ProgramError::Mismatch { op: self.op, kind: self.kind, what, found, expected })
    }

    fn ids(&self, node: &Node) -> Result<(), ProgramError> {
        let exists = |what: &'static str, id: usize, count: usize| match id < count {
            true => Ok(()),
            false => Err(ProgramError::UnknownId { op: self.op, kind: self.kind, what, id, count }),
        };
        for weight in node.op.weights() {
            exists("weight", weight.0, self.program.weights.len())?;
        }
        for state in node.op.states() {
            exists("state", state.0, self.program.states.len())?;
        }
        for view in node.op.views() {
            exists("tensor", view.tensor.0, self.program.tensors.len())?;
            let tensor = self.program.tensor(view.tensor);
            if view.width == 0 || view.end() > tensor.width {
                let found = format!("{}..{}", view.column, view.end());
                let expected = format!("some of 0..{}", tensor.width);
                return self.mismatch(&format!("the range of columns of {}", tensor.name), found, expected);
            }
        }
        Ok(())
    }

    fn reads(&self, node: &Node, written: &Columns) -> Result<(), ProgramError> {
        match node.op.reads().into_iter().find(|view| !written.contain(*view)) {
            None => Ok(()),
            Some(view) => {
                let view = self.program.view_name(view);
                Err(ProgramError::ReadBeforeWrite { op: self.op, kind: self.kind, view })
            }
        }
    }

    fn clash(&self, op: &Op) -> Result<(), ProgramError> {
        let Some((out, input, expected)) = op.clash() else { return Ok(()) };
        let (out, input) = (self.program.view_name(out), self.program.view_name(input));
        Err(ProgramError::Overlap { op: self.op, kind: self.kind, out, input, expected })
    }

    /// Every state is updated by one op, and attention reads a cache that the step has been appended to.
    fn state(&self, op: &Op, updated: &mut [bool]) -> Result<(), ProgramError> {
        for state in op.states() {
            let name = format!("state {}", self.program.state(state).name);
            match (op.updates_state(), updated[state.0]) {
                (true, true) => return self.mismatch(&name, "updated a second time", "updated by one op"),
                (false, false) => return self.mismatch(&name, "not updated yet", "updated before it is read"),
                _ => updated[state.0] = true,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
