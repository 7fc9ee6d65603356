//! Everything that runs on a GPU, by way of HIP: each kernel against double precision, and a whole model against Hugging
//! Face transformers. The device is the fake one, so this proves the way to the device, at waves of 64; what gfx906's own
//! instructions do it can't show.

mod support;

use refrain_device::{Backend, DeviceError, GraphMode, Replay, Runtime, Segment, Step};
use refrain_gpu::check::{Rig, Scale, cases, failures};
use refrain_gpu::{GpuBackend, GpuOptions, GraphOptions, KernelOptions, Products, ProductsChoice, Target};
use refrain_program::{BuildOptions, CompileOptions, Dtype};
use refrain_testkit::{
    Difference, Golden, Invariance, Prepared, Runner, answer_step, answer_tokens, check_all_ways, checkpoint,
    smallest_graph, target_dir,
};
use support::fake::Fake;

#[test]
fn kernels_match_double_precision_by_way_of_hip() {
    let fake = Fake::new();
    fake.set("memory", 256 << 20);
    fake.set("late_arguments", 1);
    let runtime = fake.open();
    let target = Target::from(runtime.info());
    let rig = Rig::new(runtime, 906, false).unwrap();
    // Of each kernel one case: the simulated GPU runs them all.
    let mut seen = std::collections::BTreeSet::new();
    let mut chosen = cases(&target, Scale::Ragged);
    chosen.retain(|case| seen.insert(case.kernel));
    let failures = failures(&rig, &chosen);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(chosen.len() >= 10, "only {} kernels", chosen.len());
}

/// A model on a machine with rocBLAS, in f32; `None` when its checkpoint can't be made.
fn load(fake: &Fake, golden: &Golden, options: GpuOptions) -> Option<(GpuBackend, usize)> {
    fake.add_rocblas(None);
    let (backend, vocab_size) = try_load(fake, golden, options)?;
    Some((backend.unwrap(), vocab_size))
}

/// The same on a machine as it is.
fn try_load(fake: &Fake, golden: &Golden, options: GpuOptions) -> Option<(Result<GpuBackend, DeviceError>, usize)> {
    let folder = checkpoint(golden)?;
    fake.set("memory", 1 << 30);
    let types = |stored| BuildOptions { weights: stored, activations: Dtype::F32, kv_cache: Dtype::F32.into() };
    let Prepared { checkpoint, program, limits, pools } = Prepared::open(&folder, 256, types);
    let kernels = KernelOptions { cache_dir: Some(target_dir().join("test-kernels")), ..KernelOptions::default() };
    let options = GpuOptions { kernels, ..options };
    let backend = GpuBackend::load(fake.open(), &program, &checkpoint, limits, pools, &options, &|_, _| {});
    Some((backend, program.vocab_size))
}

#[test]
fn a_model_matches_transformers_by_way_of_hip() {
    let mut golden = Golden::load("micro-1-f32");
    golden.prompts.retain(|prompt| prompt.ids.len() <= 65);
    let fake = Fake::new();
    let Some((backend, vocab_size)) = load(&fake, &golden, GpuOptions::default()) else { return };
    let mut runner = Runner::new(Box::new(backend), vocab_size);
    check_all_ways(&golden, &mut runner, Difference::check_f32, Invariance::Gate);
}

/// The default mode: compiled, with graphs of all kinds, two steps in flight, tokens chosen on the device.
#[test]
fn recorded_steps_in_flight_choose_the_tokens_of_eager_ones_by_way_of_hip() {
    const ANSWER: u32 = 5;
    let fake = Fake::new();
    fake.set("late_arguments", 1);
    fake.set("stale_captures", 1);
    let (mode, strict) = (GraphMode::FullAndPiecewise, true);
    let (decode_sizes, prefill_sizes) = (Some(vec![1, 2]), Some(vec![64]));
    let graphs = GraphOptions { mode, decode_sizes, prefill_sizes, strict, ..GraphOptions::default() };
    let options = GpuOptions { compile: Some(CompileOptions::default()), graphs, ..GpuOptions::default() };
    let Some((mut backend, vocab_size)) = load(&fake, &Golden::load("micro-1-f32"), options) else { return };
    assert_eq!(fake.get("illegal_calls"), 0);
    let mut expected: Vec<[u32; 2]> = Vec::new();
    for position in 0..ANSWER {
        let step = answer_step(position, vocab_size, expected.last().copied());
        expected.push(answer_tokens(backend.execute(&step).unwrap()));
    }
    assert!(expected.windows(2).any(|pair| pair[0] != pair[1]), "the answer says something");

    let begin = |backend: &mut GpuBackend, position| {
        let step = answer_step(position, vocab_size, None);
        let cell = smallest_graph(backend.cells(), &step.shape());
        assert_eq!((cell.compiled, cell.replay == Replay::Full), (true, position > 0), "{cell}");
        assert_ne!(cell.replay, Replay::None);
        backend.begin(&step, cell).unwrap();
    };
    begin(&mut backend, 0);
    for position in 1..ANSWER {
        begin(&mut backend, position);
        assert_eq!(answer_tokens(backend.finish().unwrap()), expected[position as usize - 1], "token {position}");
    }
    assert_eq!(answer_tokens(backend.finish().unwrap()), expected[ANSWER as usize - 1]);
    assert!(fake.get("graph_launches") > 0);
}

#[test]
fn a_library_that_lacks_a_product_is_not_used_and_that_is_said() {
    let mut golden = Golden::load("micro-1-f32");
    golden.prompts.retain(|prompt| prompt.ids.len() == 65);
    let fake = Fake::new();
    fake.add_rocblas_with(&["-DLACKS_ROWS=64"]);
    let with = |products| {
        let (mode, decode_sizes, prefill_sizes) = (GraphMode::FullDecodeOnly, Some(vec![2]), None);
        let graphs = GraphOptions { mode, decode_sizes, prefill_sizes, strict: true, ..GraphOptions::default() };
        try_load(&fake, &golden, GpuOptions { products, graphs, ..GpuOptions::default() })
    };
    let why = |products: &Products| match products {
        Products::Own(why) => why.clone(),
        Products::Library(name) => panic!("{name}"),
    };
    let Some((backend, _)) = with(ProductsChoice::Library) else { return };
    let error = backend.map(drop).unwrap_err().to_string();
    let lacks = "a product of rocBLAS 2.46.0.fake failed: hip:0: rocblas_gemm_ex, F32 [64, ";
    assert!(error.starts_with(&format!("the vendor's matrix products can't be used: {lacks}")), "{error}");

    let (backend, _) = with(ProductsChoice::Own).unwrap();
    let backend = backend.unwrap();
    assert_eq!(why(backend.products()), "the library was not asked for");
    drop(backend);

    let (backend, vocab_size) = with(ProductsChoice::Auto).unwrap();
    let backend = backend.unwrap();
    assert!(why(backend.products()).starts_with(lacks), "{}", backend.products());
    assert_eq!(fake.get("illegal_calls"), 0);
    check_all_ways(&golden, &mut Runner::new(Box::new(backend), vocab_size), Difference::check_f32, Invariance::Gate);
}

#[test]
fn a_machine_without_a_library_says_so_where_it_was_asked_for() {
    let fake = Fake::new();
    let options = GpuOptions { products: ProductsChoice::Library, ..GpuOptions::default() };
    let Some((backend, _)) = try_load(&fake, &Golden::load("micro-1-f32"), options) else { return };
    let error = backend.map(drop).unwrap_err();
    assert!(matches!(&error, DeviceError::NoProducts { why } if why.contains("librocblas.so is neither")), "{error}");
}

#[test]
fn a_device_that_is_lost_in_the_middle_of_a_step_ends_it_and_all_after_it() {
    let fake = Fake::new();
    let Some((mut backend, _)) = load(&fake, &Golden::load("micro-1-f32"), GpuOptions::default()) else { return };
    let segment = Segment { row: 0, len: 1, position: 0, scan: 0, slot: 0, blocks: 0, num_blocks: 1 };
    let step =
        Step { tokens: vec![1], segments: vec![segment], block_table: vec![0], logit_rows: vec![0], ..Step::default() };
    backend.execute(&step).unwrap();
    fake.set("lost_after", 5);
    for _ in 0..2 {
        let error = backend.execute(&step).map(drop).unwrap_err();
        assert!(matches!(error, DeviceError::Lost { .. }), "{error}");
        assert!(error.to_string().contains("hipModuleLaunchKernel of "), "{error}");
    }
}
