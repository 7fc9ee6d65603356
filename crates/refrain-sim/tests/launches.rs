//! What a launch, a module, a copy and an allocation are checked for; counters, costs and failures to order.

mod common;

use common::{Sim, source};
use refrain_device::{DeviceError, DeviceMemory, Launch, MemInfo, PinnedMemory, Runtime};
use refrain_sim::{SimOptions, SimRuntime};
use std::time::{Duration, Instant};

const STORE: &str = "
    struct StoreArgs { u32* at; u32 value; };
    KX_KERNEL(store, StoreArgs, 32) { if (kx_tid() == 0) args.at[kx_block_x()] = args.value; }";

fn text(result: Result<(), DeviceError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_launch_that_differs_from_the_kernel_is_refused_with_both_numbers() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let kernel = sim.kernel_with("store", STORE, 1024);
    let out = sim.room::<u32>(1);
    let arguments = [out.base().0, 5];
    let cases = [
        (text(sim.launch(&kernel, 1, 32, &arguments[..1])), "got 8 bytes of arguments, its struct has 16"),
        (text(sim.launch(&kernel, 1, 64, &arguments)), "launched with 64 threads, its KX_KERNEL says 32"),
        (text(sim.launch(&kernel, 0, 32, &arguments)), "a grid has 1 to 2147483647 blocks in x"),
        (text(sim.launch_with(&kernel, [1, 65_536, 1], 32, 0, &arguments)), "1 to 65535 in y and z"),
        (
            text(sim.launch_with(&kernel, [1; 3], 32, 1025, &arguments)),
            "1025 bytes of dynamic shared memory, the function was made for 1024",
        ),
    ];
    for (error, words) in cases {
        assert!(error.contains(words) && error.contains("launch of store"), "no {words:?} in: {error}");
    }
    assert_eq!(sim.sim.counters().kernels, 0);
    sim.launch(&kernel, 1, 32, &arguments).unwrap();
    assert_eq!(sim.read::<u32>(&out), [5]);
}

#[test]
fn modules_and_functions_that_are_not_there_are_named() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let Some(wide) = Sim::new(SimOptions { wave: 64, ..SimOptions::default() }) else { return };
    let image = wide.sim.compiler().unwrap().compile(&source(STORE), "sim64").unwrap().image;
    let error = sim.runtime.load_module(&image).unwrap_err().to_string();
    assert!(error.contains("compiled for sim64, this device is sim32"), "{error}");
    for image in [b"nonsense".as_slice(), b"\x7fELF", &image[..image.len() / 2]] {
        let error = sim.runtime.load_module(image).unwrap_err();
        assert!(matches!(error, DeviceError::Driver { code: 200, .. }), "{error:?}");
    }
    let kernel = sim.kernel("store", STORE);
    let error = sim.runtime.function(kernel.module, "stroe", 0).unwrap_err().to_string();
    assert!(error.contains("stroe") && error.contains("named symbol not found"), "{error}");
    let error = sim.runtime.function(kernel.module, "store", 1 << 20).unwrap_err().to_string();
    assert!(error.contains("1048576 bytes of dynamic shared memory; a block has 232448"), "{error}");
    // SAFETY: it is not used after it, which is what is tested.
    unsafe { sim.runtime.unload_module(kernel.module) };
    let error = text(sim.launch(&kernel, 1, 32, &[0, 0]));
    assert!(error.contains("no such function"), "{error}");
}

#[test]
fn resources_are_the_shared_memory_of_the_file() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let with_room = "
        struct Args { u32* at; };
        KX_KERNEL(room, Args, 32) {
            KX_SHARED KX_ALIGN(16) u32 room[100];
            room[kx_tid()] = 1;
            kx_sync();
            args.at[kx_tid()] = room[31 - kx_tid()];
        }";
    for (kernel, bytes) in [(sim.kernel("store", STORE), 0), (sim.kernel("room", with_room), 400)] {
        assert_eq!(sim.runtime.resources(kernel.function).unwrap().shared_bytes, bytes, "{}", kernel.name);
    }
}

#[test]
fn a_kernel_that_does_not_compile_comes_with_the_compiler_s_words() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let compiler = sim.sim.compiler().unwrap();
    assert!(compiler.describe().contains("-O2"), "{}", compiler.describe());
    for (broken, words) in
        [("int x = nothing_here;", "nothing_here"), ("f32 gone(); KX_KERNEL(k, f32, 1) { gone(); }", "gone")]
    {
        let error = compiler.compile(&source(broken), "sim32").unwrap_err();
        assert!(matches!(&error, DeviceError::Compile { log, .. } if log.contains(words)), "{error}");
    }
    let error = compiler.compile(&source(STORE), "sm_90a").unwrap_err().to_string();
    assert!(error.contains("sm_90a is no simulated device; those are sim32 and sim64"), "{error}");
}

#[test]
fn a_compiler_that_is_not_there_is_told_with_what_to_do() {
    let sim = SimRuntime::new(SimOptions { compiler: Some("/no/such/c++".into()), ..SimOptions::default() });
    let error = sim.compiler().err().unwrap().to_string();
    assert!(error.contains("/no/such/c++") && error.contains("install"), "{error}");
}

#[test]
fn copies_stay_within_allocations() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let (stream, device) = (sim.stream.id(), sim.room::<u8>(100));
    let mut pinned = PinnedMemory::new(&sim.runtime, 64).unwrap();
    let host = [7u8; 256];
    // SAFETY: what would not be valid is refused, which is what is tested.
    unsafe {
        let at = device.base();
        let cases = [
            (
                text(sim.sim.copy_to_device(stream, at.offset(1), host.as_ptr(), 100)),
                "0 bytes behind the end of \"test\"",
            ),
            (text(sim.sim.fill(stream, at.offset(101), 0, 1)), "1 bytes behind the end"),
            (
                text(sim.sim.copy_to_host(stream, pinned.base(), at, 65)),
                "behind the end of \"pinned memory\" (64 bytes)",
            ),
            (text(sim.sim.copy_on_device(stream, at, at.offset(5), 6)), "the ranges overlap"),
        ];
        for (error, words) in cases {
            assert!(error.contains(words), "no {words:?} in: {error}");
        }
        sim.sim.copy_to_device(stream, at, host.as_ptr(), 100).unwrap();
        sim.sim.fill(stream, at.offset(10), 9, 5).unwrap();
        sim.sim.copy_on_device(stream, at, at.offset(10), 5).unwrap();
        sim.sim.copy_to_host(stream, pinned.base(), at, 20).unwrap();
        assert_eq!(pinned.slice()[..20], [9, 9, 9, 9, 9, 7, 7, 7, 7, 7, 9, 9, 9, 9, 9, 7, 7, 7, 7, 7]);
    }
    assert_eq!(sim.sim.counters().copies, 3);
}

#[test]
fn memory_is_counted_and_ends() {
    let sim = SimRuntime::new(SimOptions { memory_bytes: 4096, ..SimOptions::default() });
    assert_eq!(sim.memory().unwrap(), MemInfo { free: 4096, total: 4096 });
    let first = sim.allocate(1000, "weights").unwrap();
    assert_eq!(sim.memory().unwrap().free, 3072);
    let error = sim.allocate(3073, "KV blocks").unwrap_err().to_string();
    assert!(error.contains("3073 bytes for KV blocks") && error.contains("3072 bytes of 4096 are free"), "{error}");
    // SAFETY: allocated above, used by nobody.
    unsafe { sim.free(first) };
    assert_eq!(sim.memory().unwrap().free, 4096);
    assert!(sim.allocate(0, "nothing").is_err());
    assert!(sim.allocate(usize::MAX, "everything").is_err());
}

#[test]
fn failures_come_to_order() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    sim.sim.fail_allocation(1);
    let memory = |_| DeviceMemory::new(&sim.runtime, 64, "test").map(|_| ());
    let results: Vec<bool> = (0..3).map(memory).map(|result| result.is_ok()).collect();
    assert_eq!(results, [true, false, true]);

    let kernel = sim.kernel("store", STORE);
    let out = sim.room::<u32>(1);
    sim.sim.lose_device(2);
    for value in [1, 2] {
        sim.launch(&kernel, 1, 32, &[out.base().0, value]).unwrap();
    }
    let lost = sim.launch(&kernel, 1, 32, &[out.base().0, 3]).unwrap_err();
    assert!(matches!(lost, DeviceError::Lost { .. }), "{lost:?}");
    for error in [sim.stream.synchronize().unwrap_err(), sim.launch(&kernel, 1, 32, &[out.base().0, 3]).unwrap_err()] {
        assert!(matches!(error, DeviceError::Lost { .. }), "{error:?}");
    }
}

#[test]
fn a_launch_costs_what_was_asked_for() {
    let latency = Duration::from_millis(3);
    let Some(sim) = Sim::new(SimOptions { launch_latency: latency, ..SimOptions::default() }) else { return };
    let kernel = sim.kernel("store", STORE);
    let out = sim.room::<u32>(1);
    let time = |work: &dyn Fn()| {
        let from = Instant::now();
        work();
        from.elapsed()
    };
    let launch = || sim.launch(&kernel, 1, 32, &[out.base().0, 1]).unwrap();
    assert!(time(&launch) >= latency);
    sim.runtime.begin_capture(sim.stream.id()).unwrap();
    (0..10).for_each(|_| launch());
    let graph = sim.runtime.end_capture(sim.stream.id()).unwrap();
    let before = sim.sim.counters();
    // SAFETY: the memory is there.
    let replay = || unsafe { sim.runtime.launch_graph(graph, sim.stream.id()).unwrap() };
    // Ten kernels, one launch: at best of a few tries, for the machine may be slow.
    let best = (0..5).map(|_| time(&replay)).min().unwrap();
    assert!(best >= latency && best < 10 * latency, "{best:?}");
    let after = sim.sim.counters();
    assert_eq!((after.graph_launches, after.kernels - before.kernels, after.launches), (5, 50, 1));
}

#[test]
fn launches_come_from_any_thread() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let text = "struct Args { u32* at; }; KX_KERNEL(count, Args, 32) { kx_sync(); kx_atomic_add(args.at, 1); kx_atomic_max(args.at + 1, kx_tid()); }";
    let kernel = sim.kernel("count", text);
    let out = sim.upload(&[0u32; 2]);
    let arguments = out.base().0.to_ne_bytes();
    let (name, function, stream) = (kernel.name, kernel.function, sim.stream.id());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let launch = Launch { function, name, grid: [5, 1, 1], threads: 32, shared_bytes: 0, overlap: true };
                for _ in 0..20 {
                    // SAFETY: the memory is there.
                    unsafe { sim.sim.launch(stream, &launch, &arguments) }.unwrap();
                }
            });
        }
    });
    assert_eq!(sim.read::<u32>(&out), [4 * 20 * 5 * 32, 31]);
}
