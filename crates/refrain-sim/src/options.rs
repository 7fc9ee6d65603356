//! What can be chosen about the simulated GPU.

use std::path::PathBuf;
use std::time::Duration;

/// The order in which the threads of a block, and the blocks of a grid, take their turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By index.
    #[default]
    Forward,
    /// The last one first.
    Reverse,
    /// Waves within a block, lanes within a wave and blocks within a grid in an order drawn from this seed, another one
    /// in each block.
    Shuffled(u64),
}

/// A simulated GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimOptions {
    /// Threads of a wave: 32, with emulated tensor cores, or 64, without.
    pub wave: u32,
    /// Who runs first.
    pub order: Order,
    /// Time that the launching thread spends for each launch of a kernel, and once for each launch of a graph: the
    /// launcher's cost, which graphs avoid.
    pub launch_latency: Duration,
    /// Work is done only when somebody waits for it, and its failures are told only then.
    pub late: bool,
    /// Bytes of device memory.
    pub memory_bytes: usize,
    /// Device memory that a node of a graph takes as long as the graph is there.
    pub graph_node_bytes: usize,
    /// Multiprocessors that the device claims to have. Kernels that divide work by it can be tested with any number.
    pub processors: u32,
    /// Looks after each kernel for writes closely before and behind every allocation. Those further away fault anyway.
    pub check: bool,
    /// The C++ compiler; `None` looks for `c++`, `g++` and `clang++`.
    pub compiler: Option<PathBuf>,
}

impl Default for SimOptions {
    /// A wave of 32, 1 GiB, 2 KiB for a node, 8 processors, forward order, no launch cost, nothing late, with
    /// checks.
    fn default() -> Self {
        Self {
            wave: 32,
            order: Order::Forward,
            launch_latency: Duration::ZERO,
            late: false,
            memory_bytes: 1 << 30,
            graph_node_bytes: 2048,
            processors: 8,
            check: true,
            compiler: None,
        }
    }
}
