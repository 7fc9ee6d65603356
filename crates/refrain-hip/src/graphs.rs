//! Recorded work: graphs, kept by number.

use crate::api::{self, CAPTURE_ACTIVE, CAPTURE_THREAD_LOCAL, Handle, status};
use crate::arguments::Arguments;
use crate::capture::{Capture, Captures};
use crate::context::Context;
use crate::modules::handle;
use refrain_device::{DeviceError, GraphId, StreamId};
use std::collections::HashMap;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// All graphs of a runtime.
#[derive(Default)]
pub(crate) struct GraphTable {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    last: u64,
    graphs: HashMap<GraphId, Graph>,
}

struct Graph {
    graph: Handle,
    executable: Handle,
    nodes: usize,
    /// Of its launches: HIP may read them whenever the graph is launched.
    arguments: Vec<Arguments>,
}

// SAFETY: HIP's handles may be used from any thread; the lock around them orders changes.
unsafe impl Send for Graph {}

/// Begins to record a stream.
pub(crate) fn begin(context: &Context, captures: &Captures, stream: StreamId) -> Result<(), DeviceError> {
    let api = context.graphs()?;
    // SAFETY: a stream of this runtime.
    let code = unsafe { (api.hipStreamBeginCapture)(handle(stream.0), CAPTURE_THREAD_LOCAL) };
    context.check(code, || "hipStreamBeginCapture".to_owned())?;
    captures.begin(stream);
    Ok(())
}

impl GraphTable {
    /// Ends the recording of a stream and keeps the graph that came of it.
    pub(crate) fn end(&self, context: &Context, captures: &Captures, stream: StreamId) -> Result<GraphId, DeviceError> {
        // First of all, so that it has ended also where the device is lost.
        let capture = captures.end(stream);
        let api = context.graphs()?;
        let Some(mut capture) = capture else {
            return Err(context.refusal(
                "hipStreamEndCapture",
                status::CAPTURE_UNMATCHED,
                "no capture began in this stream",
            ));
        };
        let (mut state, mut graph) = (0, null_mut());
        // SAFETY: a stream of this runtime; numbers and handles are stored before the calls return.
        let code = unsafe {
            (api.hipStreamIsCapturing)(handle(stream.0), &raw mut state);
            (api.hipStreamEndCapture)(handle(stream.0), &raw mut graph)
        };
        for memory in std::mem::take(&mut capture.freed) {
            // SAFETY: given back by its owner while the capture did not permit to free it.
            unsafe { (context.driver.hip.hipFree)(memory) };
        }
        let made = context
            .check(code, || "hipStreamEndCapture".to_owned())
            .and_then(|()| checked(context, api, &capture, state, graph))
            .and_then(|nodes| Ok((nodes, instantiate(context, api, graph)?)));
        match made {
            Ok((nodes, executable)) => {
                let mut known = self.lock();
                known.last += 1;
                let id = GraphId(known.last);
                known.graphs.insert(id, Graph { graph, executable, nodes, arguments: capture.arguments });
                Ok(id)
            }
            Err(error) => {
                if !graph.is_null() {
                    // SAFETY: owned here, and no executable came of it.
                    unsafe { (api.hipGraphDestroy)(graph) };
                }
                Err(error)
            }
        }
    }

    pub(crate) fn nodes(&self, context: &Context, id: GraphId) -> Result<usize, DeviceError> {
        self.lock().graphs.get(&id).map(|graph| graph.nodes).ok_or_else(|| unknown(context, id))
    }

    /// Gives `id` the contents of `from`, which is gone then; false, and both as they were, when HIP can't.
    pub(crate) fn update(&self, context: &Context, id: GraphId, from: GraphId) -> Result<bool, DeviceError> {
        let api = context.graphs()?;
        let mut known = self.lock();
        let Some(source) = known.graphs.get(&from).map(|source| source.graph) else {
            return Err(unknown(context, from));
        };
        let Some(target) = known.graphs.get_mut(&id) else { return Err(unknown(context, id)) };
        if id == from {
            return Ok(true);
        }
        let Some(update) = api.hipGraphExecUpdate else { return Ok(false) };
        let (mut node, mut result) = (null_mut(), 0);
        // SAFETY: both are alive and the lock keeps others away; what is stored about the failure is not read.
        match unsafe { update(target.executable, source, &raw mut node, &raw mut result) } {
            status::GRAPH_UPDATE_FAILURE | status::NOT_SUPPORTED => {
                // HIP does not promise that a refused update changed nothing.
                let again = instantiate(context, api, target.graph)?;
                // SAFETY: replaced.
                unsafe { (api.hipGraphExecDestroy)(std::mem::replace(&mut target.executable, again)) };
                return Ok(false);
            }
            code => context.check(code, || "hipGraphExecUpdate".to_owned())?,
        }
        let Some(source) = known.graphs.remove(&from) else { return Err(unknown(context, from)) };
        let Some(target) = known.graphs.get_mut(&id) else { return Err(unknown(context, id)) };
        // SAFETY: the source's executable and the target's old recording are used by nobody any more.
        unsafe {
            (api.hipGraphExecDestroy)(source.executable);
            (api.hipGraphDestroy)(std::mem::replace(&mut target.graph, source.graph));
        }
        (target.nodes, target.arguments) = (source.nodes, source.arguments);
        Ok(true)
    }

    /// Enqueues a graph.
    ///
    /// # Safety
    /// Every address in it is valid.
    pub(crate) unsafe fn launch(&self, context: &Context, id: GraphId, stream: StreamId) -> Result<(), DeviceError> {
        let api = context.graphs()?;
        let known = self.lock();
        let Some(graph) = known.graphs.get(&id) else { return Err(unknown(context, id)) };
        // SAFETY: the executable is alive under the lock; addresses by contract.
        let code = unsafe { (api.hipGraphLaunch)(graph.executable, handle(stream.0)) };
        context.check(code, || format!("hipGraphLaunch of {} nodes in stream {:#x}", graph.nodes, stream.0))
    }

    pub(crate) fn destroy(&self, context: &Context, id: GraphId) {
        let removed = self.lock().graphs.remove(&id);
        removed.into_iter().for_each(|graph| end(context, &graph));
    }

    /// Destroys all that are left.
    pub(crate) fn clear(&self, context: &Context) {
        let graphs = std::mem::take(&mut self.lock().graphs);
        graphs.into_values().for_each(|graph| end(context, &graph));
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(context: &Context, graph: &Graph) {
    if let Ok(api) = context.graphs() {
        // SAFETY: owned, destroyed once; by contract of the trait nothing runs it.
        unsafe {
            (api.hipGraphExecDestroy)(graph.executable);
            (api.hipGraphDestroy)(graph.graph);
        }
    }
}

/// Number of nodes of a graph, once it is certain that all that was recorded is in it.
fn checked(
    context: &Context,
    api: &api::Graphs,
    capture: &Capture,
    state: i32,
    graph: Handle,
) -> Result<usize, DeviceError> {
    let spoilt = |text: &str| Err(context.refusal("hipStreamEndCapture", status::CAPTURE_INVALIDATED, text));
    if let Some(failure) = &capture.failure {
        return spoilt(&format!("a call during the capture failed: {failure}"));
    }
    if state != CAPTURE_ACTIVE || graph.is_null() {
        return spoilt("the stream was not capturing any more when the capture was to end");
    }
    let mut nodes = 0;
    // SAFETY: the graph was just captured; without an array only the number is stored.
    let code = unsafe { (api.hipGraphGetNodes)(graph, null_mut(), &raw mut nodes) };
    context.check(code, || "hipGraphGetNodes".to_owned())?;
    if nodes == 0 {
        return spoilt("nothing was recorded");
    }
    if nodes < capture.recorded {
        return spoilt(&format!("{} launches and copies were recorded, the graph has {nodes} nodes", capture.recorded));
    }
    Ok(nodes)
}

fn instantiate(context: &Context, api: &api::Graphs, graph: Handle) -> Result<Handle, DeviceError> {
    let mut executable = null_mut();
    // SAFETY: the graph is alive; the handle is stored before the call returns, and no log is wanted.
    let code = unsafe { (api.hipGraphInstantiate)(&raw mut executable, graph, null_mut(), null_mut(), 0) };
    context.check(code, || "hipGraphInstantiate".to_owned())?;
    Ok(executable)
}

fn unknown(context: &Context, id: GraphId) -> DeviceError {
    context.refusal(&format!("graph {}", id.0), status::INVALID_HANDLE, "there is no such graph, or it was destroyed")
}
