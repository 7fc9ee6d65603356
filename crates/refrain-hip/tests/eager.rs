//! Memory, copies, launches and events over the fake HIP library, and what goes wrong with them.

mod support;

use refrain_device::{DeviceError, DeviceMemory, Launch, PinnedMemory, Runtime};
use refrain_hip::{HipOptions, HipRuntime, devices};
use std::sync::Arc;
use std::time::Duration;
use support::fake::{Bench, Fake, GFX906, KERNELS, for_cpu, image};

fn counting(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

#[test]
fn the_device_is_described() {
    let fake = Fake::new();
    let runtime = fake.open();
    let info = runtime.info();
    assert_eq!((info.kind, info.index, info.name.as_str(), info.arch.as_str()), ("hip", 0, "Fake card 0", "gfx906"));
    assert_eq!((info.wave, info.processors, info.shared_bytes), (64, 60, 65536));
    assert_eq!(info.driver, "HIP 6.3.42133");
    assert!(!info.mma && !info.overlap);
    assert_eq!(runtime.memory().unwrap().total, 64 << 20);
}

#[test]
fn kernels_run_in_order_with_barriers_shuffles_and_shared_memory() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &counting(512));
    bench.launch("add", 1.0).unwrap();
    bench.launch("scale", 2.0).unwrap();
    bench.launch("reverse", 0.0).unwrap();
    let before: Vec<f32> = (0..512).map(|i| (i as f32 + 1.0) * 2.0).collect();
    let sums: Vec<f32> = before.chunks(64).map(|wave| wave.iter().sum()).collect();
    let expected: Vec<f32> =
        (0..512).map(|i| i / 256 * 256 + 255 - i % 256).map(|from| before[from] + sums[from / 64]).collect();
    assert_eq!(bench.read(), expected);
    assert_eq!(fake.get("launches"), 3);
}

#[test]
fn the_driver_s_own_words_on_resources_serve_where_there_is_no_metadata() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[0.0; 256]);
    let resources = bench.runtime.resources(bench.function("reverse")).unwrap();
    assert_eq!((resources.registers, resources.shared_bytes, resources.local_bytes), (42, 1024, 0));
}

#[test]
fn events_order_streams_and_tell_time() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let runtime = &bench.runtime;
    let side = runtime.create_stream().unwrap();
    let (begin, end) = (runtime.create_event().unwrap(), runtime.create_event().unwrap());
    runtime.record(begin, bench.stream).unwrap();
    bench.launch("add", 1.0).unwrap();
    runtime.record(end, bench.stream).unwrap();
    runtime.wait(side, end).unwrap();
    bench.launch_in(side, "scale", 10.0).unwrap();
    assert!(!runtime.query(end).unwrap());
    // Nothing has waited for the first stream but the second one.
    runtime.synchronize(side).unwrap();
    assert!(runtime.query(end).unwrap());
    assert_eq!(bench.read()[0], 20.0);
    runtime.synchronize_event(end).unwrap();
    assert_eq!(runtime.elapsed(begin, end).unwrap(), Duration::from_micros(250));
    for event in [begin, end] {
        runtime.destroy_event(event);
    }
    runtime.destroy_stream(side);
    assert_eq!((fake.get("events"), fake.get("streams")), (0, 1));
}

#[test]
fn memory_is_filled_copied_pinned_and_given_back() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let runtime: Arc<dyn Runtime> = bench.runtime.clone();
    let held = fake.get("allocations");
    {
        let other = DeviceMemory::new(&runtime, 1024, "copy").unwrap();
        let mut pinned = PinnedMemory::new(&runtime, 1024).unwrap();
        // SAFETY: both ranges have 1024 bytes, and the streams are waited for.
        unsafe {
            runtime.fill(bench.stream, other.base(), 0x40, 1024).unwrap();
            runtime.copy_on_device(bench.stream, bench.data.base(), other.base(), 512).unwrap();
            runtime.copy_to_host(bench.stream, pinned.base(), bench.data.base(), 1024).unwrap();
            runtime.synchronize(bench.stream).unwrap();
            assert_eq!(pinned.slice()[..512], [0x40; 512]);
            assert_eq!(pinned.slice()[512..516], 1.0_f32.to_le_bytes());
        }
        assert_eq!(fake.get("allocations"), held + 2);
    }
    assert_eq!(fake.get("allocations"), held);
}

#[test]
fn a_launch_that_a_kernel_would_not_survive_is_refused() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    let function = bench.function("add");
    let good = Launch { function, name: "add", grid: [1, 1, 1], threads: 256, shared_bytes: 0, overlap: false };
    let args = bench.args(1.0);
    let why = |launch: Launch<'_>, arguments: &[u8]| {
        // SAFETY: refused, or harmless on the fake.
        unsafe { bench.runtime.launch(bench.stream, &launch, arguments) }.unwrap_err().to_string()
    };
    assert!(why(Launch { grid: [1, 0, 1], ..good }, args.bytes()).contains("kernel add: an empty grid [1, 0, 1]"));
    assert!(why(Launch { grid: [1 << 24, 1, 1], ..good }, args.bytes()).contains("more than 2^32"));
    assert!(why(Launch { shared_bytes: 70_000, ..good }, args.bytes()).contains("70000 bytes of shared memory"));
    // These only the driver knows.
    let text = why(Launch { threads: 128, ..good }, args.bytes());
    assert!(
        text.contains("hip:0: hipModuleLaunchKernel of add, grid [1, 1, 1], 128 threads") && text.contains(" 9 ("),
        "{text}"
    );
    assert!(why(good, &args.bytes()[..8]).contains("failed: 1 ("));
    assert_eq!(fake.get("launches"), 0);
}

#[test]
fn what_is_not_in_a_module_is_named() {
    let fake = Fake::new();
    let runtime = fake.open();
    let module = runtime.load_module(&image(&for_cpu("kernels.cu", KERNELS), GFX906)).unwrap();
    let text = runtime.function(module, "absent", 0).unwrap_err().to_string();
    assert!(text.contains("hipModuleGetFunction of absent") && text.contains("500"), "{text}");
    assert!(runtime.function(module, "a\0b", 0).is_err());
    // SAFETY: nothing of it is used.
    unsafe { runtime.unload_module(module) };
    assert_eq!(fake.get("modules"), 0);
}

#[test]
fn code_for_another_card_or_for_none_is_refused_with_its_target() {
    let fake = Fake::new();
    let runtime = fake.open();
    let object = for_cpu("kernels.cu", KERNELS);
    let text = runtime.load_module(&image(&object, 0x30)).unwrap_err().to_string();
    assert!(text.contains("209") && text.contains("no kernel image is available"), "{text}");
    let text = runtime
        .load_module(b"PTX, perhaps? certainly no code object, but long enough for its header")
        .unwrap_err()
        .to_string();
    assert!(text.contains("200") && text.contains("not a code object for AMD GPUs"), "{text}");
}

#[test]
fn memory_that_can_not_be_had_says_for_what_and_how_much_is_free() {
    let fake = Fake::new();
    let runtime: Arc<dyn Runtime> = fake.open();
    let error = DeviceMemory::new(&runtime, 65 << 20, "weights").map(drop).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { bytes, .. } if bytes == 65 << 20), "{error}");
    let text = error.to_string();
    assert!(text.contains("weights") && text.contains("67108864 of 67108864 bytes are free"), "{text}");
    fake.set("fail_allocation", 2);
    let kept = DeviceMemory::new(&runtime, 1024, "first").unwrap();
    assert!(DeviceMemory::new(&runtime, 1024, "second").is_err());
    assert!(DeviceMemory::new(&runtime, 1024, "third").is_ok());
    fake.set("fail_allocation", 1);
    assert!(matches!(PinnedMemory::new(&runtime, 64).map(drop), Err(DeviceError::OutOfMemory { .. })));
    drop(kept);
    assert_eq!(fake.get("allocations"), 0);
}

#[test]
fn a_lost_device_answers_every_call_with_its_loss() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    fake.set("lost_after", 1);
    bench.launch("add", 1.0).unwrap();
    let error = bench.launch("add", 1.0).unwrap_err();
    assert!(matches!(&error, DeviceError::Lost { device, code: 719, .. } if device == "hip:0"), "{error}");
    let first = error.to_string();
    assert!(first.contains("hipModuleLaunchKernel of add") && first.contains("restart the process"), "{first}");
    let runtime = &bench.runtime;
    for error in [
        runtime.synchronize(bench.stream).unwrap_err(),
        runtime.create_event().unwrap_err(),
        runtime.allocate(64, "anything").unwrap_err(),
        runtime.memory().unwrap_err(),
        runtime.begin_capture(bench.stream).unwrap_err(),
        runtime.load_module(&[]).unwrap_err(),
    ] {
        // All name the call that found out.
        assert!(matches!(error, DeviceError::Lost { .. }), "{error}");
        assert_eq!(error.to_string(), first);
    }
    // Dropping everything returns, and nothing of all this has reached a driver whose calls might not.
    drop(bench);
    assert_eq!(fake.get("calls_when_lost"), 0);
}

#[test]
fn a_code_after_which_nothing_works_means_that_the_device_is_lost() {
    for (status, fatal) in [(999, true), (53, true), (1053, true), (1, false), (701, false)] {
        let fake = Fake::new();
        let bench = Bench::new(&fake, &[1.0; 256]);
        fake.set("fill", status);
        // SAFETY: the fake refuses.
        let error = unsafe { bench.runtime.fill(bench.stream, bench.data.base(), 0, 64) }.unwrap_err();
        assert_eq!(error.is_fatal(), fatal, "{status}: {error}");
        assert_eq!(bench.runtime.synchronize(bench.stream).is_err(), fatal, "{status}");
    }
}

#[test]
fn an_opened_device_that_can_not_be_made_current_is_lost_whatever_the_code() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[1.0; 256]);
    fake.set("set_device", 101);
    let error = bench.runtime.synchronize(bench.stream).unwrap_err();
    assert!(matches!(&error, DeviceError::Lost { call, code: 101, .. } if call == "hipSetDevice"), "{error}");
    // It does not come back.
    fake.set("set_device", 0);
    assert!(bench.runtime.memory().unwrap_err().is_fatal());
    // A device that was never opened has not been lost.
    fake.set("set_device", 999);
    let error = HipRuntime::open(&fake.options(), 0).map(drop).unwrap_err();
    assert!(matches!(error, DeviceError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("hip:0 can't be made current: hipSetDevice failed: 999"), "{error}");
}

#[test]
fn every_version_s_way_to_tell_the_architecture_is_understood() {
    let told = |fake: &Fake| devices(&fake.options()).unwrap().remove(0);
    let attribute = Fake::without(&["hipGetDevicePropertiesR0600", "hipGetDeviceProperties"]);
    assert!(told(&attribute).problem.unwrap().contains("doesn't tell its architecture; give --gpu-arch (gfx906"));
    attribute.set("arch_attribute", 1);
    assert_eq!(told(&attribute).arch, "gfx906");
    let hip5 = Fake::without(&["hipGetDevicePropertiesR0600"]);
    assert_eq!(told(&hip5).arch, "gfx906");
    let nothing = Fake::new();
    nothing.set("arch_known", 0);
    let error = HipRuntime::open(&nothing.options(), 0).map(drop).unwrap_err().to_string();
    assert!(error.contains("hip:0 (Fake card 0)") && error.contains("doesn't tell its architecture"), "{error}");
    let given = HipOptions { arch: Some("gfx906".to_owned()), ..nothing.options() };
    assert_eq!(HipRuntime::open(&given, 0).unwrap().info().arch, "gfx906");
    let nonsense = HipOptions { arch: Some("vega".to_owned()), ..nothing.options() };
    assert!(devices(&nonsense).unwrap()[0].problem.as_ref().unwrap().contains("\"vega\" is no architecture"));
}

#[test]
fn attributes_are_read_by_the_numbering_that_makes_sense() {
    let fake = Fake::new();
    fake.set("numbering", 4);
    let info = fake.open();
    assert_eq!((info.info().wave, info.info().processors, info.info().shared_bytes), (64, 60, 65536));
    fake.set("numbering", 9);
    let error = HipRuntime::open(&fake.options(), 0).map(drop).unwrap_err();
    assert!(
        matches!(error, DeviceError::Unavailable { .. }) && error.to_string().contains("which can't be"),
        "{error}"
    );
}

#[test]
fn a_machine_without_the_device_says_so() {
    let fake = Fake::new();
    let text = |index| HipRuntime::open(&fake.options(), index).map(drop).unwrap_err().to_string();
    assert!(text(1).contains("there is no hip:1") && text(1).contains("finds 1"), "{}", text(1));
    fake.set("devices", 0);
    assert!(text(0).contains("finds no GPU"), "{}", text(0));
    fake.set("init", 100);
    assert!(text(0).contains("finds no GPU"), "{}", text(0));
    fake.set("init", 3);
    assert!(text(0).contains("hipInit failed"), "{}", text(0));
}

#[test]
fn missing_functions_are_named() {
    let fake = Fake::without(&["hipMalloc", "hipEventRecord"]);
    let error = HipRuntime::open(&fake.options(), 0).map(drop).unwrap_err();
    assert!(matches!(error, DeviceError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("it lacks hipMalloc, hipEventRecord"), "{error}");
    let optional = Fake::without(&["hipGetErrorName", "hipDriverGetVersion", "hipGraphExecUpdate"]);
    assert_eq!(optional.open().info().driver, "HIP 6.3.42133");
}

#[test]
fn a_folder_of_libraries_is_enough() {
    let fake = Fake::new();
    let options = HipOptions { library_dirs: vec![fake.folder().to_owned()], ..HipOptions::default() };
    assert_eq!(HipRuntime::open(&options, 0).unwrap().info().name, "Fake card 0");
}
