//! Clang and hipRTC compile the dialect for the GPUs that this crate is for, without one.

mod support;

use refrain_device::{Compiler, DeviceError};
use refrain_hip::{ClangCompiler, CodeObject, HipOptions, HiprtcCompiler};
use refrain_testkit::clang19;
use support::{EVERYTHING, debian_hip, source};

fn clang() -> Option<ClangCompiler> {
    Some(ClangCompiler::new(&clang19()?).unwrap())
}

/// Compiles the kernel that uses everything, and checks what no kernel may have.
fn check_everything(compiler: &dyn Compiler, arch: &str, wave: u32) {
    let compiled = compiler.compile(&source("everything.cu", EVERYTHING, &[]), arch).unwrap();
    let object = CodeObject::read(&compiled.image).unwrap();
    assert!(object.target.starts_with(arch), "{}", object.target);
    let kernel = object.kernel("everything").unwrap();
    assert_eq!((kernel.wave, kernel.max_threads, kernel.argument_bytes), (wave, 256, Some(40)), "{arch}: {kernel:?}");
    let spills = (kernel.vector_spills, kernel.scalar_spills, kernel.private_bytes);
    assert_eq!(spills, (0, 0, 0), "{arch}: {kernel:?}");
    // The arrays, rounded up to the alignment of what comes behind them at the launch.
    assert_eq!(kernel.shared_bytes, 4096 + 128, "{arch}: {kernel:?}");
    assert!((1..=96).contains(&kernel.vector_registers), "{arch}: {kernel:?}");
    assert!(compiled.log.contains("everything (gfx"), "{}", compiled.log);
    assert!(!compiled.log.contains("warning"), "{}", compiled.log);
}

#[test]
fn clang_compiles_the_whole_dialect_for_every_generation() {
    let Some(clang) = clang() else { return };
    for (arch, wave) in
        [("gfx906", 64), ("gfx908", 64), ("gfx90a", 64), ("gfx942", 64), ("gfx1030", 32), ("gfx1100", 32)]
    {
        check_everything(&clang, arch, wave);
    }
}

#[test]
fn hiprtc_compiles_the_whole_dialect() {
    let Some(library) = debian_hip() else { return };
    let compiler = HiprtcCompiler::load(&HipOptions { library: Some(library), ..HipOptions::default() }).unwrap();
    assert!(compiler.describe().starts_with("hipRTC 9.0 -O3"), "{}", compiler.describe());
    check_everything(&compiler, "gfx906", 64);
}

#[test]
fn compilers_of_one_hiprtc_take_turns() {
    let Some(library) = debian_hip() else { return };
    let options = HipOptions { library: Some(library), ..HipOptions::default() };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| check_everything(&HiprtcCompiler::load(&options).unwrap(), "gfx906", 64));
        }
    });
}

#[test]
fn the_same_source_gives_the_same_bytes() {
    let Some(clang) = clang() else { return };
    let compile = || clang.compile(&source("everything.cu", EVERYTHING, &[]), "gfx906").unwrap().image;
    assert!(compile() == compile());
}

#[test]
fn a_mistake_is_shown_where_it_is() {
    let bad = source("bad.cu", "#include \"kx.h\"\nKX_DEV f32 wrong() { return SIZE + nonsense; }\n", &[("SIZE", "3")]);
    let check = |compiler: &dyn Compiler| {
        let error = compiler.compile(&bad, "gfx906").unwrap_err();
        assert!(matches!(error, DeviceError::Compile { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("bad.cu") && text.contains("gfx906") && text.contains("nonsense"), "{text}");
        assert!(!text.contains("SIZE'"), "the define is known: {text}");
    };
    if let Some(clang) = clang() {
        check(&clang);
        let text = clang.compile(&bad, "gfx906").unwrap_err().to_string();
        assert!(text.contains("\nbad.cu:2:"), "{text}");
        let unknown = clang.compile(&source("ok.cu", "#include \"kx.h\"\n", &[]), "gfx9999").unwrap_err().to_string();
        assert!(unknown.contains("gfx9999"), "{unknown}");
    }
    if let Some(library) = debian_hip() {
        check(&HiprtcCompiler::load(&HipOptions { library: Some(library), ..HipOptions::default() }).unwrap());
    }
}
