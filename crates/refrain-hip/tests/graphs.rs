//! Captures and graphs over the fake HIP library, with everything that versions of HIP have done to them.

mod support;

use refrain_device::{DeviceError, DeviceMemory, Runtime};
use std::sync::Arc;
use support::fake::{Bench, Fake};

/// A capture in which each number is increased by 1 and doubled.
fn captured(bench: &Bench) -> Result<refrain_device::GraphId, DeviceError> {
    bench.runtime.begin_capture(bench.stream).unwrap();
    bench.launch("add", 1.0).unwrap();
    bench.launch("scale", 2.0).unwrap();
    bench.runtime.end_capture(bench.stream)
}

fn replay(bench: &Bench, graph: refrain_device::GraphId) {
    // SAFETY: the addresses in it are those of the bench.
    unsafe { bench.runtime.launch_graph(graph, bench.stream) }.unwrap();
}

#[test]
fn a_graph_does_what_was_recorded_with_the_data_of_its_launch() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let graph = captured(&bench).unwrap();
    assert_eq!(bench.read()[0], 1.0, "a capture executes nothing");
    assert_eq!(bench.runtime.graph_nodes(graph).unwrap(), 2);
    replay(&bench, graph);
    assert_eq!(bench.read()[0], 4.0);
    bench.write(&[10.0; 256]);
    replay(&bench, graph);
    replay(&bench, graph);
    assert_eq!(bench.read()[0], 46.0);
    assert_eq!(fake.get("graph_launches"), 3);
    bench.runtime.destroy_graph(graph);
    assert_eq!(fake.get("graphs"), 0);
    let gone = bench.runtime.graph_nodes(graph).unwrap_err().to_string();
    assert!(gone.contains("no such graph"), "{gone}");
}

#[test]
fn arguments_stay_as_long_as_the_graph_that_points_to_them() {
    let fake = Fake::new();
    fake.set("late_arguments", 1);
    let bench = Bench::new(&fake, &[1.0; 256]);
    let graph = captured(&bench).unwrap();
    // Eager launches, and memory that would reuse what had been freed.
    let others: Vec<Vec<u8>> = (0..1000).map(|size| vec![0xff; 64 + size % 3 * 64]).collect();
    bench.launch("add", 0.0).unwrap();
    replay(&bench, graph);
    replay(&bench, graph);
    assert_eq!(bench.read()[0], 10.0);
    drop(others);
    // An update takes the other's arguments over.
    bench.runtime.begin_capture(bench.stream).unwrap();
    bench.launch("add", 100.0).unwrap();
    bench.launch("scale", 3.0).unwrap();
    let other = bench.runtime.end_capture(bench.stream).unwrap();
    assert!(bench.runtime.update_graph(graph, other).unwrap());
    let others: Vec<Vec<u8>> = (0..1000).map(|size| vec![0xff; 64 + size % 3 * 64]).collect();
    replay(&bench, graph);
    assert_eq!(bench.read()[0], 330.0);
    drop(others);
}

#[test]
fn an_update_replaces_what_a_graph_does_and_ends_the_other() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let graph = captured(&bench).unwrap();
    let longer = {
        bench.runtime.begin_capture(bench.stream).unwrap();
        for _ in 0..3 {
            bench.launch("add", 1.0).unwrap();
        }
        bench.runtime.end_capture(bench.stream).unwrap()
    };
    assert!(!bench.runtime.update_graph(graph, longer).unwrap(), "of another shape");
    assert_eq!(bench.runtime.graph_nodes(longer).unwrap(), 3);
    let same = captured(&bench).unwrap();
    assert!(bench.runtime.update_graph(graph, same).unwrap());
    assert!(bench.runtime.graph_nodes(same).is_err());
    assert!(bench.runtime.update_graph(graph, same).is_err());
    for graph in [graph, longer] {
        bench.runtime.destroy_graph(graph);
    }
    assert_eq!(fake.get("graphs"), 0);
}

#[test]
fn a_refused_update_changes_nothing() {
    let fake = Fake::new();
    fake.set("refuse_update", 1);
    let bench = Bench::new(&fake, &[1.0; 256]);
    let (graph, other) = (captured(&bench).unwrap(), captured(&bench).unwrap());
    assert!(!bench.runtime.update_graph(graph, other).unwrap());
    replay(&bench, graph);
    replay(&bench, other);
    assert_eq!(bench.read()[0], 10.0);
    let without = Fake::without(&["hipGraphExecUpdate"]);
    let bench = Bench::new(&without, &[1.0; 256]);
    let (graph, other) = (captured(&bench).unwrap(), captured(&bench).unwrap());
    assert!(!bench.runtime.update_graph(graph, other).unwrap());
    replay(&bench, other);
    assert_eq!(bench.read()[0], 4.0);
}

#[test]
fn what_a_capture_does_not_permit_never_reaches_the_driver() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let runtime = &bench.runtime;
    let shared: Arc<dyn Runtime> = runtime.clone();
    let before = DeviceMemory::new(&shared, 64, "before").unwrap();
    let event = runtime.create_event().unwrap();
    runtime.begin_capture(bench.stream).unwrap();
    bench.launch("add", 1.0).unwrap();
    runtime.record(event, bench.stream).unwrap();
    for (error, call) in [
        (runtime.allocate(64, "x").unwrap_err(), "hipMalloc"),
        (runtime.allocate_pinned(64).map(drop).unwrap_err(), "hipHostMalloc"),
        (runtime.load_module(b"x").unwrap_err(), "hipModuleLoadData"),
        (runtime.synchronize(bench.stream).unwrap_err(), "hipStreamSynchronize"),
    ] {
        let text = error.to_string();
        assert!(matches!(error, DeviceError::Driver { code: 900, .. }), "{text}");
        assert!(text.contains(call) && text.contains("captured"), "{text}");
    }
    for error in [runtime.query(event).map(drop).unwrap_err(), runtime.synchronize_event(event).unwrap_err()] {
        assert!(matches!(error, DeviceError::Driver { code: 907, .. }), "{error}");
    }
    // Memory that is given back now is freed when the capture has ended.
    let held = fake.get("allocations");
    drop(before);
    assert_eq!(fake.get("allocations"), held);
    // Another thread may allocate.
    std::thread::scope(|scope| {
        scope.spawn(|| drop(DeviceMemory::new(&shared, 64, "elsewhere").unwrap()));
    });
    let graph = runtime.end_capture(bench.stream).unwrap();
    assert_eq!(fake.get("allocations"), held - 1);
    assert_eq!(fake.get("illegal_calls"), 0);
    assert_eq!(runtime.graph_nodes(graph).unwrap(), 1);
}

#[test]
fn a_driver_that_loses_nodes_is_found_out() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    fake.set("drop_node", 2);
    let error = captured(&bench).unwrap_err().to_string();
    assert!(error.contains("2 launches and copies were recorded, the graph has 1 nodes"), "{error}");
    fake.set("drop_node", 0);
    assert_eq!(fake.get("graphs"), 0);
    captured(&bench).unwrap();
}

#[test]
fn a_capture_that_went_wrong_is_no_graph() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let runtime = &bench.runtime;
    // Nothing recorded.
    runtime.begin_capture(bench.stream).unwrap();
    assert!(runtime.end_capture(bench.stream).unwrap_err().to_string().contains("nothing was recorded"));
    // Something failed.
    runtime.begin_capture(bench.stream).unwrap();
    bench.launch("add", 1.0).unwrap();
    // SAFETY: the target is no device memory, so the driver refuses.
    let failed = unsafe { runtime.fill(bench.stream, refrain_device::DevicePtr(64), 0, 64) }.unwrap_err();
    let error = runtime.end_capture(bench.stream).unwrap_err().to_string();
    assert!(error.contains("a call during the capture failed") && error.contains(&failed.to_string()), "{error}");
    // Nothing began.
    let error = runtime.end_capture(bench.stream).unwrap_err();
    assert!(matches!(error, DeviceError::Driver { code: 903, .. }), "{error}");
    // The stream still works, and so does the next capture.
    captured(&bench).map(|graph| replay(&bench, graph)).unwrap();
    assert_eq!(bench.read()[0], 4.0);
}

#[test]
fn a_capture_that_somebody_else_spoils_is_no_graph_whether_the_driver_tells_or_not() {
    for silently in [0, 1] {
        let fake = Fake::new();
        fake.set("spoil_silently", silently);
        let bench = Bench::new(&fake, &[1.0; 256]);
        // A library in the process that does not know of the capture.
        let other = libloading_malloc(&fake);
        bench.runtime.begin_capture(bench.stream).unwrap();
        bench.launch("add", 1.0).unwrap();
        other();
        let error = bench.runtime.end_capture(bench.stream).unwrap_err();
        assert!(matches!(error, DeviceError::Driver { code: 901, .. }), "{silently}: {error}");
        assert_eq!(fake.get("illegal_calls"), 1);
        assert_eq!(fake.get("graphs"), 0);
    }
}

/// Calls the machine's `hipMalloc` directly.
fn libloading_malloc(fake: &Fake) -> impl Fn() {
    // SAFETY: the machine's library is loaded; it has no initialisers.
    let library = unsafe { libloading::os::unix::Library::new(fake.path()) }.unwrap();
    move || {
        let mut memory = std::ptr::null_mut::<std::ffi::c_void>();
        // SAFETY: HIP's signature; the address is stored before the call returns.
        unsafe {
            let malloc = library.get::<unsafe extern "C" fn(*mut *mut std::ffi::c_void, usize) -> i32>("hipMalloc");
            malloc.unwrap()(&raw mut memory, 64);
        }
    }
}

#[test]
fn streams_that_join_a_capture_are_in_the_graph() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let runtime = &bench.runtime;
    let side = runtime.create_stream().unwrap();
    let (fork, join) = (runtime.create_event().unwrap(), runtime.create_event().unwrap());
    runtime.begin_capture(bench.stream).unwrap();
    bench.launch("add", 1.0).unwrap();
    runtime.record(fork, bench.stream).unwrap();
    runtime.wait(side, fork).unwrap();
    bench.launch_in(side, "scale", 5.0).unwrap();
    assert!(runtime.synchronize(side).is_err());
    runtime.record(join, side).unwrap();
    runtime.wait(bench.stream, join).unwrap();
    let graph = runtime.end_capture(bench.stream).unwrap();
    assert_eq!(runtime.graph_nodes(graph).unwrap(), 2);
    replay(&bench, graph);
    assert_eq!(bench.read()[0], 10.0);
    runtime.synchronize(side).unwrap();
}

#[test]
fn a_stream_that_is_given_up_in_the_middle_of_a_capture_ends_it() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let runtime = &bench.runtime;
    let other = runtime.create_stream().unwrap();
    runtime.begin_capture(other).unwrap();
    bench.launch_in(other, "add", 1.0).unwrap();
    runtime.destroy_stream(other);
    assert_eq!((fake.get("graphs"), fake.get("streams")), (0, 1));
    let memory = runtime.allocate(64, "after it").unwrap();
    // SAFETY: nothing uses it.
    unsafe { runtime.free(memory) };
}

#[test]
fn a_library_without_graphs_runs_eagerly_and_says_what_it_lacks() {
    let fake = Fake::without(&["hipStreamIsCapturing", "hipGraphLaunch"]);
    let bench = Bench::new(&fake, &[1.0; 256]);
    bench.launch("add", 1.0).unwrap();
    assert_eq!(bench.read()[0], 2.0);
    let error = bench.runtime.begin_capture(bench.stream).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, DeviceError::Driver { code: 801, .. }), "{text}");
    assert!(text.contains("can't record graphs: it lacks hipStreamIsCapturing, hipGraphLaunch"), "{text}");
}

#[test]
fn what_is_left_goes_with_the_device() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    captured(&bench).unwrap();
    assert_eq!((fake.get("graphs"), fake.get("modules")), (2, 1));
    bench.runtime.destroy_stream(bench.stream);
    drop(bench);
    assert_eq!((fake.get("graphs"), fake.get("modules"), fake.get("allocations"), fake.get("streams")), (0, 0, 0, 0));
}
