//! The way of a kernel from its source onto the device: by hipRTC as the device has it, and by clang as packs have it.

mod support;

use refrain_device::{DeviceError, Launch, Runtime};
use refrain_hip::{ClangCompiler, CodeObject};
use refrain_testkit::clang19;
use support::fake::{Args, Bench, Fake, KERNELS, for_cpu};
use support::source;

#[test]
fn a_device_compiles_with_the_hiprtc_of_its_library() {
    let fake = Fake::new();
    let bench = Bench::new(&fake, &[2.0; 256]);
    let text = "#include \"kx.h\"\nstruct Args { f32* data; f32 value; u32 n; };\n\
                KX_KERNEL(fill, Args, 64) { if (kx_tid() < args.n) args.data[kx_tid()] = FACTOR * args.value; }\n";
    let compiler = bench.runtime.compiler().unwrap();
    assert!(compiler.describe().contains("hipRTC 9.0"), "{}", compiler.describe());
    let compiled = compiler.compile(&source("fill.cu", text, &[("FACTOR", "3.0f")]), "gfx906").unwrap();
    let module = bench.runtime.load_module(&compiled.image).unwrap();
    let function = bench.runtime.function(module, "fill", 0).unwrap();
    let launch = Launch { function, name: "fill", grid: [1, 1, 1], threads: 64, shared_bytes: 0, overlap: false };
    let arguments = Args { n: 60, ..bench.args(5.0) };
    // SAFETY: the kernel's arguments.
    unsafe { bench.runtime.launch(bench.stream, &launch, arguments.bytes()) }.unwrap();
    let values = bench.read();
    assert!(values[..60].iter().all(|&value| value == 15.0) && values[60..].iter().all(|&value| value == 2.0));
    let error = compiler.compile(&source("bad.cu", "nonsense", &[]), "gfx906").unwrap_err();
    assert!(matches!(error, DeviceError::Compile { .. }) && error.to_string().contains("nonsense"), "{error}");
}

#[test]
fn a_device_without_hiprtc_compiles_with_clang_or_says_what_to_install() {
    let fake = Fake::without(&["hiprtcCompileProgram", "hiprtcGetCode"]);
    let runtime = fake.open();
    match runtime.compiler() {
        Ok(compiler) => assert!(compiler.describe().contains("clang version"), "{}", compiler.describe()),
        Err(DeviceError::NoCompiler { why, .. }) => {
            assert!(why.contains("hipRTC is neither in") && why.contains("install clang and lld"), "{why}");
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_real_code_object_is_checked_by_its_metadata() {
    let Some(clang) = clang19() else { return };
    let clang = ClangCompiler::new(&clang).unwrap();
    let compile = |arch: &str| {
        let compiler: &dyn refrain_device::Compiler = &clang;
        compiler.compile(&source("kernels.cu", KERNELS, &[]), arch).unwrap().image
    };
    let image = compile("gfx906");
    let fake = Fake::new();
    fake.register(&image, &for_cpu("kernels.cu", KERNELS));
    let bench = Bench::new(&fake, &[1.0; 512]);
    let runtime = &bench.runtime;
    let module = runtime.load_module(&image).unwrap();
    let function = runtime.function(module, "reverse", 1024).unwrap();
    let object = CodeObject::read(&image).unwrap();
    let metadata = object.kernel("reverse").unwrap();
    let resources = runtime.resources(function).unwrap();
    assert_eq!((resources.registers, resources.shared_bytes), (metadata.vector_registers, 1024));
    let good = Launch { function, name: "reverse", grid: [2, 1, 1], threads: 256, shared_bytes: 1024, overlap: false };
    let arguments = bench.args(0.0);
    // SAFETY: the kernel's arguments, except where the launch is refused.
    let launch = |launch: Launch<'_>, arguments: &[u8]| unsafe { runtime.launch(bench.stream, &launch, arguments) };
    launch(good, arguments.bytes()).unwrap();
    assert!(bench.read().iter().all(|&value| value == 65.0));
    let why = |result: Result<(), DeviceError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, DeviceError::InvalidStep { .. }), "{error}");
        error.to_string()
    };
    let text = why(launch(good, &arguments.bytes()[..12]));
    assert!(text.contains("kernel reverse takes 16 bytes of arguments, got 12"), "{text}");
    let text = why(launch(Launch { threads: 512, ..good }, arguments.bytes()));
    assert!(text.contains("compiled for 256 threads, launched with 512"), "{text}");
    let text = why(launch(Launch { shared_bytes: 65000, ..good }, arguments.bytes()));
    assert!(text.contains("1024 and 65000 bytes of shared memory, a block has 65536"), "{text}");
    assert!(runtime.function(module, "reverse", 65000).is_err());
    // Another card's code, of the same kernels.
    let error = runtime.load_module(&compile("gfx908")).unwrap_err().to_string();
    assert!(error.contains("(code for gfx908)") && error.contains("209"), "{error}");
    // A bundle of several is HIP's business, not ours.
    let error =
        runtime.load_module(b"__CLANG_OFFLOAD_BUNDLE__ of code objects, which the fake does not know").unwrap_err();
    assert!(error.to_string().contains("it is a bundle of code objects"), "{error}");
}
