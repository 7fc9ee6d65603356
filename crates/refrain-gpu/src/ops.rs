//! Ops as what is enqueued for them, with their kernels looked up.

use crate::kernel::Count;
use crate::loader::Kernels;
use crate::lower::{Action, Lowered};
use crate::marks::Marks;
use crate::{LaunchSpec, StepCounts};
use refrain_device::{DeviceError, DevicePtr, FunctionId, Gemm, GemmOperands, GemmShape, Launch, Runtime, StreamId};
use std::collections::HashSet;
use std::ops::Range;

/// Where ops are enqueued.
pub(crate) struct Queue<'a> {
    pub runtime: &'a dyn Runtime,
    pub stream: StreamId,
    /// Scratch of the matrix library, and its bytes.
    pub gemm_workspace: (DevicePtr, usize),
    /// Told what was enqueued, where steps are traced.
    pub marks: Option<&'a Marks>,
}

impl Queue<'_> {
    /// The library of products, where ops were lowered for one.
    fn library(&self) -> &dyn Gemm {
        self.runtime.gemm().expect("it was lowered for a library of products")
    }
}

/// Ops in the order in which they are enqueued.
pub(crate) struct OpList {
    ops: Vec<ReadyOp>,
}

/// An op with its launches for each range of rows.
struct ReadyOp {
    /// Its name, for traces.
    name: String,
    /// What the ranges count.
    count: Count,
    /// How it is recorded.
    recorded: Recorded,
    /// Up to how many rows, and what is done then; ascending, the last has no end.
    variants: Vec<(u32, Vec<ReadyAction>)>,
}

/// In which recordings an op can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// In all.
    Always,
    /// Not in those of any step: its grid depends on more than the number of rows, and one that is large enough for
    /// every step is much too large for most.
    OfOneKind,
    /// Only where the number of logit rows is known beforehand.
    WithLogits,
}

enum ReadyAction {
    Launch { spec: LaunchSpec, function: FunctionId },
    Gemm { shape: GemmShape, x: DevicePtr, weight: DevicePtr, out: DevicePtr },
}

impl OpList {
    /// Looks up the kernels, which have been prepared. Each op has a name.
    pub fn new(names: Vec<String>, lowered: Vec<Lowered>, kernels: &Kernels) -> Result<OpList, DeviceError> {
        let named = names.into_iter().zip(lowered);
        let ops = named.map(|(name, op)| ready(name, op, kernels)).collect::<Result<_, _>>()?;
        Ok(OpList { ops })
    }

    /// Every op.
    pub fn all(&self) -> Range<usize> {
        0..self.ops.len()
    }

    /// Enqueues some of the ops for a step with these counts.
    pub fn enqueue(&self, ops: Range<usize>, counts: &StepCounts, queue: &Queue<'_>) -> Result<(), DeviceError> {
        for op in &self.ops[ops] {
            let (rows, actions) = op.actions(counts);
            actions.iter().try_for_each(|action| run(action, rows, counts, queue))?;
            if let Some(marks) = queue.marks.filter(|_| !actions.is_empty()) {
                marks.after(&op.name)?;
            }
        }
        Ok(())
    }

    /// The products of the library that a step with these counts has and that are not in `known`, which they join.
    fn new_products(
        &self,
        counts: &StepCounts,
        queue: &Queue<'_>,
        known: &mut HashSet<GemmShape>,
    ) -> impl Iterator<Item = (GemmShape, GemmOperands)> {
        let products = self.ops.iter().flat_map(move |op| {
            let (rows, actions) = op.actions(counts);
            actions.iter().filter_map(move |action| action.product(rows, queue))
        });
        products.filter(|(shape, _)| known.insert(*shape))
    }

    /// Runs each product of the library that a step with these counts has and that is not in `known`: a library loads its
    /// kernels when they are first used, which is not allowed in a recording.
    pub fn warm_library(
        &self,
        counts: &StepCounts,
        queue: &Queue<'_>,
        known: &mut HashSet<GemmShape>,
    ) -> Result<(), DeviceError> {
        // SAFETY: all addresses are in the arena, and before the first step nobody else uses the stream.
        let run = |(shape, operands)| unsafe { queue.library().run(queue.stream, &shape, &operands) };
        self.new_products(counts, queue, known).try_for_each(run)
    }

    /// Measures the library's candidates for each of these products, and keeps the fastest.
    pub fn tune_library(
        &self,
        counts: &StepCounts,
        queue: &Queue<'_>,
        known: &mut HashSet<GemmShape>,
    ) -> Result<(), DeviceError> {
        // SAFETY: as above.
        let tune = |(shape, operands)| unsafe { queue.library().tune(queue.stream, &shape, &operands) };
        self.new_products(counts, queue, known).try_for_each(tune)
    }

    /// Cuts the list into runs of ops that `recorded` says the same of, and how many launches each has.
    pub fn runs(&self, counts: &StepCounts, recorded: impl Fn(Recorded) -> bool) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (index, op) in self.ops.iter().enumerate() {
            let (_, actions) = op.actions(counts);
            let launches = actions.iter().filter(|action| action.is_in(counts)).count();
            let is_recorded = recorded(op.recorded);
            match runs.last_mut() {
                Some(run) if run.recorded == is_recorded => {
                    run.ops.end = index + 1;
                    run.launches += launches;
                }
                _ => runs.push(Run { ops: index..index + 1, recorded: is_recorded, launches }),
            }
        }
        runs
    }
}

/// Consecutive ops that are recorded, or that are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub ops: Range<usize>,
    pub recorded: bool,
    pub launches: usize,
}

impl ReadyOp {
    /// Rows of the op in a step with these counts, and what is done for them.
    fn actions(&self, counts: &StepCounts) -> (u32, &[ReadyAction]) {
        match counts.of(self.count) {
            0 => (0, &[]),
            rows => {
                let found = self.variants.iter().find(|(most, _)| rows <= *most);
                (rows, &found.expect("the last range has no end").1)
            }
        }
    }
}

impl ReadyAction {
    /// A product of the library, of so many rows.
    fn product(&self, rows: u32, queue: &Queue<'_>) -> Option<(GemmShape, GemmOperands)> {
        let &ReadyAction::Gemm { shape, x, weight, out } = self else { return None };
        let (workspace, workspace_bytes) = queue.gemm_workspace;
        let operands = GemmOperands { x, weight, out, workspace, workspace_bytes };
        Some((GemmShape { m: rows as usize, ..shape }, operands))
    }

    /// Whether it has something to do in a step with these counts.
    fn is_in(&self, counts: &StepCounts) -> bool {
        match self {
            ReadyAction::Launch { spec, .. } => spec.blocks(counts).is_some(),
            ReadyAction::Gemm { .. } => true,
        }
    }
}

fn run(action: &ReadyAction, rows: u32, counts: &StepCounts, queue: &Queue<'_>) -> Result<(), DeviceError> {
    match action {
        ReadyAction::Launch { spec, function } => {
            let Some(grid) = spec.blocks(counts) else { return Ok(()) };
            let launch = Launch {
                function: *function,
                name: spec.kernel.entry,
                grid,
                threads: spec.kernel.threads,
                shared_bytes: spec.kernel.shared_bytes,
                overlap: true,
            };
            // SAFETY: all addresses in the arguments are in the arena, which lives as long as the backend.
            unsafe { queue.runtime.launch(queue.stream, &launch, &spec.arguments) }
        }
        ReadyAction::Gemm { .. } => {
            let (shape, operands) = action.product(rows, queue).expect("it is one");
            // SAFETY: as above.
            unsafe { queue.library().run(queue.stream, &shape, &operands) }
        }
    }
}

fn ready(name: String, op: Lowered, kernels: &Kernels) -> Result<ReadyOp, DeviceError> {
    let action = |action: Action| match action {
        Action::Launch(spec) => {
            let function = kernels.get(&spec.kernel)?.function;
            Ok(ReadyAction::Launch { spec, function })
        }
        Action::Gemm { shape, x, weight, out } => Ok(ReadyAction::Gemm { shape, x, weight, out }),
    };
    let variants = op.variants.into_iter().map(|(most, actions)| {
        let actions = actions.into_iter().map(action).collect::<Result<Vec<_>, DeviceError>>()?;
        Ok((most, actions))
    });
    let variants = variants.collect::<Result<_, DeviceError>>()?;
    Ok(ReadyOp { name, count: op.count, recorded: op.recorded, variants })
}
