//! Packs from end to end: compiled without a GPU, and found by those who have one and no compiler.

use refrain_gpu::loader::{CompileUnit, Pack, source_key};
use xtask::architectures::{Compilers, targets};
use xtask::models::published;
use xtask::pack::pack;
use xtask::variants::variants;

#[test]
fn a_pack_has_every_kernel_of_its_models() {
    let Some(compilers) = Compilers::of_tests() else { return };
    let folder = tempfile::tempdir().unwrap();
    let models: Vec<_> = published().into_iter().filter(|model| model.name == "tinytales").collect();
    let targets = targets("gfx906", &[]).unwrap();
    let packed = pack(&models, &targets, &folder.path().join("new"), &compilers, None, 2).unwrap();
    let found = Pack::open(&folder.path().join("new"), "gfx906").unwrap().unwrap();
    assert_eq!((found.path(), found.len()), (packed.path.as_path(), packed.kernels));
    assert!(found.compiler().contains("19"), "{}", found.compiler());
    for kernel in variants(&models, &targets).unwrap() {
        let key = source_key(&CompileUnit::from(&kernel).source());
        let image = found.image(&key).unwrap().unwrap_or_else(|| panic!("{kernel:?} is missing"));
        assert!(image.starts_with(b"\x7fELF"));
    }
}
