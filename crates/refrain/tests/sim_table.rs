//! The table of modes on the simulated GPU, whose launches are made so slow that they are what steps take: modes stand in
//! the order of their launches, whatever else the machine does.

use refrain_bench::table::{self, Ceilings, EngineModes, Mode, TableFacts, TableOptions, TableReport};
use refrain_device::{Backend, DeviceError, GraphMode, PoolSizes};
use refrain_engine::{Bench, Engine, EngineConfig, EngineHandle, Policy, PolicyMode, SchedulingPolicy, StepWorld};
use refrain_gpu::{GpuBackend, GpuOptions, GraphOptions, KernelOptions};
use refrain_program::{BuildOptions, CompileOptions, Dtype};
use refrain_sim::{SimCounters, SimOptions, SimRuntime};
use refrain_testkit::{Golden, Prepared, checkpoint, skip, target_dir};
use serde_json::Map;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a launch takes: much more than a kernel of the micro model does.
const LAUNCH: Duration = Duration::from_millis(2);

const PROMPT: usize = 64;
const ANSWER: usize = 8;

/// A micro model with graphs for its prompt and for decoding alone.
fn engine() -> Option<(EngineHandle, Arc<SimRuntime>, Option<u64>)> {
    let folder = checkpoint(&Golden::load("micro-0-f32"))?;
    let types = |stored| BuildOptions { weights: stored, activations: Dtype::F32, kv_cache: Dtype::F32.into() };
    let Prepared { checkpoint, program, .. } = Prepared::open(&folder, 128, types);
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: 128,
        max_model_len: 128,
        pools: PoolSizes { blocks: 8, slots: 1 },
        scheduling_policy: SchedulingPolicy::Fcfs,
        max_num_queued_reqs: None,
        max_num_queued_tokens: None,
        eos_token_ids: Vec::new(),
        vocab_size: program.vocab_size,
        seed: 0,
    };
    let (limits, pools) = (config.step_limits(), config.pools);
    let runtime = SimRuntime::new(SimOptions { launch_latency: LAUNCH, ..SimOptions::default() });
    let options = GpuOptions {
        kernels: KernelOptions { cache_dir: Some(target_dir().join("test-kernels")), ..KernelOptions::default() },
        graphs: GraphOptions {
            mode: GraphMode::Full,
            decode_sizes: Some(vec![1]),
            prefill_sizes: Some(vec![PROMPT as u32]),
            as_it_is_too: true,
            ..GraphOptions::default()
        },
        compile: Some(CompileOptions::default()),
        ..GpuOptions::default()
    };
    let mut backend =
        match GpuBackend::load(runtime.clone(), &program, &checkpoint, limits, pools, &options, &|_, _| {}) {
            Err(error @ DeviceError::NoCode { .. }) => {
                skip("the table on the simulated GPU", &error.to_string());
                return None;
            }
            loaded => loaded.unwrap(),
        };
    let graph_memory = backend.graphs().map(|graphs| graphs.bytes as u64);
    let mut policy = Policy::new(PolicyMode::Measured, backend.cells(), &limits, backend.depth());
    let begun = Instant::now();
    let clock = || begun.elapsed().as_secs_f64();
    let world = StepWorld { pools, vocab_size: program.vocab_size, chooses: backend.sampling().is_some() };
    policy.calibrate(&mut Bench { backend: &mut backend, world, clock: &clock, progress: &|_, _| {} }, 8.0).unwrap();
    Some((Engine::start_with(Box::new(backend), config, policy).unwrap(), runtime, graph_memory))
}

#[tokio::test]
async fn modes_stand_in_the_order_of_their_launches() {
    let Some((engine, runtime, graph_memory_bytes)) = engine() else { return };
    let options = TableOptions {
        input_lens: vec![PROMPT],
        output_len: ANSWER,
        batch_size: 1,
        modes: Mode::ALL.to_vec(),
        rounds: 1,
        warmup_rounds: 0,
        seed: 1,
    };
    let prepared = |runtime: &SimRuntime| {
        let SimCounters { allocations, modules, captures, .. } = runtime.counters();
        [allocations, modules, captures]
    };
    let before = prepared(&runtime);
    assert!(before.iter().all(|count| *count > 0), "{before:?}");
    let modes = EngineModes::new(&engine, None);
    let measurement = table::run(&engine, &modes, &options, &indicatif::ProgressBar::hidden()).await.unwrap();
    drop(modes);
    assert_eq!(engine.policy(), PolicyMode::Measured);
    assert_eq!(prepared(&runtime), before, "nothing is reserved, loaded or captured for requests");
    engine.stop_and_join();
    let facts = TableFacts {
        model_id: "micro".to_owned(),
        device: "sim".to_owned(),
        version: "test".to_owned(),
        date: "today".to_owned(),
        ceilings: Ceilings::Unknown { why: "it is simulated".to_owned() },
        graph_memory_bytes,
        memory: None,
        start: Vec::new(),
        extra: Map::new(),
    };
    let report = TableReport::new(facts, Vec::new(), measurement, &|_| None);
    let text = report.to_markdown();
    assert_eq!(report.modes(), Mode::ALL, "{text}");
    let seconds = |mode| report.of(mode).next().unwrap().1.total_seconds;
    let order = [Mode::GraphCompile, Mode::Compiled, Mode::Eager].map(seconds);
    assert!(order.is_sorted(), "{text}");
    assert!(seconds(Mode::Graph) < seconds(Mode::Compiled), "{text}");
    assert!(seconds(Mode::Measured) < seconds(Mode::Compiled), "{text}");
    // As many steps in every mode, each of them in the way that the mode stands for.
    for mode in Mode::ALL {
        let steps = &report.of(mode).next().unwrap().1.steps;
        assert_eq!(steps.iter().map(|count| count.steps).sum::<u64>(), ANSWER as u64, "{text}");
        let is = |wanted: &str| steps.iter().all(|count| count.cell.split('(').next() == Some(wanted));
        match mode {
            Mode::Eager => assert!(is("eager"), "{text}"),
            Mode::Compiled => assert!(is("compiled"), "{text}"),
            Mode::GraphCompile => assert!(is("compiled+graph"), "{text}"),
            Mode::Graph => assert!(is("graph"), "{text}"),
            // There are graphs for every step, and nothing else comes near them.
            Mode::Measured => {
                let replayed = |cell: &str| cell.contains("graph(");
                assert!(steps.iter().all(|count| replayed(&count.cell)), "{text}");
            }
        }
    }
    assert!(report.facts.graph_memory_bytes.is_some_and(|bytes| bytes > 0));
    assert!(text.contains("never slower"), "{text}");
}
