//! Recording: before the first step, the largest cells first, within a budget of device memory.

use super::cells::{most_counts, records};
use super::{GraphOptions, Graphs, Section};
use crate::StepLayout;
use crate::ops::{OpList, Queue};
use refrain_device::{Cell, DeviceError, Graph, GraphReport, RecordedCell, RefusedCell, Runtime, StepLimits};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// Device memory of a node, bytes, as long as nothing better is known: 1.6 KiB were measured with CUDA 13 on an H100.
const NODE_BYTES: usize = 2048;

/// Drivers take memory in pieces of this size at least, so what a few nodes seem to take says nothing about the next.
const DRIVER_PIECE: usize = 4 << 20;

/// Records cells.
pub(crate) struct Recorder<'a> {
    pub runtime: &'a Arc<dyn Runtime>,
    pub queue: Queue<'a>,
    pub limits: &'a StepLimits,
    pub step_layout: &'a StepLayout,
}

impl Recorder<'_> {
    /// Runs the products of the vendor's library that recordings of these cells have, with the ops that `list` gives for
    /// each.
    ///
    /// # Errors
    /// [`DeviceError`], of a product that the library lacks among others.
    pub fn warm_library<'l>(&self, wanted: &[Cell], list: impl Fn(&Cell) -> &'l OpList) -> Result<(), DeviceError> {
        let mut known = HashSet::new();
        for cell in wanted {
            list(cell).warm_library(&most_counts(cell, self.step_layout, self.limits), &self.queue, &mut known)?;
        }
        Ok(())
    }

    /// Records the cells that are [`wanted`](super::wanted), with the ops that `list` gives for each. On the device lies a
    /// step block whose counts are zero: whatever runs finds nothing to do. The library is warm.
    ///
    /// # Errors
    /// Of the driver only what is worse than a refusal, which is in the report, and an error where `strict` makes it one.
    pub fn record<'l>(
        &self,
        options: &GraphOptions,
        wanted: &[Cell],
        list: impl Fn(&Cell) -> &'l OpList,
    ) -> Result<Graphs, DeviceError> {
        let began = Instant::now();
        let &GraphOptions { mode, budget_bytes, strict, .. } = options;
        let report = GraphReport { mode, budget_bytes, ..GraphReport::default() };
        let mut graphs = Graphs { report, ..Graphs::default() };
        if wanted.is_empty() {
            return Ok(graphs);
        }
        let free = self.runtime.memory()?.free;
        let nodes: Vec<usize> = wanted.iter().map(|cell| self.nodes(cell, list(cell))).collect();
        for (index, cell) in wanted.iter().enumerate() {
            // The cells behind this one are worth more: it is made only where they fit as well.
            let room = graphs.report.budget_bytes.saturating_sub(graphs.report.bytes);
            let needed = nodes[index..].iter().sum::<usize>().saturating_mul(node_bytes(&graphs.report));
            let outcome = if needed > room {
                let why = format!(
                    "graph memory: {} are left of --graph-memory-budget, it and the smaller ones need about {}, so at \
                     least {} in all",
                    size(room),
                    size(needed),
                    size(graphs.report.bytes + needed)
                );
                Err(RefusedCell { cell: *cell, why, over_budget: true })
            } else {
                self.cell(cell, list(cell), free, &mut graphs)?
            };
            if let Err(refused) = outcome {
                graphs.report.refused.push(refused);
            }
        }
        graphs.report.seconds = began.elapsed().as_secs_f64();
        if strict {
            graphs.report.complete()?;
        }
        Ok(graphs)
    }

    /// Nodes that a cell will have.
    fn nodes(&self, cell: &Cell, list: &OpList) -> usize {
        let runs = list.runs(&most_counts(cell, self.step_layout, self.limits), |op| records(cell, op));
        runs.iter().filter(|run| run.recorded).map(|run| run.launches).sum()
    }

    /// Records one cell. The inner result says that it can't be had; `free` is the memory before all of them.
    fn cell(
        &self,
        cell: &Cell,
        list: &OpList,
        free: usize,
        graphs: &mut Graphs,
    ) -> Result<Result<(), RefusedCell>, DeviceError> {
        let began = Instant::now();
        let recorded = self.sections(cell, list).and_then(|(sections, nodes)| {
            self.first_launch(&sections)?;
            Ok((sections, nodes, free.saturating_sub(self.runtime.memory()?.free)))
        });
        let (sections, nodes, bytes) = match recorded {
            Ok(recorded) => recorded,
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => {
                let why = error.to_string();
                return Ok(Err(RefusedCell { cell: *cell, why, over_budget: false }));
            }
        };
        let budget = graphs.report.budget_bytes;
        if bytes > budget {
            let why = format!(
                "graph memory: with it {} would be taken, --graph-memory-budget is {}",
                size(bytes),
                size(budget)
            );
            return Ok(Err(RefusedCell { cell: *cell, why, over_budget: true }));
        }
        let count = sections.iter().filter(|section| matches!(section, Section::Graph(_))).count();
        graphs.report.recorded.push(RecordedCell {
            cell: *cell,
            graphs: count,
            nodes,
            bytes: bytes.saturating_sub(graphs.report.bytes),
            seconds: began.elapsed().as_secs_f64(),
        });
        graphs.report.bytes = bytes.max(graphs.report.bytes);
        graphs.cells.insert(*cell, sections);
        Ok(Ok(()))
    }

    /// The graphs of a cell and what is launched between them, and the nodes of all graphs.
    fn sections(&self, cell: &Cell, list: &OpList) -> Result<(Vec<Section>, usize), DeviceError> {
        let counts = most_counts(cell, self.step_layout, self.limits);
        let mut sections = Vec::new();
        let mut nodes = 0;
        for run in list.runs(&counts, |op| records(cell, op)) {
            // A graph of one node costs as much as its launch.
            if run.recorded && run.launches > 1 {
                let enqueue = |stream| list.enqueue(run.ops.clone(), &counts, &Queue { stream, ..self.queue });
                let graph = Graph::record(self.runtime, enqueue)?;
                nodes += graph.nodes()?;
                sections.push(Section::Graph(graph));
            } else {
                sections.push(Section::Launched(run.ops));
            }
        }
        Ok((sections, nodes))
    }

    /// Launches each graph once: drivers take the memory of a graph when it is first launched, and the first step shall
    /// not wait for it, nor find that it isn't there.
    fn first_launch(&self, sections: &[Section]) -> Result<(), DeviceError> {
        for section in sections {
            if let Section::Graph(graph) = section {
                // SAFETY: all addresses are in the arena; kernels find counts of zero.
                unsafe { self.runtime.launch_graph(graph.id(), self.queue.stream)? };
            }
        }
        self.runtime.synchronize(self.queue.stream)
    }
}

/// What a node takes, by what those have taken that are there.
fn node_bytes(report: &GraphReport) -> usize {
    let measured = report.bytes.saturating_sub(DRIVER_PIECE).checked_div(report.nodes()).unwrap_or(0);
    measured.max(NODE_BYTES)
}

/// Bytes in whole units, rounded up.
fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}
