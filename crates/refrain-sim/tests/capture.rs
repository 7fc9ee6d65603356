//! Captures follow the drivers' rules, and replays do what was recorded.

mod common;

use common::{Kernel, Sim};
use refrain_device::{DeviceError, DeviceMemory, Event, GraphId, Runtime, Stream};
use refrain_sim::SimOptions;

const DOUBLE: &str = "
    struct Args { u32* at; u32 plus; u32 gap; };
    KX_KERNEL(twice, Args, 32) { if (kx_tid() == 0) *args.at = *args.at * 2 + args.plus; }";

struct Fixture {
    sim: Sim,
    kernel: Kernel,
    cell: DeviceMemory,
}

impl Fixture {
    fn new() -> Option<Fixture> {
        let sim = Sim::new(SimOptions::default())?;
        let kernel = sim.kernel("twice", DOUBLE);
        let cell = sim.upload(&[1u32]);
        Some(Fixture { sim, kernel, cell })
    }

    fn twice(&self, plus: u64) -> Result<(), DeviceError> {
        self.sim.launch(&self.kernel, 1, 32, &[self.cell.base().0, plus])
    }

    fn begin(&self) {
        self.sim.runtime.begin_capture(self.sim.stream.id()).unwrap();
    }

    fn end(&self) -> Result<GraphId, DeviceError> {
        self.sim.runtime.end_capture(self.sim.stream.id())
    }

    fn replay(&self, graph: GraphId) {
        // SAFETY: all that is recorded still exists.
        unsafe { self.sim.runtime.launch_graph(graph, self.sim.stream.id()) }.unwrap();
    }

    fn value(&self) -> u32 {
        self.sim.read::<u32>(&self.cell)[0]
    }
}

fn code(error: &DeviceError) -> i64 {
    match error {
        DeviceError::Driver { code, .. } => *code,
        other => panic!("{other}"),
    }
}

#[test]
fn a_replay_does_in_order_what_was_recorded_with_the_input_of_now() {
    let Some(fixture) = Fixture::new() else { return };
    let sim = &fixture.sim;
    let mut host = [3u32];
    fixture.begin();
    // SAFETY: the host's cell and the memory outlive the graph.
    unsafe { sim.runtime.copy_to_device(sim.stream.id(), fixture.cell.base(), host.as_ptr().cast(), 4) }.unwrap();
    fixture.twice(1).unwrap();
    fixture.twice(0).unwrap();
    let graph = fixture.end().unwrap();
    assert_eq!(sim.runtime.graph_nodes(graph).unwrap(), 3);
    assert_eq!(fixture.value(), 1, "recording must not execute");
    fixture.replay(graph);
    assert_eq!(fixture.value(), (3 * 2 + 1) * 2);
    host[0] = 10;
    std::hint::black_box(&mut host);
    fixture.replay(graph);
    assert_eq!(fixture.value(), (10 * 2 + 1) * 2);
    let counters = sim.sim.counters();
    assert_eq!((counters.launches, counters.graph_launches, counters.kernels), (0, 2, 4));
    sim.runtime.destroy_graph(graph);
    // SAFETY: refused, for the graph is gone.
    assert!(unsafe { sim.runtime.launch_graph(graph, sim.stream.id()) }.is_err());
}

#[test]
fn what_a_capture_does_not_allow_fails_and_breaks_it() {
    let Some(fixture) = Fixture::new() else { return };
    let sim = &fixture.sim;
    let (recorded, fresh) = (Event::new(&sim.runtime).unwrap(), Event::new(&sim.runtime).unwrap());
    sim.runtime.record(recorded.id(), sim.stream.id()).unwrap();
    let image = sim.sim.compiler().unwrap().compile(&common::source(DOUBLE), "sim32").unwrap().image;
    type Call<'a> = &'a dyn Fn() -> Result<(), DeviceError>;
    let cases: [(&str, Call<'_>); 8] = [
        ("allocating 64 bytes for test", &|| sim.runtime.allocate(64, "test").map(|_| ())),
        ("pinned memory", &|| sim.runtime.allocate_pinned(64).map(|_| ())),
        ("loading a module", &|| sim.runtime.load_module(&image).map(|_| ())),
        ("waiting for a stream", &|| sim.stream.synchronize()),
        ("asking for an event", &|| sim.runtime.query(recorded.id()).map(|_| ())),
        ("asking for an event", &|| sim.runtime.query(fresh.id()).map(|_| ())),
        ("waiting for an event on the host", &|| sim.runtime.synchronize_event(recorded.id())),
        ("the time between", &|| sim.runtime.elapsed(recorded.id(), recorded.id()).map(|_| ())),
    ];
    for (name, call) in cases {
        fixture.begin();
        fixture.twice(0).unwrap();
        let error = call().unwrap_err();
        assert_eq!(code(&error), 900, "{error}");
        assert!(error.to_string().contains(name), "no {name:?} in: {error}");
        let error = fixture.twice(0).unwrap_err();
        assert_eq!(code(&error), 901, "{error}");
        let error = fixture.end().unwrap_err();
        assert_eq!(code(&error), 901, "{error}");
        assert!(error.to_string().contains(name), "the end doesn't say what broke it: {error}");
    }
    assert_eq!(fixture.value(), 1);
    // And afterwards all is as before.
    fixture.begin();
    fixture.twice(5).unwrap();
    fixture.replay(fixture.end().unwrap());
    assert_eq!(fixture.value(), 7);
}

#[test]
fn memory_that_is_freed_during_a_capture_breaks_it_and_stays() {
    let Some(fixture) = Fixture::new() else { return };
    let free = fixture.sim.runtime.memory().unwrap().free;
    let memory = fixture.sim.room::<u8>(100);
    fixture.begin();
    fixture.twice(0).unwrap();
    drop(memory);
    assert_eq!(code(&fixture.end().unwrap_err()), 901);
    assert_eq!(fixture.sim.runtime.memory().unwrap().free, free - 256);
}

#[test]
fn captures_begin_and_end_once() {
    let Some(fixture) = Fixture::new() else { return };
    assert_eq!(code(&fixture.end().unwrap_err()), 401);
    fixture.begin();
    assert_eq!(code(&fixture.sim.runtime.begin_capture(fixture.sim.stream.id()).unwrap_err()), 401);
    let graph = fixture.end().unwrap();
    assert_eq!(fixture.sim.runtime.graph_nodes(graph).unwrap(), 0);
}

#[test]
fn a_second_stream_joins_a_capture_by_events_and_must_be_joined_again() {
    let Some(fixture) = Fixture::new() else { return };
    let sim = &fixture.sim;
    let second = Stream::new(&sim.runtime).unwrap();
    let (fork, join) = (Event::new(&sim.runtime).unwrap(), Event::new(&sim.runtime).unwrap());
    let fill = || {
        // SAFETY: the memory is there.
        unsafe { sim.runtime.fill(second.id(), fixture.cell.base(), 0, 4) }.unwrap();
    };
    for joined in [true, false] {
        sim.write(fixture.cell.base(), &[1u32]);
        fixture.begin();
        fixture.twice(0).unwrap();
        sim.runtime.record(fork.id(), sim.stream.id()).unwrap();
        sim.runtime.wait(second.id(), fork.id()).unwrap();
        fill();
        sim.runtime.record(join.id(), second.id()).unwrap();
        if joined {
            sim.runtime.wait(sim.stream.id(), join.id()).unwrap();
        }
        fixture.twice(3).unwrap();
        let graph = fixture.end();
        assert_eq!(fixture.value(), 1);
        if joined {
            fixture.replay(graph.unwrap());
            assert_eq!(fixture.value(), 3);
        } else {
            assert_eq!(code(&graph.unwrap_err()), 904);
        }
        // The second stream records no more.
        fill();
        assert_eq!(fixture.value(), 0);
    }
    // An event of the capture has no time; one of outside can't be waited for inside.
    assert_eq!(code(&sim.runtime.query(join.id()).unwrap_err()), 1);
    sim.runtime.record(fork.id(), second.id()).unwrap();
    fixture.begin();
    assert_eq!(code(&sim.runtime.wait(sim.stream.id(), fork.id()).unwrap_err()), 905);
    assert_eq!(code(&fixture.end().unwrap_err()), 901);
}

#[test]
fn a_graph_becomes_another_of_the_same_shape_only() {
    let Some(fixture) = Fixture::new() else { return };
    let runtime = &fixture.sim.runtime;
    let record = |plus: &[u64], fill: bool| {
        fixture.begin();
        plus.iter().for_each(|&plus| fixture.twice(plus).unwrap());
        if fill {
            // SAFETY: the memory is there.
            unsafe { runtime.fill(fixture.sim.stream.id(), fixture.cell.base(), 0, 4) }.unwrap();
        }
        fixture.end().unwrap()
    };
    let graph = record(&[1, 1], false);
    let (longer, other, same) = (record(&[1, 1, 1], false), record(&[1], true), record(&[2, 5], false));
    assert!(!runtime.update_graph(graph, longer).unwrap());
    assert!(!runtime.update_graph(graph, other).unwrap());
    assert!(runtime.update_graph(graph, same).unwrap());
    assert!(runtime.graph_nodes(same).is_err(), "it ends with the update");
    assert_eq!(runtime.graph_nodes(longer).unwrap(), 3);
    fixture.replay(graph);
    assert_eq!(fixture.value(), (2 + 2) * 2 + 5);
}

#[test]
fn a_graph_is_recorded_as_its_nodes() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.begin();
    fixture.twice(1).unwrap();
    let inner = fixture.end().unwrap();
    fixture.begin();
    fixture.replay(inner);
    fixture.replay(inner);
    let outer = fixture.end().unwrap();
    assert_eq!(fixture.value(), 1);
    fixture.replay(outer);
    assert_eq!(fixture.value(), 7);
}

#[test]
fn a_device_that_is_lost_in_a_graph_is_lost() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.begin();
    (0..3).for_each(|_| fixture.twice(0).unwrap());
    let graph = fixture.end().unwrap();
    fixture.sim.sim.lose_device(1);
    // SAFETY: all that is recorded still exists.
    let error = unsafe { fixture.sim.runtime.launch_graph(graph, fixture.sim.stream.id()) }.unwrap_err();
    assert!(matches!(error, DeviceError::Lost { .. }), "{error}");
    assert!(fixture.sim.stream.synchronize().is_err());
}

#[test]
fn events_have_times() {
    let Some(fixture) = Fixture::new() else { return };
    let runtime = &fixture.sim.runtime;
    let (from, to) = (Event::new(runtime).unwrap(), Event::new(runtime).unwrap());
    assert!(runtime.query(from.id()).unwrap(), "one that was never recorded counts as passed");
    assert_eq!(code(&runtime.elapsed(from.id(), to.id()).unwrap_err()), 400);
    runtime.record(from.id(), fixture.sim.stream.id()).unwrap();
    fixture.twice(0).unwrap();
    runtime.record(to.id(), fixture.sim.stream.id()).unwrap();
    assert!(runtime.query(to.id()).unwrap());
    runtime.synchronize_event(to.id()).unwrap();
    assert!(runtime.elapsed(from.id(), to.id()).unwrap().as_nanos() > 0);
}

#[test]
fn graphs_take_memory_until_they_are_destroyed() {
    let options = SimOptions { memory_bytes: 1 << 20, graph_node_bytes: 300 << 10, ..SimOptions::default() };
    let Some(sim) = Sim::new(options) else { return };
    let kernel = sim.kernel("twice", DOUBLE);
    let cell = sim.upload(&[1u32]);
    let record = |launches: usize| {
        sim.runtime.begin_capture(sim.stream.id()).unwrap();
        for _ in 0..launches {
            sim.launch(&kernel, 1, 32, &[cell.base().0, 0]).unwrap();
        }
        sim.runtime.end_capture(sim.stream.id())
    };
    let free = || sim.runtime.memory().unwrap().free;
    let before = free();
    let graph = record(2).unwrap();
    assert_eq!(before - free(), 600 << 10);
    let error = record(2).unwrap_err();
    assert_eq!(code(&error), 2, "{error}");
    assert_eq!(before - free(), 600 << 10, "what could not be had takes nothing");
    let one = record(1).unwrap();
    assert!(!sim.runtime.update_graph(graph, one).unwrap(), "they have different shapes");
    sim.runtime.destroy_graph(one);
    sim.runtime.destroy_graph(graph);
    assert_eq!(free(), before);
    sim.sim.fail_capture(1);
    sim.runtime.destroy_graph(record(1).unwrap());
    assert_eq!(code(&record(1).unwrap_err()), 901);
    record(1).unwrap();
}
