//! Packs from end to end: compiled without a GPU, and found by those who have one and no compiler.

use refrain_gpu::loader::{CompileUnit, DEFAULT_CACHE_BYTES, KernelCache, Pack, source_key};
use refrain_testkit::target_dir;
use xtask::architectures::{Compilers, targets};
use xtask::models::of_tests;
use xtask::pack::pack;
use xtask::variants::variants;

#[test]
fn a_pack_has_every_kernel_of_its_models() {
    let Some(compilers) = Compilers::of_tests() else { return };
    let folder = tempfile::tempdir().unwrap();
    let models = &of_tests()[..1];
    // Only to be quick: the test of the budget compiles many of the same kernels.
    let cache = KernelCache::open(&target_dir().join("kernel-cache"), DEFAULT_CACHE_BYTES).unwrap();
    let targets = targets("gfx906", &[]).unwrap();
    let packed = pack(models, &targets, &folder.path().join("new"), &compilers, Some(&cache), 2).unwrap();
    let found = Pack::open(&folder.path().join("new"), "gfx906").unwrap().unwrap();
    assert_eq!((found.path(), found.len()), (packed.path.as_path(), packed.kernels));
    assert!(found.compiler().contains("19"), "{}", found.compiler());
    for kernel in variants(models, &targets).unwrap() {
        let key = source_key(&CompileUnit::from(&kernel).source());
        let image = found.image(&key).unwrap().unwrap_or_else(|| panic!("{kernel:?} is missing"));
        assert!(image.starts_with(b"\x7fELF"));
    }
}
