//! NVRTC from the package index compiles kernels of the dialect, without a GPU.

use refrain_cuda::{CudaOptions, NvrtcCompiler, kernel_resources};
use refrain_device::{Compiler, DeviceError, KernelSource};
use refrain_testkit::{nvrtc_dir, workspace_root};

fn compiler() -> Option<NvrtcCompiler> {
    let options = CudaOptions { library_dirs: vec![nvrtc_dir()?] };
    Some(NvrtcCompiler::load(&options).unwrap_or_else(|error| panic!("{error}")))
}

fn source(text: &str) -> KernelSource {
    let header = |name: &str| {
        let path = workspace_root().join("kernels").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (name.to_owned(), text)
    };
    KernelSource {
        name: "test.cu".to_owned(),
        text: text.to_owned(),
        headers: vec![header("kx.h"), header("kx_cuda.h")],
        defines: vec![("WIDTH".to_owned(), "64".to_owned()), ("X".to_owned(), "bf16".to_owned())],
    }
}

/// A row sum in the dialect, with shared memory and a define as type and size.
const ROW_SUM: &str = r#"#include "kx.h"
struct RowSumArgs { const X* x; f32* out; };
KX_KERNEL(row_sum, RowSumArgs, 64) {
    KX_SHARED f32 room[64 / KX_WAVE];
    kx_wait_for_previous();
    const f32 sum = kx_block_sum<64>(kx_float(args.x[kx_block_x() * WIDTH + kx_tid()]), room);
    if (kx_tid() == 0) args.out[kx_block_x()] = sum;
    kx_let_next_start();
}
"#;

#[test]
fn a_kernel_compiles_for_two_architectures_and_its_needs_are_reported() {
    let Some(compiler) = compiler() else { return };
    let mut images = Vec::new();
    for arch in ["sm_80", "sm_90a"] {
        let compiled = compiler.compile(&source(ROW_SUM), arch).unwrap_or_else(|error| panic!("{error}"));
        assert!(compiled.image.starts_with(b"\x7fELF"), "{arch}");
        let kernels = kernel_resources(&compiled.log);
        let [(name, resources)] = kernels.as_slice() else { panic!("{arch}: {}", compiled.log) };
        assert_eq!(name, "row_sum");
        assert!((8..64).contains(&resources.registers), "{arch}: {resources:?}\n{}", compiled.log);
        assert_eq!((resources.shared_bytes, resources.local_bytes), (8, 0), "{arch}: {}", compiled.log);
        images.push(compiled.image);
    }
    assert_ne!(images[0], images[1]);
}

#[test]
fn spills_are_reported() {
    let Some(compiler) = compiler() else { return };
    // An array that is indexed by a value has to lie in memory.
    let text = r#"struct Args { const int* at; float* out; };
extern "C" __global__ void indexed(const __grid_constant__ Args args) {
    float values[64];
    for (int i = 0; i < 64; i++) values[i] = args.out[i];
    for (int i = 0; i < 64; i++) values[args.at[i]] += args.out[64 + i];
    args.out[threadIdx.x] = values[args.at[threadIdx.x]];
}
"#;
    let log = compiler.compile(&source(text), "sm_90a").unwrap_or_else(|error| panic!("{error}")).log;
    assert!(kernel_resources(&log)[0].1.local_bytes >= 256, "{log}");
}

#[test]
fn an_error_names_the_line_and_the_compiler() {
    let Some(compiler) = compiler() else { return };
    let error =
        compiler.compile(&source("#include \"kx.h\"\n\nKX_DEV f32 half(f32 x) { return x * hlaf; }\n"), "sm_90a");
    let Err(DeviceError::Compile { kernel, arch, compiler, log }) = error else { panic!("{error:?}") };
    assert_eq!((kernel.as_str(), arch.as_str(), compiler.as_str()), ("test.cu", "sm_90a", "NVRTC 13.0"));
    assert!(log.contains("test.cu(3)") && log.contains("hlaf"), "{log}");
}

#[test]
fn an_error_in_a_header_names_the_header() {
    let Some(compiler) = compiler() else { return };
    let mut source = source("#include \"extra.h\"\n");
    source.headers.push(("extra.h".to_owned(), "int fine;\nint broken = ;\n".to_owned()));
    let error = compiler.compile(&source, "sm_80").unwrap_err().to_string();
    assert!(error.contains("extra.h(2)"), "{error}");
}

#[test]
fn an_unknown_architecture_is_an_error_that_names_it() {
    let Some(compiler) = compiler() else { return };
    let error = compiler.compile(&source(ROW_SUM), "gfx906").unwrap_err();
    assert!(matches!(error, DeviceError::Compile { .. }), "{error:?}");
    assert!(error.to_string().contains("gfx906"), "{error}");
}

#[test]
fn headers_come_from_the_source_and_from_nowhere_else() {
    let Some(compiler) = compiler() else { return };
    let error = compiler.compile(&source("#include \"Cargo.toml\"\n"), "sm_80").unwrap_err().to_string();
    assert!(error.contains("Cargo.toml"), "{error}");
    // Also where a file of that name lies in the folder in which the process runs.
    assert!(std::path::Path::new("Cargo.toml").exists());
    assert!(error.contains("could not open"), "{error}");
}

#[test]
fn the_description_has_version_file_and_options() {
    let Some(compiler) = compiler() else { return };
    let described = compiler.describe();
    assert!(described.starts_with("NVRTC 13.0 (libnvrtc.so.13"), "{described}");
    assert!(described.contains(" bytes) --std=c++17 "), "{described}");
    assert!(compiler.path().ends_with("libnvrtc.so.13"), "{}", compiler.path().display());
}

#[test]
fn threads_compile_at_once() {
    let Some(compiler) = compiler() else { return };
    std::thread::scope(|scope| {
        for width in [64, 128, 256, 512] {
            let compiler = &compiler;
            scope.spawn(move || {
                let mut source = source(ROW_SUM);
                source.defines[0].1 = width.to_string();
                compiler.compile(&source, "sm_90a").unwrap_or_else(|error| panic!("{error}"));
            });
        }
    });
}
