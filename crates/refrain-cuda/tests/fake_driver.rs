//! The runtime on a driver of the tests (`fake/cuda.c`): what it passes on, what it makes of errors, what it keeps.

mod common;

use libloading::os::unix::Library;
use refrain_cuda::{CudaOptions, CudaRuntime, devices};
use refrain_device::{
    DeviceError, DeviceMemory, DevicePtr, Event, FunctionId, GraphId, Launch, PinnedMemory, Runtime, Stream, StreamId,
};
use std::ffi::{CString, c_char, c_int};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// `Launch` of `fake/cuda.c`.
#[repr(C)]
#[derive(Clone, Copy)]
struct FakeLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    overlap: u32,
    argument_bytes: u32,
    launches: u32,
    arguments: [u8; 256],
}

/// The driver for one test at a time; its state is the library's.
struct Fake {
    _one: MutexGuard<'static, ()>,
    library: &'static Library,
}

impl Fake {
    fn get<T: Copy>(&self, name: &str) -> T {
        // SAFETY: a variable of that type in fake/cuda.c; the lock keeps other tests away.
        unsafe { **self.library.get::<*const T>(name.as_bytes()).unwrap() }
    }

    fn set(&self, name: &str, value: c_int) {
        // SAFETY: as in `get`.
        unsafe { **self.library.get::<*mut c_int>(name.as_bytes()).unwrap() = value };
    }

    /// Lets the next call of this name fail.
    fn fail(&self, call: &str, code: c_int) {
        let call = CString::new(call).unwrap();
        // SAFETY: its signature in fake/cuda.c.
        unsafe {
            self.library.get::<unsafe extern "C" fn(*const c_char, c_int)>(b"fake_fail").unwrap()(call.as_ptr(), code);
        }
    }

    fn retained(&self, device: c_int) -> c_int {
        // SAFETY: its signature in fake/cuda.c.
        unsafe { self.library.get::<unsafe extern "C" fn(c_int) -> c_int>(b"fake_retained").unwrap()(device) }
    }

    fn open(&self) -> Arc<CudaRuntime> {
        CudaRuntime::open(0, &CudaOptions::default()).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The driver of the tests, also where the machine has a real one: the folder that is given goes first.
fn fake() -> Fake {
    static LOADED: OnceLock<Library> = OnceLock::new();
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let library = LOADED.get_or_init(|| {
        let folder = common::fake_driver(&[]);
        let found = devices(&CudaOptions { library_dirs: vec![folder.path().to_owned()] }).unwrap();
        assert_eq!(found[0].name, "Fake H100");
        // The same file, so the same library as the runtime's.
        // SAFETY: it does nothing when it is loaded.
        unsafe { Library::new(folder.path().join("libcuda.so.1")) }.unwrap()
    });
    Fake { _one: one, library }
}

/// A module of the driver's and its one kernel, which takes 24 bytes.
fn add(runtime: &dyn Runtime) -> FunctionId {
    let module = runtime.load_module(b".version 8.0 add").unwrap();
    runtime.function(module, "add", 0).unwrap()
}

fn launch(function: FunctionId) -> Launch<'static> {
    Launch { function, name: "add", grid: [7, 2, 1], threads: 128, shared_bytes: 64, overlap: false }
}

/// Enqueues an `add`.
fn enqueue(runtime: &dyn Runtime, stream: StreamId, function: FunctionId) -> Result<(), DeviceError> {
    // SAFETY: kernels don't run.
    unsafe { runtime.launch(stream, &launch(function), &[1; 24]) }
}

fn record(runtime: &dyn Runtime, stream: StreamId, function: FunctionId, nodes: usize) -> GraphId {
    runtime.begin_capture(stream).unwrap();
    (0..nodes).for_each(|_| enqueue(runtime, stream, function).unwrap());
    runtime.end_capture(stream).unwrap()
}

#[test]
fn all_devices_are_listed_and_only_usable_ones_are_opened() {
    let fake = fake();
    let found = devices(&CudaOptions::default()).unwrap();
    let names: Vec<&str> = found.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["Fake H100", "Fake T4"]);
    assert_eq!((found[0].arch.as_str(), found[0].memory_bytes, &found[0].problem), ("sm_90a", 1 << 30, &None));
    assert!(found[1].problem.as_ref().unwrap().contains("needs 8.0"), "{found:?}");
    let old = CudaRuntime::open(1, &CudaOptions::default()).err().unwrap().to_string();
    assert!(old.contains("cuda:1 (Fake T4): too old: compute capability 7.5"), "{old}");
    let missing = CudaRuntime::open(2, &CudaOptions::default()).err().unwrap().to_string();
    assert!(missing.contains("there is no cuda:2, CUDA 13.0"), "{missing}");
    assert!(missing.ends_with(" finds cuda:0 to cuda:1"), "{missing}");
    let runtime = fake.open();
    let info = runtime.info();
    assert_eq!((info.kind, info.index, info.wave, info.processors, info.shared_bytes), ("cuda", 0, 32, 132, 232448));
    assert!(info.mma && info.overlap && info.driver.starts_with("CUDA 13.0"), "{info:?}");
}

#[test]
fn a_launch_passes_everything_on() {
    let fake = fake();
    let runtime = fake.open();
    let stream = runtime.create_stream().unwrap();
    let function = add(&*runtime);
    let arguments: Vec<u8> = (0..24).collect();
    for overlap in [false, true] {
        // SAFETY: kernels don't run.
        unsafe { runtime.launch(stream, &Launch { overlap, ..launch(function) }, &arguments) }.unwrap();
        let seen: FakeLaunch = fake.get("fake_launch");
        assert_eq!((seen.grid, seen.block, seen.shared), ([7, 2, 1], [128, 1, 1], 64));
        assert_eq!((seen.overlap, seen.argument_bytes), (u32::from(overlap), 24));
        assert_eq!(seen.arguments[..24], arguments);
    }
    // SAFETY: as above; the driver refuses it.
    let error = unsafe { runtime.launch(stream, &launch(function), &arguments[..16]) }.unwrap_err().to_string();
    assert!(
        error.starts_with(
            "cuda:0: launch of add (grid 7 x 2 x 1, 128 threads, 64 bytes of dynamic shared memory, 16 bytes"
        ),
        "{error}"
    );
    runtime.destroy_stream(stream);
}

#[test]
fn an_error_is_told_with_the_drivers_code_and_words() {
    let fake = fake();
    let runtime = fake.open();
    let stream = runtime.create_stream().unwrap();
    fake.fail("cuStreamSynchronize", 4711);
    let error = runtime.synchronize(stream).unwrap_err();
    assert!(matches!(&error, DeviceError::Driver { device, code: 4711, .. } if device == "cuda:0"), "{error:?}");
    assert!(error.to_string().contains("a code that this driver doesn't explain"), "{error}");
    runtime.synchronize(stream).unwrap();
    runtime.destroy_stream(stream);
}

#[test]
fn a_lost_device_is_told_by_every_call_and_dropping_does_no_harm() {
    let fake = fake();
    let runtime = fake.open();
    let dynamic: Arc<dyn Runtime> = runtime.clone();
    let memory = DeviceMemory::new(&dynamic, 100, "a test").unwrap();
    let (stream, event) = (Stream::new(&dynamic).unwrap(), Event::new(&dynamic).unwrap());
    let function = add(&*runtime);
    fake.set("fake_lost", 700);
    let results = [
        stream.synchronize(),
        enqueue(&*runtime, stream.id(), function),
        runtime.allocate(1, "a test").map(drop),
        runtime.query(event.id()).map(drop),
        runtime.record(event.id(), stream.id()),
        runtime.begin_capture(stream.id()),
        runtime.load_module(b".version 8.0").map(drop),
    ];
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(&error, DeviceError::Lost { device, code: 700, .. } if device == "cuda:0"), "{error:?}");
        let words = "700 (CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered); restart the process";
        assert!(error.to_string().contains(words), "{error}");
    }
    drop((memory, stream, event));
    fake.set("fake_lost", 0);
}

#[test]
fn memory_that_is_not_there_is_told_with_its_use_and_what_is_free() {
    let fake = fake();
    let runtime: Arc<dyn Runtime> = fake.open();
    let held = DeviceMemory::new(&runtime, 1 << 29, "a test").unwrap();
    let error = runtime.allocate(1 << 30, "the KV cache").unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { bytes, what: "the KV cache", .. } if bytes == 1 << 30));
    let free = runtime.memory().unwrap().free;
    assert!(error.to_string().contains(&format!("{free} of {} bytes of device memory are free", 1 << 30)), "{error}");
    fake.fail("cuMemHostAlloc", 2);
    let error = PinnedMemory::new(&runtime, 4096).err().unwrap();
    assert!(matches!(error, DeviceError::OutOfMemory { what: "pinned host memory", .. }), "{error:?}");
    drop(held);
    drop(DeviceMemory::new(&runtime, 1 << 29, "a test").unwrap());
}

#[test]
fn copies_go_where_they_should() {
    let fake = fake();
    let runtime: Arc<dyn Runtime> = fake.open();
    let stream = Stream::new(&runtime).unwrap();
    let (a, b) = (DeviceMemory::new(&runtime, 64, "a").unwrap(), DeviceMemory::new(&runtime, 64, "b").unwrap());
    let bytes: Vec<u8> = (0..64).collect();
    let mut back = vec![0; 64];
    // SAFETY: all are 64 bytes, and this driver copies at once.
    unsafe {
        runtime.copy_to_device(stream.id(), a.base(), bytes.as_ptr(), 64).unwrap();
        runtime.copy_on_device(stream.id(), b.base(), a.base(), 64).unwrap();
        runtime.fill(stream.id(), b.base().offset(60), 9, 4).unwrap();
        runtime.copy_to_host(stream.id(), back.as_mut_ptr(), b.base(), 64).unwrap();
        // Nothing is nothing, whatever the addresses.
        runtime.copy_to_device(stream.id(), DevicePtr(0), std::ptr::null(), 0).unwrap();
        runtime.fill(stream.id(), DevicePtr(0), 0, 0).unwrap();
    }
    assert_eq!((&back[..60], &back[60..]), (&bytes[..60], &[9; 4][..]));
}

#[test]
fn events_that_are_not_ready_are_no_errors() {
    let fake = fake();
    let runtime: Arc<dyn Runtime> = fake.open();
    let (stream, first, second) =
        (Stream::new(&runtime).unwrap(), Event::new(&runtime).unwrap(), Event::new(&runtime).unwrap());
    runtime.record(first.id(), stream.id()).unwrap();
    fake.set("fake_busy", 1);
    assert!(!runtime.query(first.id()).unwrap());
    fake.set("fake_busy", 0);
    assert!(runtime.query(first.id()).unwrap());
    assert_eq!(runtime.elapsed(first.id(), second.id()).unwrap(), Duration::from_micros(1500));
    assert_eq!(runtime.elapsed(first.id(), first.id()).unwrap(), Duration::ZERO);
}

#[test]
fn every_thread_gets_the_context_once_also_after_the_device_was_closed() {
    let fake = fake();
    for _ in 0..2 {
        let runtime = fake.open();
        assert_eq!(fake.retained(0), 1);
        let stream = runtime.create_stream().unwrap();
        let before: c_int = fake.get("fake_context_switches");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..10).for_each(|_| runtime.synchronize(stream).unwrap()));
            }
        });
        (0..10).for_each(|_| runtime.synchronize(stream).unwrap());
        assert_eq!(fake.get::<c_int>("fake_context_switches") - before, 3);
        runtime.destroy_stream(stream);
        drop(runtime);
        assert_eq!(fake.retained(0), 0);
    }
}

#[test]
fn shared_memory_of_a_kernel_is_only_raised() {
    let fake = fake();
    let runtime = fake.open();
    let stream = runtime.create_stream().unwrap();
    let module = runtime.load_module(b".version 8.0 add").unwrap();
    let function = runtime.function(module, "add", 100 << 10).unwrap();
    runtime.function(module, "add", 0).unwrap();
    let large = Launch { shared_bytes: 100 << 10, ..launch(function) };
    // SAFETY: kernels don't run.
    unsafe { runtime.launch(stream, &large, &[0; 24]) }.unwrap();
    let error = runtime.function(module, "add", 1 << 20).unwrap_err().to_string();
    assert!(error.contains("of add: 1048576 bytes of dynamic shared memory"), "{error}");
    let error = runtime.function(module, "gone", 0).unwrap_err().to_string();
    assert!(error.contains("cuModuleGetFunction of gone failed: 500"), "{error}");
    let resources = runtime.resources(function).unwrap();
    assert_eq!((resources.registers, resources.shared_bytes, resources.local_bytes), (32, 1024, 16));
    runtime.destroy_stream(stream);
}

#[test]
fn an_image_that_is_refused_is_told_with_the_drivers_log() {
    let fake = fake();
    let runtime = fake.open();
    let error = runtime.load_module(b".version 8.0\nunknown").unwrap_err().to_string();
    assert!(error.contains("cuModuleLoadDataEx of 20 bytes (line 2: unknown instruction) failed: 218"), "{error}");
    let error = runtime.load_module(b"\x7fELF\x02\x01").unwrap_err().to_string();
    assert!(error.contains("the image ends before its header"), "{error}");
}

#[test]
fn graphs_are_kept_updated_and_ended() {
    let fake = fake();
    let live = || (fake.get::<c_int>("fake_live_graphs"), fake.get::<c_int>("fake_live_executables"));
    let runtime = fake.open();
    let stream = runtime.create_stream().unwrap();
    let function = add(&*runtime);
    let graph = record(&*runtime, stream, function, 3);
    assert_eq!((runtime.graph_nodes(graph).unwrap(), live()), (3, (1, 1)));
    let same = record(&*runtime, stream, function, 3);
    assert!(runtime.update_graph(graph, same).unwrap());
    assert_eq!(live(), (1, 1));
    let other = record(&*runtime, stream, function, 4);
    // This driver leaves an executable that it could not update unusable.
    assert!(!runtime.update_graph(graph, other).unwrap());
    assert_eq!(live(), (2, 2));
    for graph in [graph, other] {
        // SAFETY: kernels don't run.
        unsafe { runtime.launch_graph(graph, stream) }.unwrap();
    }
    for gone in [same, GraphId(4711)] {
        // SAFETY: as above.
        let error = unsafe { runtime.launch_graph(gone, stream) }.unwrap_err().to_string();
        assert!(error.contains("there is no such graph"), "{error}");
        assert!(runtime.update_graph(graph, gone).is_err() && runtime.update_graph(gone, graph).is_err());
    }
    runtime.destroy_graph(graph);
    runtime.destroy_graph(graph);
    assert_eq!(live(), (1, 1));
    runtime.destroy_stream(stream);
    drop(runtime);
    assert_eq!(live(), (0, 0));
}

#[test]
fn a_capture_that_went_wrong_is_an_error_and_leaves_nothing() {
    let fake = fake();
    let runtime = fake.open();
    let stream = runtime.create_stream().unwrap();
    let function = add(&*runtime);
    let end = |runtime: &CudaRuntime| runtime.end_capture(stream).unwrap_err().to_string();
    assert!(end(&runtime).contains("cuStreamEndCapture failed: 401"));
    runtime.begin_capture(stream).unwrap();
    assert!(end(&runtime).contains("the capture recorded nothing"));
    runtime.begin_capture(stream).unwrap();
    assert!(matches!(runtime.synchronize(stream), Err(DeviceError::Driver { code: 900, .. })));
    assert!(end(&runtime).contains("failed: 901"));
    runtime.begin_capture(stream).unwrap();
    enqueue(&*runtime, stream, function).unwrap();
    fake.fail("cuGraphInstantiateWithFlags", 2);
    assert!(end(&runtime).contains("cuGraphInstantiateWithFlags failed: 2"));
    assert_eq!(fake.get::<c_int>("fake_live_graphs"), 0);
    runtime.destroy_graph(record(&*runtime, stream, function, 1));
    runtime.destroy_stream(stream);
}
