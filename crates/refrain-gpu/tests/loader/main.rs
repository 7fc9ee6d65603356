//! How kernels become code, on a runtime that only counts.

mod fake;

use fake::FakeRuntime;
use refrain_device::{DeviceError, Runtime};
use refrain_gpu::loader::{CompileUnit, Pack, compile, source_files, source_key, write_pack};
use refrain_gpu::{Kernel, KernelOptions, Kernels, PrepareReport};
use refrain_sim::{SimOptions, SimRuntime};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WITH_COMPILER: Option<&str> = Some("fake compiler 1");

/// A kernel of some source that exists; what is in it does not matter here.
fn kernel(entry: &'static str, width: usize) -> Kernel {
    Kernel::new(source_files().next().unwrap(), entry, 256).define("WIDTH", width)
}

fn kernels(count: usize) -> Vec<Kernel> {
    (0..count).map(|index| kernel("add", index)).collect()
}

/// A runtime with its kernels from these folders.
fn with(runtime: FakeRuntime, cache: Option<&Path>, packs: &[&Path]) -> (Arc<FakeRuntime>, Kernels) {
    let runtime = runtime.shared();
    let options = KernelOptions {
        cache_dir: cache.map(Path::to_owned),
        pack_dirs: packs.iter().map(|&path| path.to_owned()).collect(),
        jobs: 4,
        ..KernelOptions::default()
    };
    (runtime.clone(), Kernels::with(runtime, options))
}

fn nvidia(compiler: Option<&'static str>) -> FakeRuntime {
    FakeRuntime::new("sm_86", compiler)
}

fn prepare(kernels: &Kernels, wanted: &[Kernel]) -> Result<PrepareReport, DeviceError> {
    kernels.prepare(wanted, &|_, _| ())
}

/// Loaded before, from packs, from the cache, compiled.
fn counts(report: &PrepareReport) -> [usize; 4] {
    [report.loaded_before, report.from_packs, report.from_cache, report.compiled]
}

/// A folder with the pack of some kernels.
fn pack(arch: &str, kernels: &[Kernel]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = FakeRuntime::new(arch, Some("pack compiler"));
    let compiler = runtime.compiler().unwrap();
    let image = |kernel: &Kernel| {
        let unit = CompileUnit::from(kernel);
        (source_key(&unit.source()), compile(compiler, &unit, arch).unwrap().image)
    };
    let images: BTreeMap<_, _> = kernels.iter().map(image).collect();
    let path = write_pack(folder.path(), arch, "pack compiler", &images).unwrap();
    (folder, path)
}

#[test]
fn kernels_that_differ_in_their_entry_share_one_compilation() {
    let (runtime, kernels) = with(nvidia(WITH_COMPILER), None, &[]);
    let wanted = [kernel("add", 1), kernel("sub", 1), kernel("add", 2), kernel("add", 1).shared(512), kernel("add", 1)];
    let said = Mutex::new(Vec::new());
    let report = kernels.prepare(&wanted, &|done, total| said.lock().unwrap().push((done, total))).unwrap();
    assert_eq!(counts(&report), [0, 0, 0, 2]);
    assert_eq!(said.into_inner().unwrap(), [(0, 2), (1, 2), (2, 2)]);
    assert_eq!(runtime.compiled(), 2);
    assert_eq!(counts(&prepare(&kernels, &wanted).unwrap()), [2, 0, 0, 0]);
    for kernel in &wanted {
        kernels.get(kernel).unwrap();
    }
    assert_eq!(runtime.asked.lock().unwrap().images.len(), 2);
}

#[test]
fn given_folders_without_a_pack_for_the_device_are_told_and_usual_ones_are_not() {
    let (folder, _) = pack("sm_86", &kernels(2));
    let other = tempfile::tempdir().unwrap();
    let start = |given: &[&Path], usual: &[&Path]| {
        let folders = |paths: &[&Path]| paths.iter().map(|&path| path.to_owned()).collect();
        let (pack_dirs, usual_pack_dirs) = (folders(given), folders(usual));
        let options = KernelOptions { pack_dirs, usual_pack_dirs, ..KernelOptions::default() };
        prepare(&Kernels::with(nvidia(WITH_COMPILER).shared(), options), &kernels(2)).unwrap()
    };
    let report = start(&[], &[other.path(), folder.path()]);
    assert_eq!((counts(&report), report.notes), ([0, 2, 0, 0], Vec::new()));
    // What is given takes the place of what is usual.
    let report = start(&[other.path()], &[folder.path()]);
    assert_eq!(counts(&report), [0, 0, 0, 2]);
    assert_eq!(report.notes, [format!("there is no pack of kernels for sm_86 in {}", other.path().display())]);
    let report = start(&[other.path(), folder.path()], &[]);
    assert_eq!((counts(&report), report.notes), ([0, 2, 0, 0], Vec::new()));
}

/// The driver keeps one limit for each function: asking again with less would lower it under launches that need more.
#[test]
fn the_shared_memory_of_a_function_never_shrinks() {
    let (runtime, kernels) = with(nvidia(WITH_COMPILER), None, &[]);
    for bytes in [1000, 500, 2000, 1500] {
        kernels.get(&kernel("add", 1).shared(bytes)).unwrap();
    }
    let asked: Vec<u32> = runtime.asked.lock().unwrap().functions.iter().map(|(.., bytes)| *bytes).collect();
    assert_eq!(asked, [1000, 2000]);
}

#[test]
fn threads_that_want_the_same_kernel_compile_it_once() {
    let (runtime, kernels) = with(nvidia(WITH_COMPILER), None, &[]);
    let wanted = self::kernels(5);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                wanted.iter().for_each(|kernel| {
                    kernels.get(kernel).unwrap();
                })
            });
            scope.spawn(|| prepare(&kernels, &wanted).unwrap());
        }
    });
    assert_eq!((runtime.compiled(), runtime.asked.lock().unwrap().images.len()), (5, 5));
}

#[test]
fn a_second_start_compiles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let start = |runtime| prepare(&with(runtime, Some(&cache), &[]).1, &kernels(3)).unwrap();
    assert_eq!(counts(&start(nvidia(WITH_COMPILER))), [0, 0, 0, 3]);
    assert_eq!(counts(&start(nvidia(WITH_COMPILER))), [0, 0, 3, 0]);
    // Another compiler, architecture or driver has kernels of its own.
    assert_eq!(counts(&start(nvidia(Some("fake compiler 2")))), [0, 0, 0, 3]);
    assert_eq!(counts(&start(FakeRuntime::new("sm_80", WITH_COMPILER))), [0, 0, 0, 3]);
    let mut runtime = nvidia(WITH_COMPILER);
    runtime.info.driver = "2".to_owned();
    assert_eq!(counts(&start(runtime)), [0, 0, 0, 3]);
    assert_eq!(counts(&start(nvidia(WITH_COMPILER))), [0, 0, 3, 0]);
}

#[test]
fn a_full_cache_is_enough_where_the_compiler_is_gone() {
    let cache = tempfile::tempdir().unwrap();
    let start = |runtime, count| prepare(&with(runtime, Some(cache.path()), &[]).1, &kernels(count));
    assert!(matches!(start(nvidia(None), 1), Err(DeviceError::NoCode { .. })), "nothing is known of any compiler");
    start(nvidia(Some("an older compiler")), 1).unwrap();
    start(nvidia(WITH_COMPILER), 3).unwrap();
    let report = start(nvidia(None), 3).unwrap();
    assert_eq!(counts(&report), [0, 0, 3, 0]);
    let [note] = report.notes.as_slice() else { panic!("{:?}", report.notes) };
    assert!(note.starts_with("kernels are those that fake compiler 1 compiled before: "), "{note}");
    assert!(note.contains("it is not installed"), "{note}");
    // What was never compiled is in no cache, and code of another driver or architecture does not count.
    assert!(matches!(start(nvidia(None), 4), Err(DeviceError::NoCode { .. })));
    let mut other = nvidia(None);
    other.info.driver = "2".to_owned();
    assert!(matches!(start(other, 3), Err(DeviceError::NoCode { .. })));
    assert!(matches!(start(FakeRuntime::new("sm_80", None), 3), Err(DeviceError::NoCode { .. })));
}

#[test]
fn damaged_entries_are_compiled_again_and_told() {
    let cache = tempfile::tempdir().unwrap();
    let start = |runtime| prepare(&with(runtime, Some(cache.path()), &[]).1, &kernels(4)).unwrap();
    start(nvidia(WITH_COMPILER));
    let mut entries: Vec<PathBuf> = fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let whole = fs::read(&entries[0]).unwrap();
    fs::write(&entries[0], &whole[..whole.len() / 2]).unwrap();
    let mut poisoned = fs::read(&entries[1]).unwrap();
    *poisoned.last_mut().unwrap() ^= 1;
    fs::write(&entries[1], poisoned).unwrap();
    let report = start(nvidia(WITH_COMPILER));
    assert_eq!(counts(&report), [0, 0, 2, 2]);
    assert_eq!(report.notes.len(), 2, "{:#?}", report.notes);
    for note in &report.notes {
        assert!(note.contains(" is damaged: ") && note.ends_with("; it is removed"), "{note}");
        assert!(note.contains("checksum is wrong"), "{note}");
    }
    assert_eq!(counts(&start(nvidia(WITH_COMPILER))), [0, 0, 4, 0], "all is well again");
}

/// A whole entry that the driver does not take, for example since its hardware was exchanged.
#[test]
fn cached_code_that_can_not_be_loaded_is_compiled_again() {
    let cache = tempfile::tempdir().unwrap();
    let start = |runtime| prepare(&with(runtime, Some(cache.path()), &[]).1, &kernels(1));
    start(nvidia(WITH_COMPILER)).unwrap();
    let refusing = || FakeRuntime { refused: Some("for sm_86"), ..nvidia(WITH_COMPILER) };
    // What was compiled just now is refused, too: that is the error.
    let error = start(refusing()).unwrap_err();
    assert!(matches!(error, DeviceError::Driver { .. }), "{error}");
    let entries = fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path());
    let kept = entries.filter(|path| path.extension().is_some_and(|extension| extension == "kernel")).count();
    assert_eq!(kept, 0, "what can't be loaded is not kept");
    assert_eq!(counts(&start(nvidia(WITH_COMPILER)).unwrap()), [0, 0, 0, 1]);
}

#[test]
fn a_cache_that_can_not_be_used_is_told_and_not_needed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (_, kernels) = with(nvidia(WITH_COMPILER), Some(&file), &[]);
    let report = prepare(&kernels, &self::kernels(2)).unwrap();
    assert_eq!(counts(&report), [0, 0, 0, 2]);
    assert_eq!(report.notes.len(), 1);
    assert!(report.notes[0].starts_with("compiled kernels are not kept on disk: "), "{:?}", report.notes);
    assert_eq!(prepare(&kernels, &self::kernels(3)).unwrap().notes.len(), 0, "told once");
}

#[test]
fn a_full_disk_is_told_once_and_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (_, kernels) = with(nvidia(WITH_COMPILER), Some(&folder.path().join("cache")), &[]);
    fs::remove_dir(folder.path().join("cache")).unwrap();
    let report = prepare(&kernels, &self::kernels(5)).unwrap();
    assert_eq!((counts(&report), report.notes.len()), ([0, 0, 0, 5], 1), "{:#?}", report.notes);
}

#[test]
fn with_a_pack_no_compiler_is_needed() {
    let (folder, _) = pack("sm_86", &kernels(3));
    let (runtime, loaded) = with(nvidia(None), None, &[Path::new("/nowhere"), folder.path()]);
    let report = prepare(&loaded, &kernels(3)).unwrap();
    assert_eq!((counts(&report), report.notes), ([0, 3, 0, 0], vec![]));
    assert!(runtime.asked.lock().unwrap().images.iter().all(|image| image.ends_with(b"by pack compiler")));
    // What is not in the pack is compiled where there is a compiler.
    let (runtime, loaded) = with(nvidia(WITH_COMPILER), None, &[folder.path()]);
    assert_eq!(counts(&prepare(&loaded, &kernels(4)).unwrap()), [0, 3, 0, 1]);
    assert_eq!(runtime.compiled(), 1);
}

#[test]
fn a_pack_of_an_older_architecture_of_the_same_generation_will_do() {
    let (old, _) = pack("sm_80", &kernels(3));
    let (exact, _) = pack("sm_86", &kernels(1));
    let (runtime, loaded) = with(nvidia(None), None, &[old.path(), exact.path()]);
    assert_eq!(counts(&prepare(&loaded, &kernels(2)).unwrap()), [0, 2, 0, 0]);
    let images = std::mem::take(&mut runtime.asked.lock().unwrap().images);
    let of = |arch: &str| images.iter().filter(|image| String::from_utf8_lossy(image).contains(arch)).count();
    assert_eq!((of("for sm_86"), of("for sm_80")), (1, 1), "the exact one goes first");
    let (other, _) = pack("sm_90", &kernels(3));
    let (_, loaded) = with(nvidia(None), None, &[other.path()]);
    assert!(matches!(prepare(&loaded, &kernels(1)), Err(DeviceError::NoCode { .. })));
}

#[test]
fn a_damaged_pack_is_told() {
    let (folder, path) = pack("sm_86", &kernels(3));
    let whole = fs::read(&path).unwrap();
    let start = |compiler| prepare(&with(nvidia(compiler), None, &[folder.path()]).1, &kernels(3));
    let mut poisoned = whole.clone();
    *poisoned.last_mut().unwrap() ^= 1;
    fs::write(&path, &poisoned).unwrap();
    let report = start(WITH_COMPILER).unwrap();
    assert_eq!(counts(&report), [0, 2, 0, 1]);
    assert!(report.notes[0].contains("is not taken from a pack: "), "{:?}", report.notes);
    let error = start(None).unwrap_err();
    assert!(matches!(error, DeviceError::NoCode { .. }), "{error}");
    assert!(
        error.to_string().contains(&format!("is not taken from a pack: {}: the checksum", path.display())),
        "{error}"
    );
    fs::write(&path, &whole[..100]).unwrap();
    let error = start(None).unwrap_err().to_string();
    assert!(error.contains(&format!("a pack of kernels is not used: {}: ", path.display())), "{error}");
    let report = start(WITH_COMPILER).unwrap();
    assert_eq!(counts(&report), [0, 0, 0, 3]);
    assert!(report.notes[0].starts_with("a pack of kernels is not used: "), "{:?}", report.notes);
}

/// A pack whose code the driver refuses is noted, and the compiler helps out.
#[test]
fn code_of_a_pack_that_can_not_be_loaded_is_compiled() {
    let (folder, _) = pack("sm_86", &kernels(1));
    let runtime = FakeRuntime { refused: Some("pack compiler"), ..nvidia(WITH_COMPILER) };
    let report = prepare(&with(runtime, None, &[folder.path()]).1, &kernels(1)).unwrap();
    assert_eq!(counts(&report), [0, 0, 0, 1]);
    let refused = "can't be loaded: fake:0: load a module failed: 209 (no)";
    assert!(report.notes[0].contains(refused), "{:?}", report.notes);
    let (folder, _) = pack("sm_86", &kernels(6));
    let runtime = FakeRuntime { refused: Some("pack compiler"), ..nvidia(None) };
    let (_, loaded) = with(runtime, None, &[folder.path()]);
    let errors: Vec<String> = kernels(6).iter().map(|kernel| loaded.get(kernel).unwrap_err().to_string()).collect();
    let error = &errors[5];
    assert!(error.matches(refused).count() == 3 && error.contains("; and 3 more; install the compiler"), "{error}");
}

#[test]
fn a_kernel_that_does_not_compile_is_named_with_its_constants() {
    let cache = tempfile::tempdir().unwrap();
    let (_, kernels) = with(nvidia(WITH_COMPILER), Some(cache.path()), &[]);
    let wrong = kernel("add", 64).define("WRONG", 1);
    let wanted = [vec![wrong.clone()], self::kernels(3)].concat();
    for error in [prepare(&kernels, &wanted).unwrap_err(), kernels.get(&wrong).unwrap_err()] {
        let source = wrong.source;
        let said = format!(
            "{source} with THREADS=256, WIDTH=64, WRONG=1 does not compile for sm_86 with fake compiler 1:\n\
             {source}(7): error: WRONG is wrong"
        );
        assert_eq!(error.to_string(), said);
    }
    assert_eq!(counts(&prepare(&kernels, &self::kernels(3)).unwrap())[1..3], [0, 0], "the others still work");
}

#[test]
fn without_compiler_and_pack_the_error_says_what_would_help() {
    let error = |packs: &[&Path]| prepare(&with(nvidia(None), None, packs).1, &kernels(2)).unwrap_err().to_string();
    let none = error(&[]);
    assert!(none.contains("WIDTH=0 on sm_86") && none.contains("it is not installed"), "{none}");
    assert!(
        none.contains("no folder with packs") && none.contains("cargo xtask kernels --arch sm_86 --processors 1`"),
        "{none}"
    );
    let empty = tempfile::tempdir().unwrap();
    let missing = error(&[empty.path()]);
    assert!(missing.contains(empty.path().join(Pack::file_name("sm_86")).to_str().unwrap()), "{missing}");
    let (folder, path) = pack("sm_86", &kernels(1)[..]);
    let (_, loaded) = with(nvidia(None), None, &[folder.path()]);
    let foreign = loaded.get(&kernel("add", 7)).unwrap_err().to_string();
    assert!(foreign.contains("no pack has it") && foreign.contains(path.to_str().unwrap()), "{foreign}");
}

/// The real thing: code of the simulated GPU is a library, which is executed from wherever the cache lies.
#[test]
fn a_cache_of_real_code_can_be_moved() {
    let parent = tempfile::tempdir().unwrap();
    let wanted = [Kernel::new("measure.cu", "nothing", 32), Kernel::new("measure.cu", "read_all", 256)];
    let start = |folder: &str| {
        let runtime = SimRuntime::new(SimOptions::default());
        let cache_dir = Some(parent.path().join(folder));
        let kernels = Kernels::with(runtime, KernelOptions { cache_dir, ..KernelOptions::default() });
        counts(&prepare(&kernels, &wanted).unwrap())
    };
    assert_eq!(start("old"), [0, 0, 0, 2]);
    fs::rename(parent.path().join("old"), parent.path().join("new")).unwrap();
    let temporary = std::env::temp_dir();
    for entry in fs::read_dir(parent.path().join("new")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let path = temporary.to_str().unwrap().as_bytes();
        assert!(!bytes.windows(path.len()).any(|window| window == path), "an entry names a folder of this machine");
    }
    assert_eq!(start("new"), [0, 0, 2, 0]);
}

#[test]
fn a_report_reads_well() {
    let elapsed = Duration::from_millis(3210);
    let report = PrepareReport { from_packs: 200, compiled: 4, elapsed, ..PrepareReport::default() };
    assert_eq!(report.to_string(), "204 in 3.2 s (200 from packs, 4 compiled)");
    assert_eq!(PrepareReport::default().to_string(), "0 in 0.0 s");
}
