//! What was done before the first request: kernels compiled, graphs recorded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use refrain_device::Backend;
use std::sync::atomic::AtomicU64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct From {
    from: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    cell: String,
    reason: String,
}

/// Numbers that don't change once requests come. Without kernels to compile, or graphs, they stay 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Preparation {
    kernels: Family<From, Gauge>,
    compile_seconds: Gauge<f64, AtomicU64>,
    graph_cells: Family<State, Gauge>,
    graph_cell_refused: Family<Refused, Gauge>,
    graph_nodes: Gauge,
    graph_memory: Gauge,
    graph_memory_budget: Gauge,
    capture_seconds: Gauge<f64, AtomicU64>,
}

impl Preparation {
    /// What a backend reports.
    pub fn of(backend: &dyn Backend) -> Preparation {
        let own = Preparation::default();
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let kernels = backend.kernels().unwrap_or_default();
        for (from, count) in
            [("packs", kernels.from_packs), ("cache", kernels.from_cache), ("compiler", kernels.compiled)]
        {
            own.kernels.get_or_create(&From { from }).set(gauge(count));
        }
        own.compile_seconds.set(kernels.seconds);
        let graphs = backend.graphs().cloned().unwrap_or_default();
        for (state, count) in [("recorded", graphs.recorded.len()), ("refused", graphs.refused.len())] {
            own.graph_cells.get_or_create(&State { state }).set(gauge(count));
        }
        for refused in &graphs.refused {
            let labels = Refused { cell: refused.cell.to_string(), reason: refused.why.clone() };
            own.graph_cell_refused.get_or_create(&labels).set(1);
        }
        own.graph_nodes.set(gauge(graphs.nodes()));
        own.graph_memory.set(gauge(graphs.bytes));
        own.graph_memory_budget.set(gauge(graphs.budget_bytes));
        own.capture_seconds.set(graphs.seconds);
        own
    }

    /// Adds all of them.
    pub fn register(&self, r: &mut Registry) {
        r.register("refrain:kernels", "Kernels by where their code came from", self.kernels.clone());
        let help = "Seconds in which kernels were loaded or compiled, at start";
        r.register("refrain:compile_seconds", help, self.compile_seconds.clone());
        let help = "Ways to replay steps, recorded or refused by budget or driver";
        r.register("refrain:graph_cells", help, self.graph_cells.clone());
        let help = "1 for each way to replay steps that was refused";
        r.register("refrain:graph_cell_refused", help, self.graph_cell_refused.clone());
        r.register("refrain:graph_nodes", "Nodes of all graphs", self.graph_nodes.clone());
        r.register("refrain:graph_memory_bytes", "Device memory that graphs took", self.graph_memory.clone());
        let help = "Device memory that graphs may take";
        r.register("refrain:graph_memory_budget_bytes", help, self.graph_memory_budget.clone());
        r.register(
            "refrain:capture_seconds",
            "Seconds in which graphs were recorded, at start",
            self.capture_seconds.clone(),
        );
    }
}
