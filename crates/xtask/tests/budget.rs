//! Every kernel compiles for every architecture, within its budget and without spills, on a machine without a GPU.

use refrain_gpu::loader::{DEFAULT_CACHE_BYTES, KernelCache, source_files};
use refrain_testkit::{target_dir, workspace_root};
use std::collections::BTreeSet;
use xtask::architectures::{Compilers, targets};
use xtask::budget::{ARCHITECTURES, compare, needs, read};
use xtask::compile::compile_all;
use xtask::variants::budgeted;

#[test]
fn every_kernel_compiles_within_its_budget() {
    let Some(compilers) = Compilers::of_tests() else { return };
    let budget = read(&workspace_root().join("kernels/budget.json")).unwrap();
    assert_eq!(budget.keys().collect::<Vec<_>>(), {
        let mut sorted = ARCHITECTURES;
        sorted.sort_unstable();
        sorted.to_vec()
    });
    // Only to be quick when nothing has changed: its keys hold all that the code depends on.
    let cache = KernelCache::open(&target_dir().join("kernel-cache"), DEFAULT_CACHE_BYTES).unwrap();
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut problems = Vec::new();
    for arch in ARCHITECTURES {
        let kernels = budgeted(arch).unwrap();
        let compiled = compile_all(&kernels, arch, &compilers, Some(&cache), jobs).unwrap();
        problems.extend(compiled.failed.iter().map(ToString::to_string));
        let needs = needs(&kernels, arch, &compiled).unwrap();
        problems.extend(compare(&budget[arch], &needs).into_iter().map(|problem| format!("{arch}: {problem}")));
    }
    assert!(
        problems.is_empty(),
        "{}\nWhere it is meant: `cargo xtask kernels --budget` writes kernels/budget.json anew.",
        problems.join("\n")
    );
}

#[test]
fn no_file_of_kernels_is_forgotten() {
    for arch in ARCHITECTURES {
        let listed: BTreeSet<&str> = budgeted(arch).unwrap().iter().map(|kernel| kernel.source).collect();
        // Kernels for tensor cores are called so, and are of no use where there are none.
        let tensor_cores = targets(arch, &[]).unwrap()[0].mma;
        let usable = source_files().filter(|file| tensor_cores || !file.ends_with("_mma.cu"));
        let forgotten: Vec<&str> = usable.filter(|file| !listed.contains(file)).collect();
        assert!(forgotten.is_empty(), "no kernel of {forgotten:?} is compiled for {arch}");
    }
}
