//! How long a step must take on a machine of which only two ceilings are known.

use crate::{Cost, Node, Op, Program, StepShape};

/// What a machine can do at most.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ceilings {
    /// Memory bandwidth.
    pub bytes_per_second: f64,
    /// Matrix product throughput in the program's types.
    pub flops_per_second: f64,
}

/// The ceiling that a cost meets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Moving bytes takes longer than computing.
    Memory,
    /// Computing takes longer than moving bytes.
    Compute,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Bound::Memory => "memory",
            Bound::Compute => "compute",
        })
    }
}

/// The estimate of one step.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// What the step costs.
    pub cost: Cost,
    /// No implementation can be faster: every weight and state once through memory, or all FLOPs, whichever takes
    /// longer. Activations may all stay in caches and registers.
    pub floor_seconds: f64,
    /// What the floor is bound by.
    pub bound: Bound,
    /// The ops one after another as the program has them, each at its own roofline, activations through memory.
    pub seconds: f64,
    /// Its parts, slowest first.
    pub ops: Vec<OpEstimate>,
}

/// The ops of one kind; products are told apart by their weight.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct OpEstimate {
    /// Kind of op, followed by the name of its weight in its layer for products: `linear gate_up`.
    /// The product that gives the logits is `linear head`.
    pub name: String,
    /// Number of ops.
    pub count: usize,
    /// What they cost together.
    pub cost: Cost,
    /// How long they take together, each at its own roofline.
    pub seconds: f64,
    /// What most of that time is bound by.
    pub bound: Bound,
}

impl Ceilings {
    /// Seconds that so many bytes and FLOPs take when they overlap perfectly, and what they wait for.
    pub fn time(&self, bytes: u64, flops: u64) -> (f64, Bound) {
        let memory = bytes as f64 / self.bytes_per_second;
        let compute = flops as f64 / self.flops_per_second;
        if memory >= compute { (memory, Bound::Memory) } else { (compute, Bound::Compute) }
    }
}

impl Program {
    /// How long a step of that shape takes on a machine with those ceilings, at best.
    pub fn estimate(&self, shape: &StepShape, ceilings: &Ceilings) -> Estimate {
        let mut groups: Vec<Group> = Vec::new();
        for node in &self.nodes {
            let name = self.kind_name(&node.op, node.layer);
            let at = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
                groups.push(Group { name, ..Group::default() });
                groups.len() - 1
            });
            let cost = self.node_cost(node, shape);
            let (seconds, bound) = ceilings.time(cost.bytes(), cost.flops);
            groups[at].count += 1;
            groups[at].cost += cost;
            match bound {
                Bound::Memory => groups[at].memory += seconds,
                Bound::Compute => groups[at].compute += seconds,
            }
        }
        let cost: Cost = groups.iter().map(|group| group.cost).sum();
        let mut ops: Vec<OpEstimate> = groups.into_iter().map(Group::finish).collect();
        ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let (floor_seconds, bound) = ceilings.time(cost.weight_bytes + cost.state_bytes, cost.flops);
        Estimate { cost, floor_seconds, bound, seconds: ops.iter().map(|op| op.seconds).sum(), ops }
    }

    /// Name of an op for people: its kind, for products the name of the weight, and the layer.
    pub fn node_name(&self, node: &Node) -> String {
        let kind = self.kind_name(&node.op, node.layer);
        node.layer.map_or(kind.clone(), |layer| format!("{kind}, layer {layer}"))
    }

    fn kind_name(&self, op: &Op, layer: Option<usize>) -> String {
        match op {
            Op::Linear { out, .. } | Op::FusedLinear { out, .. } if out.tensor == self.logits.tensor => {
                format!("{} head", op.name())
            }
            Op::Linear { weight, .. } | Op::FusedLinear { weight, .. } => {
                format!("{} {}", op.name(), crate::text::local_name(&self.weight(*weight).name, layer))
            }
            _ => op.name().to_owned(),
        }
    }
}

#[derive(Default)]
struct Group {
    name: String,
    count: usize,
    cost: Cost,
    /// Seconds of the ops that are bound by memory.
    memory: f64,
    /// Seconds of the others.
    compute: f64,
}

impl Group {
    fn finish(self) -> OpEstimate {
        let Group { name, count, cost, memory, compute } = self;
        let bound = if memory >= compute { Bound::Memory } else { Bound::Compute };
        OpEstimate { name, count, cost, seconds: memory + compute, bound }
    }
}

#[cfg(test)]
mod tests;
