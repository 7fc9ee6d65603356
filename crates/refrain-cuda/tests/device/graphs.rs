//! Capture, replay, update.

use super::{ACCUMULATE, Accumulate, download_f32, kernel, runtime, upload_f32};
use refrain_device::{DeviceError, DeviceMemory, DevicePtr, FunctionId, GraphId, Runtime, Stream};
use std::sync::Arc;

const COUNT: usize = 5000;

struct Fixture {
    runtime: Arc<dyn Runtime>,
    stream: Stream,
    function: FunctionId,
    one: DeviceMemory,
    out: DeviceMemory,
}

impl Fixture {
    fn new() -> Option<Fixture> {
        let runtime = runtime()?;
        let stream = Stream::new(&runtime).unwrap();
        let function = kernel(&runtime, ACCUMULATE, "accumulate", 0);
        let one = upload_f32(&runtime, &stream, &[1.0; COUNT]);
        let out = upload_f32(&runtime, &stream, &[0.0; COUNT]);
        Some(Fixture { runtime, stream, function, one, out })
    }

    /// Records `steps` kernels that multiply by `factor` and add 1.
    fn record(&self, steps: usize, factor: f32, overlap: bool) -> GraphId {
        let chain = Accumulate::new(self.function, &self.one, &self.out, factor, COUNT);
        self.runtime.begin_capture(self.stream.id()).unwrap();
        for _ in 0..steps {
            chain.enqueue(&self.runtime, self.stream.id(), overlap).unwrap();
        }
        self.runtime.end_capture(self.stream.id()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// What is in `out` after a launch.
    fn launch(&self, graph: GraphId) -> f32 {
        // SAFETY: the memory is the fixture's.
        unsafe { self.runtime.launch_graph(graph, self.stream.id()) }.unwrap_or_else(|error| panic!("{error}"));
        let values = download_f32(&self.runtime, &self.stream, &self.out);
        assert!(values.iter().all(|value| value == &values[0]), "{:?}", &values[..8]);
        values[0]
    }
}

#[test]
fn a_recorded_chain_runs_only_when_it_is_launched_and_each_time() {
    let Some(fixture) = Fixture::new() else { return };
    for overlap in [false, true] {
        // SAFETY: the memory is the fixture's.
        unsafe { fixture.runtime.fill(fixture.stream.id(), fixture.out.base(), 0, COUNT * 4) }.unwrap();
        let graph = fixture.record(10, 1.0, overlap);
        assert_eq!(fixture.runtime.graph_nodes(graph).unwrap(), 10);
        assert_eq!(download_f32(&fixture.runtime, &fixture.stream, &fixture.out), vec![0.0; COUNT]);
        for round in 1..=3 {
            assert_eq!(fixture.launch(graph), 10.0 * round as f32, "overlap {overlap}");
        }
        fixture.runtime.destroy_graph(graph);
    }
}

#[test]
fn an_update_of_the_same_shape_takes_the_new_arguments_and_ends_the_source() {
    let Some(fixture) = Fixture::new() else { return };
    let (graph, from) = (fixture.record(3, 1.0, true), fixture.record(3, 2.0, true));
    assert_eq!(fixture.launch(graph), 3.0);
    assert!(fixture.runtime.update_graph(graph, from).unwrap());
    assert_eq!(fixture.launch(graph), ((3.0 * 2.0 + 1.0) * 2.0 + 1.0) * 2.0 + 1.0);
    let error = fixture.runtime.graph_nodes(from).unwrap_err().to_string();
    assert!(error.contains("there is no such graph"), "{error}");
    fixture.runtime.destroy_graph(graph);
    assert!(fixture.runtime.graph_nodes(graph).is_err());
}

#[test]
fn an_update_of_another_shape_is_refused_and_changes_neither() {
    let Some(fixture) = Fixture::new() else { return };
    let (graph, from) = (fixture.record(3, 1.0, false), fixture.record(4, 1.0, false));
    assert!(!fixture.runtime.update_graph(graph, from).unwrap());
    assert_eq!(fixture.launch(graph), 3.0);
    assert_eq!(fixture.launch(from), 7.0);
    assert_eq!(fixture.runtime.graph_nodes(graph).unwrap(), 3);
}

#[test]
fn a_capture_that_went_wrong_is_an_error_and_the_stream_works_again() {
    let Some(fixture) = Fixture::new() else { return };
    let (runtime, stream) = (&fixture.runtime, fixture.stream.id());
    runtime.begin_capture(stream).unwrap();
    let error = runtime.end_capture(stream).unwrap_err().to_string();
    assert!(error.contains("the capture recorded nothing"), "{error}");
    runtime.begin_capture(stream).unwrap();
    Accumulate::new(fixture.function, &fixture.one, &fixture.out, 1.0, COUNT).enqueue(runtime, stream, false).unwrap();
    let waited = runtime.synchronize(stream).unwrap_err();
    assert!(matches!(waited, DeviceError::Driver { code: 900..=908, .. }), "{waited:?}");
    let ended = runtime.end_capture(stream).unwrap_err();
    assert!(matches!(ended, DeviceError::Driver { code: 900..=908, .. }), "{ended:?}");
    let error = runtime.end_capture(stream).unwrap_err();
    assert!(matches!(error, DeviceError::Driver { .. }), "{error:?}");
    assert_eq!(fixture.launch(fixture.record(2, 1.0, false)), 2.0);
}

#[test]
fn allocating_in_a_capture_is_an_error() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.runtime.begin_capture(fixture.stream.id()).unwrap();
    let error = fixture.runtime.allocate(1 << 20, "a test").map(|DevicePtr(address)| address);
    let ended = fixture.runtime.end_capture(fixture.stream.id());
    assert!(matches!(error, Err(DeviceError::Driver { code: 900, .. })), "{error:?}");
    assert!(ended.is_err());
}

#[test]
fn another_thread_may_allocate_while_this_one_captures() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.runtime.begin_capture(fixture.stream.id()).unwrap();
    let chain = Accumulate::new(fixture.function, &fixture.one, &fixture.out, 1.0, COUNT);
    chain.enqueue(&fixture.runtime, fixture.stream.id(), false).unwrap();
    let runtime = fixture.runtime.clone();
    std::thread::spawn(move || drop(DeviceMemory::new(&runtime, 1 << 20, "a test").unwrap())).join().unwrap();
    let graph = fixture.runtime.end_capture(fixture.stream.id()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(fixture.launch(graph), 1.0);
}
