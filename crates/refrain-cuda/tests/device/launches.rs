//! Loading code and launching kernels.

use super::{ACCUMULATE, Accumulate, Arguments, download_f32, kernel, ramp, runtime, upload_f32};
use refrain_cuda::kernel_resources;
use refrain_device::{DeviceError, DeviceMemory, FunctionId, KernelSource, Launch, Stream};

#[test]
fn a_kernel_reads_its_arguments_and_writes_its_result() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let function = kernel(&runtime, ACCUMULATE, "accumulate", 0);
    for count in [1, 255, 256, 100_001] {
        let x = upload_f32(&runtime, &stream, &ramp(count));
        let out = upload_f32(&runtime, &stream, &vec![3.0; count]);
        Accumulate::new(function, &x, &out, 0.5, count).enqueue(&runtime, stream.id(), false).unwrap();
        let expected: Vec<f32> = ramp(count).iter().map(|value| 3.0 * 0.5 + value).collect();
        assert_eq!(download_f32(&runtime, &stream, &out), expected);
    }
}

pub(crate) const MANY: &str = "
struct ManyArgs { u32* out; u32 values[900]; };
KX_KERNEL(many, ManyArgs, 128) {
    for (u32 i = kx_tid(); i < 900; i += 128) args.out[i] = args.values[i];
}";

#[test]
fn large_arguments_arrive_whole() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let function = kernel(&runtime, MANY, "many", 0);
    let out = DeviceMemory::new(&runtime, 900 * 4, "a test").unwrap();
    let values = (0..900).map(|i| i * i + 1);
    let arguments = values.clone().fold(Arguments::default().pointer(out.base()), Arguments::word).blob();
    let launch = Launch { function, name: "many", grid: [1, 1, 1], threads: 128, shared_bytes: 0, overlap: false };
    // SAFETY: the struct of the kernel, and the memory stays.
    unsafe { runtime.launch(stream.id(), &launch, &arguments) }.unwrap();
    let words: Vec<u32> = download_f32(&runtime, &stream, &out).iter().map(|value| value.to_bits()).collect();
    assert_eq!(words, values.collect::<Vec<u32>>());
}

/// Every kernel begins while the one before still runs, and all the same sees all of its writes.
#[test]
fn overlapping_kernels_keep_their_order() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let function = kernel(&runtime, ACCUMULATE, "accumulate", 0);
    let count = 1 << 20;
    let x = upload_f32(&runtime, &stream, &vec![1.0; count]);
    let out = upload_f32(&runtime, &stream, &vec![0.0; count]);
    let chain = Accumulate::new(function, &x, &out, 0.5, count);
    for _ in 0..200 {
        chain.enqueue(&runtime, stream.id(), true).unwrap();
    }
    // 1 + 1/2 + 1/4 + ..., and from there on by ones: a write that was not seen is missing for good.
    assert!(download_f32(&runtime, &stream, &out).iter().all(|&value| value == 2.0));
    let chain = Accumulate::new(function, &x, &out, 1.0, count);
    for _ in 0..200 {
        chain.enqueue(&runtime, stream.id(), true).unwrap();
    }
    assert!(download_f32(&runtime, &stream, &out).iter().all(|&value| value == 202.0));
}

pub(crate) const SHARED: &str = "
struct SharedArgs { u32* out; u32 words; };
KX_KERNEL(through_shared, SharedArgs, 256) {
    KX_DYNAMIC_SHARED(u32, room);
    for (u32 i = kx_tid(); i < args.words; i += 256) room[i] = i ^ 0x5aa5u;
    kx_sync();
    for (u32 i = kx_tid(); i < args.words; i += 256) args.out[i] = room[args.words - 1 - i];
}";

#[test]
fn a_block_may_have_all_shared_memory_of_the_device_and_no_more() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let most = runtime.info().shared_bytes;
    let function = kernel(&runtime, SHARED, "through_shared", most);
    let words = most / 4;
    let out = DeviceMemory::new(&runtime, most as usize, "a test").unwrap();
    let arguments = Arguments::default().pointer(out.base()).word(words).blob();
    let launch = |shared_bytes| Launch {
        function,
        name: "through_shared",
        grid: [1, 1, 1],
        threads: 256,
        shared_bytes,
        overlap: false,
    };
    // SAFETY: the struct of the kernel, and the memory stays.
    unsafe { runtime.launch(stream.id(), &launch(most), &arguments) }.unwrap();
    let found: Vec<u32> = download_f32(&runtime, &stream, &out).iter().map(|value| value.to_bits()).collect();
    assert_eq!(found, (0..words).rev().map(|i| i ^ 0x5aa5).collect::<Vec<u32>>());
    // SAFETY: as above; this one is refused.
    let error = unsafe { runtime.launch(stream.id(), &launch(most + 1024), &arguments) }.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, DeviceError::Driver { code: 1, .. }), "{text}");
    assert!(text.contains("through_shared (grid 1 x 1 x 1, 256 threads") && text.contains("CUDA_ERROR_INVALID_VALUE"));
}

#[test]
fn what_a_kernel_needs_is_what_the_compiler_reported() {
    let Some(runtime) = runtime() else { return };
    let source = KernelSource {
        name: "needs.cu".to_owned(),
        text: "extern \"C\" __global__ void needs(float* out) {
    __shared__ float room[300];
    room[threadIdx.x] = out[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = room[299 - threadIdx.x];
}"
        .to_owned(),
        headers: Vec::new(),
        defines: Vec::new(),
    };
    let compiled = runtime.compiler().unwrap().compile(&source, &runtime.info().arch).unwrap();
    let module = runtime.load_module(&compiled.image).unwrap();
    let resources = runtime.resources(runtime.function(module, "needs", 0).unwrap()).unwrap();
    let reported = kernel_resources(&compiled.log)[0].1;
    assert_eq!((resources.registers, resources.local_bytes), (reported.registers, reported.local_bytes));
    // The driver adds what it reserves, 1 KiB on recent devices.
    assert!(reported.shared_bytes == 1200 && (1200..=1200 + 2048).contains(&resources.shared_bytes), "{resources:?}");
    let error = runtime.function(module, "other", 0).unwrap_err().to_string();
    assert!(error.contains("other") && error.contains("CUDA_ERROR_NOT_FOUND"), "{error}");
    // SAFETY: nothing of it runs.
    unsafe { runtime.unload_module(module) };
}

#[test]
fn code_for_another_device_is_refused_with_the_drivers_words() {
    let Some(runtime) = runtime() else { return };
    let source = KernelSource {
        name: "other.cu".to_owned(),
        text: "extern \"C\" __global__ void other() {}".to_owned(),
        headers: Vec::new(),
        defines: Vec::new(),
    };
    let arch = if runtime.info().arch == "sm_90a" { "sm_80" } else { "sm_90a" };
    let image = runtime.compiler().unwrap().compile(&source, arch).unwrap().image;
    let error = runtime.load_module(&image).unwrap_err();
    eprintln!("{error}");
    assert!(matches!(error, DeviceError::Driver { code: 200 | 209, .. }), "{error:?}");
    let error = runtime.load_module(&image[..image.len() / 2]).unwrap_err().to_string();
    assert!(error.contains("the image ends before its"), "{error}");
}

#[test]
fn an_empty_grid_is_an_error_that_names_the_kernel() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let function = kernel(&runtime, ACCUMULATE, "accumulate", 0);
    let launch =
        Launch { function, name: "accumulate", grid: [0, 1, 1], threads: 256, shared_bytes: 0, overlap: false };
    // SAFETY: nothing runs.
    let error = unsafe { runtime.launch(stream.id(), &launch, &[0; 24]) }.unwrap_err().to_string();
    assert!(error.contains("launch of accumulate (grid 0 x 1 x 1, 256 threads"), "{error}");
}

#[test]
fn several_threads_launch_at_once() {
    let Some(runtime) = runtime() else { return };
    let function = kernel(&runtime, ACCUMULATE, "accumulate", 0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let runtime = runtime.clone();
            scope.spawn(move || check_thread(&runtime, function, thread as f32));
        }
    });
}

fn check_thread(runtime: &std::sync::Arc<dyn refrain_device::Runtime>, function: FunctionId, start: f32) {
    let stream = Stream::new(runtime).unwrap();
    let x = upload_f32(runtime, &stream, &[1.0; 1000]);
    let out = upload_f32(runtime, &stream, &[start; 1000]);
    let chain = Accumulate::new(function, &x, &out, 1.0, 1000);
    for _ in 0..500 {
        chain.enqueue(runtime, stream.id(), true).unwrap();
    }
    assert_eq!(download_f32(runtime, &stream, &out), vec![start + 500.0; 1000]);
}
