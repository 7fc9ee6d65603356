//! A device that does nothing before it is waited for.

mod common;

use common::Sim;
use refrain_device::{Event, PinnedMemory, Runtime};
use refrain_sim::SimOptions;

const STORE: &str = "
    struct StoreArgs { u32* at; u32 value; };
    KX_KERNEL(store, StoreArgs, 32) { if (kx_tid() == 0) *args.at = args.value; }";

#[test]
fn work_is_done_up_to_the_event_that_is_waited_for() {
    let Some(sim) = Sim::new(SimOptions { late: true, ..SimOptions::default() }) else { return };
    let kernel = sim.kernel("store", STORE);
    let out = sim.room::<u32>(1);
    let events = [(); 2].map(|()| Event::new(&sim.runtime).unwrap());
    let mut host = PinnedMemory::new(&sim.runtime, 2).unwrap();
    for (index, event) in events.iter().enumerate() {
        sim.launch(&kernel, 1, 32, &[out.base().0, 5 + index as u64]).unwrap();
        // SAFETY: both ranges stay until the stream is waited for.
        unsafe { sim.sim.copy_to_host(sim.stream.id(), host.base().add(index), out.base(), 1).unwrap() };
        sim.sim.record(event.id(), sim.stream.id()).unwrap();
    }
    let mut state = || {
        let passed = [0, 1].map(|event| sim.sim.query(events[event].id()).unwrap());
        // SAFETY: the device works in the calls below only.
        (sim.sim.counters().kernels, passed, unsafe { host.slice() }.to_vec())
    };
    assert_eq!(state(), (0, [false, false], vec![0, 0]));
    for _ in 0..2 {
        sim.sim.synchronize_event(events[0].id()).unwrap();
        assert_eq!(state(), (1, [true, false], vec![5, 0]));
    }
    sim.stream.synchronize().unwrap();
    assert_eq!(state(), (2, [true, true], vec![5, 6]));
}

#[test]
fn failures_are_told_when_the_work_is_waited_for() {
    let Some(sim) = Sim::new(SimOptions { late: true, ..SimOptions::default() }) else { return };
    let kernel = sim.kernel("store", STORE);
    let out = sim.room::<u32>(1);
    let event = Event::new(&sim.runtime).unwrap();
    sim.sim.lose_device(0);
    for _ in 0..2 {
        sim.launch(&kernel, 1, 32, &[out.base().0, 5]).unwrap();
    }
    sim.sim.record(event.id(), sim.stream.id()).unwrap();
    for _ in 0..2 {
        let error = sim.sim.synchronize_event(event.id()).unwrap_err();
        assert!(error.is_fatal(), "{error}");
    }
    assert!(sim.launch(&kernel, 1, 32, &[out.base().0, 5]).unwrap_err().is_fatal());
}
