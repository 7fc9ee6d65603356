//! Memory, copies, streams and events.

use super::{download, runtime, upload};
use refrain_cuda::{CudaOptions, CudaRuntime, devices};
use refrain_device::{DeviceError, DeviceMemory, Event, PinnedMemory, Stream};

#[test]
fn the_device_is_described() {
    let Some(runtime) = runtime() else { return };
    let info = runtime.info();
    eprintln!("{info:?}\n{:?}", runtime.memory().unwrap());
    let summary = &devices(&CudaOptions::default()).unwrap()[0];
    assert_eq!((info.kind, info.index, info.wave), ("cuda", 0, 32));
    assert_eq!((&info.name, &info.arch), (&summary.name, &summary.arch));
    assert!(info.mma && info.processors > 0 && info.shared_bytes >= 99 * 1024, "{info:?}");
    assert_eq!(info.overlap, summary.compute_capability >= (9, 0));
    assert!(summary.problem.is_none() && summary.memory_bytes > 1 << 30);
}

#[test]
fn a_device_that_is_not_there_is_an_error_that_names_those_that_are() {
    let Some(_) = runtime() else { return };
    let error = CudaRuntime::open(1000, &CudaOptions::default()).err().expect("there is no such device");
    assert!(matches!(error, DeviceError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("there is no cuda:1000") && error.to_string().contains("cuda:0"), "{error}");
}

#[test]
fn bytes_come_back_as_they_went() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    for length in [1, 255, 4096, 1_000_003] {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
        let there = upload(&runtime, &stream, &bytes);
        let copied = DeviceMemory::new(&runtime, length, "a test").unwrap();
        // SAFETY: both are as large, and apart.
        unsafe { runtime.copy_on_device(stream.id(), copied.base(), there.base(), length) }.unwrap();
        assert_eq!(copied.base().0 % 256, 0);
        assert!(download(&runtime, &stream, &copied) == bytes, "{length} bytes");
        // SAFETY: inside the memory.
        unsafe { runtime.fill(stream.id(), copied.base().offset(length / 2), 0xa5, length - length / 2) }.unwrap();
        let filled = download(&runtime, &stream, &copied);
        assert!(filled[..length / 2] == bytes[..length / 2] && filled[length / 2..].iter().all(|&byte| byte == 0xa5));
    }
}

#[test]
fn pinned_memory_copies_beside_the_host_and_events_order_streams() {
    let Some(runtime) = runtime() else { return };
    let (first, second) = (Stream::new(&runtime).unwrap(), Stream::new(&runtime).unwrap());
    let length = 64 << 20;
    let mut from = PinnedMemory::new(&runtime, length).unwrap();
    let mut to = PinnedMemory::new(&runtime, length).unwrap();
    // SAFETY: no copy is under way.
    unsafe { from.slice() }.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 253) as u8);
    let memory = DeviceMemory::new(&runtime, length, "a test").unwrap();
    let (start, there, back) =
        (Event::new(&runtime).unwrap(), Event::new(&runtime).unwrap(), Event::new(&runtime).unwrap());
    runtime.record(start.id(), first.id()).unwrap();
    // SAFETY: everything is as large and stays until `back` has passed.
    unsafe { runtime.copy_to_device(first.id(), memory.base(), from.base(), length) }.unwrap();
    runtime.record(there.id(), first.id()).unwrap();
    runtime.wait(second.id(), there.id()).unwrap();
    // SAFETY: as above.
    unsafe { runtime.copy_to_host(second.id(), to.base(), memory.base(), length) }.unwrap();
    runtime.record(back.id(), second.id()).unwrap();
    runtime.synchronize_event(back.id()).unwrap();
    assert!(runtime.query(there.id()).unwrap() && runtime.query(back.id()).unwrap());
    // SAFETY: both copies have passed.
    let same = unsafe { from.slice() == to.slice() };
    assert!(same);
    let time = runtime.elapsed(start.id(), there.id()).unwrap();
    eprintln!("{length} bytes to the device in {time:?}: {:.1} GB/s", length as f64 / time.as_secs_f64() / 1e9);
    assert!(time.as_micros() > 0);
}

#[test]
fn too_much_memory_is_an_error_with_the_use_and_what_is_free() {
    let Some(runtime) = runtime() else { return };
    let bytes = runtime.memory().unwrap().total * 4;
    let error = runtime.allocate(bytes, "the KV cache").unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { bytes: asked, .. } if asked == bytes), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("the KV cache") && text.contains("bytes of device memory are free"), "{text}");
    // And nothing is lost.
    drop(DeviceMemory::new(&runtime, 1 << 20, "a test").unwrap());
}

#[test]
fn memory_that_is_given_back_is_free_again() {
    let Some(runtime) = runtime() else { return };
    // Twice most of it, which doesn't fit at once; other tests hold little.
    let most = runtime.memory().unwrap().free / 10 * 7;
    for _ in 0..2 {
        drop(DeviceMemory::new(&runtime, most, "a test").unwrap());
    }
}
