//! The device behind the lock: does the work.

use crate::capture::{KernelNode, Node, Streams};
use crate::driver::{
    CAPTURE_INVALIDATED, DEVICE_LOST, ILLEGAL_ADDRESS, INVALID_HANDLE, INVALID_VALUE, LAUNCH_FAILED, OUT_OF_MEMORY,
    OUT_OF_RESOURCES,
};
use crate::late::Late;
use crate::memory::Memory;
use crate::module::Loaded;
use crate::runtime::SimCounters;
use crate::worker::{FailedBlock, Failure, Grid, Worker};
use crate::{SimOptions, abi};
use refrain_device::{DeviceError, DevicePtr, FunctionId, GraphId, Launch, ModuleId, StreamId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A kernel that was looked up.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    pub module: ModuleId,
    kernel: abi::Kernel,
    shared_bytes: u32,
}

pub(crate) struct Device {
    pub options: SimOptions,
    pub shared_limit: u32,
    pub memory: Memory,
    pub pinned: Memory,
    pub streams: Streams,
    pub modules: HashMap<ModuleId, Loaded>,
    pub functions: HashMap<FunctionId, Function>,
    pub graphs: HashMap<GraphId, Arc<[Node]>>,
    pub counters: SimCounters,
    /// The call that the device did not survive.
    pub lost: Option<String>,
    /// Allocations and captures that will still succeed, and launches before the device is lost.
    pub allocations_left: Option<u64>,
    pub captures_left: Option<u64>,
    pub launches_left: Option<u64>,
    pub late: Late,
    worker: Worker,
}

impl Device {
    pub(crate) fn new(options: SimOptions, shared_limit: u32) -> Device {
        Device {
            shared_limit,
            memory: Memory::new(options.memory_bytes),
            // Pinned memory is the host's; no limit of the device's applies.
            pinned: Memory::new(usize::MAX / 4),
            streams: Streams::default(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            counters: SimCounters::default(),
            lost: None,
            allocations_left: None,
            captures_left: None,
            launches_left: None,
            late: Late::default(),
            worker: Worker::new(options.wave, options.order),
            options,
        }
    }

    /// Fails once the device is lost.
    pub(crate) fn alive(&self, call: &str) -> Result<(), DeviceError> {
        match &self.lost {
            Some(by) => Err(DEVICE_LOST.lost(call, &format!("since {by}"))),
            None => Ok(()),
        }
    }

    pub(crate) fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<DevicePtr, DeviceError> {
        let call = format!("allocating {bytes} bytes for {what}");
        self.alive(&call)?;
        self.streams.forbid_capture(&call)?;
        if bytes == 0 {
            return Err(INVALID_VALUE.error(call, "an allocation has at least one byte"));
        }
        if let Some(left) = &mut self.allocations_left {
            if *left == 0 {
                self.allocations_left = None;
                return Err(OUT_OF_MEMORY.error(call, "a failure that a test asked for"));
            }
            *left -= 1;
        }
        let free = self.memory.free_bytes();
        let memory = self.memory.allocate(bytes, what)?;
        self.counters.allocations += u64::from(memory.is_some());
        memory.ok_or_else(|| OUT_OF_MEMORY.error(call, &format!("{free} bytes of {} are free", self.memory.total())))
    }

    /// Ends a capture and takes the memory of its graph.
    pub(crate) fn end_capture(&mut self, stream: StreamId) -> Result<GraphId, DeviceError> {
        let call = "ending a capture";
        self.alive(call)?;
        let nodes = self.streams.end_capture(stream)?;
        if let Some(left) = &mut self.captures_left {
            if *left == 0 {
                self.captures_left = None;
                return Err(CAPTURE_INVALIDATED.error(call, "a failure that a test asked for"));
            }
            *left -= 1;
        }
        let bytes = nodes.len() * self.options.graph_node_bytes;
        if !self.memory.take(bytes) {
            let why =
                format!("a graph of {} nodes takes {bytes} bytes, {} are free", nodes.len(), self.memory.free_bytes());
            return Err(OUT_OF_MEMORY.error(call, &why));
        }
        let graph = GraphId(self.streams.number());
        self.graphs.insert(graph, nodes.into());
        Ok(graph)
    }

    /// Ends a graph and gives its memory back.
    pub(crate) fn destroy_graph(&mut self, graph: GraphId) {
        if let Some(nodes) = self.graphs.remove(&graph) {
            self.memory.give_back(nodes.len() * self.options.graph_node_bytes);
        }
    }

    /// Refuses ranges that are not inside of one allocation.
    pub(crate) fn check_range(
        &self,
        at: DevicePtr,
        bytes: usize,
        call: &dyn Fn() -> String,
    ) -> Result<(), DeviceError> {
        if bytes == 0 || self.memory.contains(at.0, bytes) {
            return Ok(());
        }
        let last = at.0.saturating_add(bytes as u64 - 1);
        let outside = if self.memory.contains(at.0, 1) { last } else { at.0 };
        Err(INVALID_VALUE
            .error(call(), &format!("of {bytes} bytes from {:#x}, {}", at.0, self.memory.describe(outside))))
    }

    /// Refuses host ranges that begin in pinned memory and leave it. Other host memory is the caller's word.
    fn check_host(&self, at: *const u8, bytes: usize, call: &dyn Fn() -> String) -> Result<(), DeviceError> {
        let address = at.addr() as u64;
        if bytes > 0 && self.pinned.contains(address, 1) && !self.pinned.contains(address, bytes) {
            let last = self.pinned.describe(address.saturating_add(bytes as u64 - 1));
            return Err(INVALID_VALUE.error(call(), &format!("of {bytes} bytes from {address:#x}, {last}")));
        }
        Ok(())
    }

    /// Checks a launch as drivers do, before it is enqueued or recorded.
    pub(crate) fn kernel_node(&self, launch: &Launch<'_>, arguments: &[u8]) -> Result<KernelNode, DeviceError> {
        let call = || describe(launch.name, launch.grid, launch.threads, launch.shared_bytes);
        let function = self.functions.get(&launch.function);
        let function = function.ok_or_else(|| INVALID_HANDLE.error(call(), "no such function"))?;
        let kernel = function.kernel;
        if launch.grid.contains(&0) || launch.grid[1] > 65_535 || launch.grid[2] > 65_535 || launch.grid[0] >> 31 != 0 {
            let why = "a grid has 1 to 2147483647 blocks in x, 1 to 65535 in y and z";
            return Err(INVALID_VALUE.error(call(), why));
        }
        if launch.threads != kernel.threads {
            let why = format!("launched with {} threads, its KX_KERNEL says {}", launch.threads, kernel.threads);
            return Err(INVALID_VALUE.error(call(), &why));
        }
        if arguments.len() != kernel.arguments as usize {
            let why = format!("got {} bytes of arguments, its struct has {}", arguments.len(), kernel.arguments);
            return Err(INVALID_VALUE.error(call(), &why));
        }
        if launch.shared_bytes > function.shared_bytes {
            let why = format!(
                "{} bytes of dynamic shared memory, the function was made for {}",
                launch.shared_bytes, function.shared_bytes
            );
            return Err(INVALID_VALUE.error(call(), &why));
        }
        let mut words = vec![0u64; arguments.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(arguments.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        Ok(KernelNode {
            function: launch.function,
            name: launch.name.to_owned(),
            grid: launch.grid,
            shared_bytes: launch.shared_bytes,
            arguments: words,
        })
    }

    /// Does one piece of work.
    ///
    /// # Safety
    /// Host ranges are valid, and a kernel's arguments are what it takes.
    pub(crate) unsafe fn execute(&mut self, node: &Node) -> Result<(), DeviceError> {
        // SAFETY: by contract; device ranges are checked here.
        unsafe {
            match *node {
                Node::Kernel(ref kernel) => return self.run(kernel),
                Node::CopyToDevice { to, from, bytes } => {
                    let call = || format!("copying {bytes} bytes to the device");
                    self.check_range(to, bytes, &call)?;
                    self.check_host(from, bytes, &call)?;
                    std::ptr::copy_nonoverlapping(from, to.0 as *mut u8, bytes);
                }
                Node::CopyToHost { to, from, bytes } => {
                    let call = || format!("copying {bytes} bytes to the host");
                    self.check_range(from, bytes, &call)?;
                    self.check_host(to, bytes, &call)?;
                    std::ptr::copy_nonoverlapping(from.0 as *const u8, to, bytes);
                }
                Node::CopyOnDevice { to, from, bytes } => {
                    let call = || format!("copying {bytes} bytes on the device");
                    self.check_range(to, bytes, &call)?;
                    self.check_range(from, bytes, &call)?;
                    if to.0.abs_diff(from.0) < bytes as u64 {
                        return Err(INVALID_VALUE.error(call(), "the ranges overlap"));
                    }
                    std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, bytes);
                }
                Node::Fill { to, value, bytes } => {
                    self.check_range(to, bytes, &|| format!("filling {bytes} bytes"))?;
                    std::ptr::write_bytes(to.0 as *mut u8, value, bytes);
                    return Ok(());
                }
            }
        }
        self.counters.copies += 1;
        Ok(())
    }

    unsafe fn run(&mut self, node: &KernelNode) -> Result<(), DeviceError> {
        let call = |threads| describe(&node.name, node.grid, threads, node.shared_bytes);
        let function = self.functions.get(&node.function).copied();
        let found = function.and_then(|function| Some((function, self.modules.get(&function.module)?)));
        let Some((function, image)) = found else {
            return Err(INVALID_HANDLE.error(call(0), "its module was unloaded"));
        };
        let threads = function.kernel.threads;
        if let Some(left) = &mut self.launches_left {
            if *left == 0 {
                self.lost = Some(call(threads));
                return Err(DEVICE_LOST.lost(call(threads), "a failure that a test asked for"));
            }
            *left -= 1;
        }
        self.counters.kernels += 1;
        let grid = Grid {
            image,
            kernel: function.kernel,
            blocks: node.grid,
            shared_bytes: node.shared_bytes,
            arguments: &node.arguments,
        };
        // SAFETY: by contract of the launch.
        let ran = unsafe { self.worker.run(&grid) }?;
        self.counters.switches = self.worker.switches;
        match ran {
            Err(failed) => Err(self.failed(&failed, call(threads))),
            Ok(()) if self.options.check => match self.memory.overwritten() {
                Some(what) => {
                    self.lost = Some(call(threads));
                    Err(ILLEGAL_ADDRESS.lost(call(threads), &format!("it wrote outside of an allocation: {what}")))
                }
                None => Ok(()),
            },
            Ok(()) => Ok(()),
        }
    }

    /// A block that failed, in words. After an illegal access nothing on the device can be trusted.
    fn failed(&mut self, failed: &FailedBlock, call: String) -> DeviceError {
        let thread = format!("block {:?}, thread {}", failed.block, failed.tid);
        match &failed.failure {
            Failure::Stuck => {
                let why = format!("block {:?} can't go on: {}", failed.block, failed.whereabouts);
                LAUNCH_FAILED.error(call, &why)
            }
            Failure::Mixed { first, second } => {
                let why = format!("{thread} is at {second}, other lanes of its wave wait at {first}");
                LAUNCH_FAILED.error(call, &why)
            }
            Failure::Address { operation, why, address } => {
                LAUNCH_FAILED.error(call, &format!("{thread}: {operation}: address {address:#x} {why}"))
            }
            Failure::StackOverflow => LAUNCH_FAILED
                .error(call, &format!("{thread} has more local variables than the simulated GPU has room for")),
            Failure::NoStack => LAUNCH_FAILED.error(call, "no memory for the stacks of simulated threads"),
            Failure::Fault(fault) => {
                self.lost = Some(call.clone());
                let why = fault.describe(&self.memory);
                ILLEGAL_ADDRESS.lost(call, &format!("{thread}: {why}"))
            }
        }
    }

    pub(crate) fn function(
        &mut self,
        module: ModuleId,
        name: &str,
        shared_bytes: u32,
    ) -> Result<FunctionId, DeviceError> {
        let call = format!("finding kernel {name}");
        self.alive(&call)?;
        let image = self.modules.get(&module).ok_or_else(|| INVALID_HANDLE.error(&call, "no such module"))?;
        let kernel = image.kernel(name)?;
        if !(1..=1024).contains(&kernel.threads) {
            let why = format!("{} threads; a block has 1 to 1024", kernel.threads);
            return Err(OUT_OF_RESOURCES.error(call, &why));
        }
        if shared_bytes > self.shared_limit {
            let why = format!("{shared_bytes} bytes of dynamic shared memory; a block has {}", self.shared_limit);
            return Err(OUT_OF_RESOURCES.error(call, &why));
        }
        let function = FunctionId(self.streams.number());
        self.functions.insert(function, Function { module, kernel, shared_bytes });
        Ok(function)
    }
}

/// Spends the launching thread's time, as a driver does.
pub(crate) fn spend(latency: Duration) {
    let from = Instant::now();
    while from.elapsed() < latency {
        std::hint::spin_loop();
    }
}

fn describe(name: &str, grid: [u32; 3], threads: u32, shared_bytes: u32) -> String {
    format!("launch of {name} (grid {grid:?}, {threads} threads, {shared_bytes} bytes of shared memory)")
}
