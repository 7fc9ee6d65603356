//! Steps that are recorded once and replayed. Everything that changes between steps lies in the step block, and kernels
//! do only what its counts say: so one recording serves every step of its cell, also smaller ones, and is never changed.

mod cells;
mod options;
mod record;

pub(crate) use cells::wanted;
pub use options::{
    DEFAULT_GRAPH_MEMORY_BUDGET, GraphOptions, check_sizes, default_decode_sizes, default_prefill_sizes,
};
pub(crate) use record::Recorder;

use crate::StepCounts;
use crate::ops::{OpList, Queue};
use refrain_device::{Cell, DeviceError, Graph, GraphReport};
use std::collections::HashMap;
use std::ops::Range;

/// The graphs of all cells.
#[derive(Default)]
pub(crate) struct Graphs {
    cells: HashMap<Cell, Vec<Section>>,
    /// What they are and what they cost.
    pub report: GraphReport,
}

/// A part of a recorded step.
pub(crate) enum Section {
    /// Replayed.
    Graph(Graph),
    /// Launched, for the counts of each step.
    Launched(Range<usize>),
}

impl Graphs {
    /// Enqueues a step in the way of a cell that was recorded from `list`.
    pub fn replay(&self, cell: Cell, list: &OpList, counts: &StepCounts, queue: &Queue<'_>) -> Result<(), DeviceError> {
        for section in &self.cells[&cell] {
            match section {
                Section::Graph(graph) => {
                    // SAFETY: all addresses are in the arena, which lives as long as the backend.
                    unsafe { queue.runtime.launch_graph(graph.id(), queue.stream)? };
                    queue.marks.map_or(Ok(()), |marks| marks.after("graph"))?;
                }
                Section::Launched(ops) => list.enqueue(ops.clone(), counts, queue)?,
            }
        }
        Ok(())
    }
}
