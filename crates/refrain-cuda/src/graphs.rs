//! Recorded work: device graphs, kept by number.

use crate::bindings::driver::{CUgraph, CUgraphExec, CUgraphExecUpdateResultInfo, CUresult, CUstream};
use crate::context::Context;
use refrain_device::{DeviceError, GraphId};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A graph with what launches it. The graph itself is kept because an update of another takes it.
struct Graph {
    graph: CUgraph,
    executable: CUgraphExec,
    nodes: usize,
}

// SAFETY: the driver's handles may be used from any thread; the lock around them orders changes.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

/// All graphs of a runtime. A launch takes the lock for reading: once for many kernels.
pub(crate) struct Graphs {
    context: Arc<Context>,
    made: RwLock<HashMap<u64, Graph>>,
    next: AtomicU64,
}

impl Graphs {
    pub(crate) fn new(context: Arc<Context>) -> Graphs {
        Graphs { context, made: RwLock::default(), next: AtomicU64::new(1) }
    }

    /// Takes over a graph that a capture gave, and makes it launchable.
    pub(crate) fn add(&self, graph: CUgraph) -> Result<GraphId, DeviceError> {
        let made = self.counted(graph).and_then(|nodes| Ok((nodes, self.instantiate(graph)?)));
        match made {
            Ok((nodes, executable)) => {
                let id = self.next.fetch_add(1, Ordering::Relaxed);
                self.write().insert(id, Graph { graph, executable, nodes });
                Ok(GraphId(id))
            }
            Err(error) => {
                // SAFETY: the graph is owned here, and no executable came of it.
                unsafe { (self.context.driver.table.cuGraphDestroy)(graph) };
                Err(error)
            }
        }
    }

    pub(crate) fn nodes(&self, id: GraphId) -> Result<usize, DeviceError> {
        self.read().get(&id.0).map(|graph| graph.nodes).ok_or_else(|| self.unknown(id))
    }

    /// Gives the executable of `id` the contents of `from`, which is gone then. When the driver can't, both stay; that of
    /// `id` is made anew, since the driver does not promise that a refused update changed nothing.
    pub(crate) fn update(&self, id: GraphId, from: GraphId) -> Result<bool, DeviceError> {
        const REFUSED: u32 = CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE as u32;
        let mut made = self.write();
        let Some(source) = made.get(&from.0).map(|source| source.graph) else { return Err(self.unknown(from)) };
        let Some(target) = made.get_mut(&id.0) else { return Err(self.unknown(id)) };
        if id == from {
            return Ok(true);
        }
        let mut info = MaybeUninit::<CUgraphExecUpdateResultInfo>::uninit();
        // SAFETY: both are alive and the lock keeps others away; what is stored in `info` is not read.
        let code =
            unsafe { (self.context.driver.table.cuGraphExecUpdate_v2)(target.executable, source, info.as_mut_ptr()) };
        if code == REFUSED {
            let again = self.instantiate(target.graph)?;
            // SAFETY: replaced; the driver frees it once it no longer runs.
            unsafe { (self.context.driver.table.cuGraphExecDestroy)(std::mem::replace(&mut target.executable, again)) };
            return Ok(false);
        }
        self.context.check(code, || "cuGraphExecUpdate_v2".to_owned())?;
        let source = made.remove(&from.0).expect("looked up above");
        let target = made.get_mut(&id.0).expect("looked up above");
        let old = std::mem::replace(&mut target.graph, source.graph);
        target.nodes = source.nodes;
        self.destroy_parts(old, source.executable);
        Ok(true)
    }

    /// Enqueues a graph.
    ///
    /// # Safety
    /// Every address in it is valid.
    pub(crate) unsafe fn launch(&self, id: GraphId, stream: CUstream) -> Result<(), DeviceError> {
        let made = self.read();
        let Some(graph) = made.get(&id.0) else { return Err(self.unknown(id)) };
        // SAFETY: the executable is alive under the lock; addresses by contract.
        let code = unsafe { (self.context.driver.table.cuGraphLaunch)(graph.executable, stream) };
        self.context.check(code, || format!("cuGraphLaunch of {} nodes in stream {stream:?}", graph.nodes))
    }

    pub(crate) fn destroy(&self, id: GraphId) {
        if let Some(graph) = self.write().remove(&id.0) {
            self.destroy_parts(graph.graph, graph.executable);
        }
    }

    /// Nodes of a graph that was just captured; none means that the capture went wrong without saying so.
    fn counted(&self, graph: CUgraph) -> Result<usize, DeviceError> {
        let mut nodes = 0;
        // SAFETY: without an array only the number is stored.
        let code = unsafe { (self.context.driver.table.cuGraphGetNodes)(graph, std::ptr::null_mut(), &raw mut nodes) };
        self.context.check(code, || "cuGraphGetNodes".to_owned())?;
        if nodes == 0 {
            return Err(self.problem("cuStreamEndCapture", "the capture recorded nothing"));
        }
        Ok(nodes)
    }

    fn instantiate(&self, graph: CUgraph) -> Result<CUgraphExec, DeviceError> {
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph is alive; the handle is stored before the call returns.
        let code = unsafe { (self.context.driver.table.cuGraphInstantiateWithFlags)(&raw mut executable, graph, 0) };
        self.context.check(code, || "cuGraphInstantiateWithFlags".to_owned())?;
        Ok(executable)
    }

    fn destroy_parts(&self, graph: CUgraph, executable: CUgraphExec) {
        // SAFETY: owned, destroyed once. An executable that still runs is freed by the driver when it has ended.
        unsafe {
            (self.context.driver.table.cuGraphExecDestroy)(executable);
            (self.context.driver.table.cuGraphDestroy)(graph);
        }
    }

    fn unknown(&self, id: GraphId) -> DeviceError {
        self.problem(&format!("graph {}", id.0), "there is no such graph, or it was destroyed")
    }

    fn problem(&self, call: &str, text: &str) -> DeviceError {
        let device = self.context.label.clone();
        DeviceError::Driver { device, call: call.to_owned(), code: 0, text: text.to_owned() }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Graph>> {
        self.made.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Graph>> {
        self.made.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        if self.context.make_current().is_err() {
            return;
        }
        let made = std::mem::take(&mut *self.write());
        for graph in made.into_values() {
            self.destroy_parts(graph.graph, graph.executable);
        }
    }
}
