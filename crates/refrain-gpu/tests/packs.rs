//! Kernels that were compiled ahead: the whole backend runs from a pack where there is no compiler.

use refrain_device::{Backend, DeviceError, Runtime, Segment, Step};
use refrain_gpu::loader::{
    Cached, CompileUnit, DEFAULT_CACHE_BYTES, KernelCache, compile, image_key, in_parallel, source_key, write_pack,
};
use refrain_gpu::{GpuBackend, GpuOptions, Kernel, KernelOptions, Target, required_kernels};
use refrain_program::{BuildOptions, Dtype};
use refrain_sim::{SimOptions, SimRuntime};
use refrain_testkit::{Golden, Prepared, checkpoint, skip, target_dir};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn runtime(compiler: Option<PathBuf>) -> Arc<SimRuntime> {
    SimRuntime::new(SimOptions { memory_bytes: 1 << 30, compiler, ..SimOptions::default() })
}

/// A pack of kernels; what tests have compiled before is taken from where they keep it.
fn pack(folder: &Path, runtime: &dyn Runtime, kernels: &[Kernel]) -> Result<(), DeviceError> {
    let (compiler, info) = (runtime.compiler()?, runtime.info());
    let cache = KernelCache::open(&target_dir().join("test-kernels"), DEFAULT_CACHE_BYTES).expect("it can be made");
    let units: Vec<CompileUnit> = kernels.iter().map(CompileUnit::from).collect::<BTreeSet<_>>().into_iter().collect();
    let image = |unit: &CompileUnit| {
        let source = source_key(&unit.source());
        let key = image_key(source, &compiler.describe(), &info.arch, &info.driver);
        let found = match cache.get(&key) {
            Cached::Found(found) => found,
            Cached::Missing | Cached::Damaged(_) => {
                let made = compile(compiler, unit, &info.arch)?;
                cache.put(&key, &made).expect("there is room");
                made
            }
        };
        Ok::<_, DeviceError>((source, found.image))
    };
    let images: BTreeMap<_, _> = in_parallel(&units, 2, image, &|_, _| {})?.into_iter().collect();
    write_pack(folder, &info.arch, &compiler.describe(), &images).expect("it can be written");
    Ok(())
}

#[test]
fn without_a_compiler_a_pack_is_enough_and_one_that_lacks_a_kernel_is_named() {
    let golden = Golden::load("micro-0-f32");
    let Some(model) = checkpoint(&golden) else { return };
    let types = |stored| BuildOptions { weights: stored, activations: Dtype::F32, kv_cache: Dtype::F32.into() };
    let Prepared { checkpoint, program, limits, pools } = Prepared::open(&model, 256, types);
    let load = |runtime: &Arc<SimRuntime>, kernels: KernelOptions| {
        let options = GpuOptions { kernels, ..GpuOptions::default() };
        GpuBackend::load(Arc::clone(runtime) as _, &program, &checkpoint, limits, pools, &options, &|_, _| {})
    };
    let (with, without) = (runtime(None), runtime(Some("/nowhere/c++".into())));
    let kernels = required_kernels(&program, None, &Target::from(with.info()), &limits, false);
    let folder = tempfile::tempdir().unwrap();
    match pack(folder.path(), &*with, &kernels) {
        Ok(()) => {}
        Err(error @ DeviceError::Unavailable { .. }) => return skip("packs for the simulated GPU", &error.to_string()),
        Err(error) => panic!("{error}"),
    }

    let cached = KernelOptions { cache_dir: Some(target_dir().join("test-kernels")), ..KernelOptions::default() };
    let packed = |folder: &Path| KernelOptions { pack_dirs: vec![folder.to_owned()], ..KernelOptions::default() };
    let mut compiled = load(&with, cached).unwrap();
    let mut from_pack = load(&without, packed(folder.path())).unwrap();
    let report = from_pack.report();
    assert!(report.from_packs > 20 && report.compiled + report.from_cache == 0, "{report}");

    let step = Step {
        tokens: (0..20).map(|token| token * 7 % program.vocab_size as u32).collect(),
        segments: vec![Segment { row: 0, len: 20, position: 0, scan: 20, slot: 0, blocks: 0, num_blocks: 2 }],
        block_table: vec![3, 1],
        logit_rows: vec![5, 19],
        ..Step::default()
    };
    let logits = compiled.execute(&step).unwrap().into_logits().to_vec();
    assert!(logits.iter().any(|logit| *logit != 0.0));
    assert_eq!(from_pack.execute(&step).unwrap().into_logits(), logits);

    let lacking = tempfile::tempdir().unwrap();
    let some: Vec<Kernel> = kernels.iter().filter(|kernel| kernel.entry != "gdn_recurrence").cloned().collect();
    pack(lacking.path(), &*with, &some).unwrap();
    let error = load(&without, packed(lacking.path())).err().expect("a kernel is missing").to_string();
    for words in ["gdn_recurrence", "no pack has it", "sim32.kernels", "/nowhere/c++"] {
        assert!(error.contains(words), "no {words} in {error}");
    }
}
