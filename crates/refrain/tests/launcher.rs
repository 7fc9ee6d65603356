//! The measured policy on the simulated GPU, which counts what is launched: a slow launcher gains what graphs save, and
//! no length loses. Time is computed from the counts, so the machine's load makes no difference.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use refrain_device::{
    BLOCK_TOKENS, Backend, Cell, DeviceError, DeviceInfo, GraphMode, Replay, SamplingLimits, Segment, Step, StepOutput,
    StepShape,
};
use refrain_engine::{Bench, Policy, PolicyMode, StepWorld};
use refrain_gpu::{GpuBackend, GpuOptions, GraphOptions, KernelOptions};
use refrain_program::{BuildOptions, CompileOptions, Dtype};
use refrain_sim::{SimCounters, SimOptions, SimRuntime};
use refrain_testkit::{Golden, Prepared, checkpoint, skip, target_dir};

const MOST_TOKENS: usize = 128;

/// Seconds on the device: of any kernel, of the gap behind a launched one and behind one of a graph, and of attention
/// for each row and token that it looks back at. The last is large, so that the longest context of this small model
/// hides what launching costs, as tens of thousands of tokens do in a large one.
const KERNEL: f64 = 4e-6;
const GAP: f64 = 1.5e-6;
const GRAPH_GAP: f64 = 0.8e-6;
const ATTENTION: f64 = 4e-6;

/// A real backend whose time is computed.
struct Timed {
    backend: GpuBackend,
    runtime: Arc<SimRuntime>,
    /// Seconds of the host for a launch of a kernel or of a graph.
    latency: f64,
    /// Now, and when the device is free.
    now: Arc<Mutex<f64>>,
    free: f64,
    ends: VecDeque<f64>,
    /// What a step of a shape counts in a cell: each runs once, later ones cost the same.
    known: HashMap<(StepShape, Cell), SimCounters>,
}

impl Timed {
    fn count(&mut self, step: &Step, cell: Cell) -> Result<SimCounters, DeviceError> {
        if let Some(known) = self.known.get(&(step.shape(), cell)) {
            return Ok(*known);
        }
        let before = self.runtime.counters();
        self.backend.begin(step, cell)?;
        self.backend.finish()?;
        let after = self.runtime.counters();
        let counted = SimCounters {
            launches: after.launches - before.launches,
            graph_launches: after.graph_launches - before.graph_launches,
            kernels: after.kernels - before.kernels,
            ..SimCounters::default()
        };
        self.known.insert((step.shape(), cell), counted);
        Ok(counted)
    }
}

impl Backend for Timed {
    fn device(&self) -> &DeviceInfo {
        self.backend.device()
    }

    fn sampling(&self) -> Option<SamplingLimits> {
        self.backend.sampling()
    }

    fn cells(&self) -> &[Cell] {
        self.backend.cells()
    }

    fn begin(&mut self, step: &Step, cell: Cell) -> Result<(), DeviceError> {
        let SimCounters { launches, graph_launches, kernels, .. } = self.count(step, cell)?;
        let shape = step.shape();
        let rows = f64::from(shape.rows + cell.padding(&shape));
        let gap = if cell.replay == Replay::Full { GRAPH_GAP } else { GAP };
        let mut now = self.now.lock().unwrap();
        *now += (launches + graph_launches) as f64 * self.latency;
        let work = kernels as f64 * (KERNEL + gap) + rows * f64::from(shape.context) * ATTENTION;
        self.free = self.free.max(*now) + work;
        self.ends.push_back(self.free);
        Ok(())
    }

    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        let end = self.ends.pop_front().expect("a step has begun");
        let mut now = self.now.lock().unwrap();
        *now = now.max(end);
        Ok(StepOutput::Logits(&mut []))
    }
}

/// One step of one sequence: a token behind `context - 1` others, or a prompt.
fn step(context: usize, prompt: bool) -> Step {
    let (position, len) = if prompt { (0, context) } else { (context - 1, 1) };
    let blocks = context.div_ceil(BLOCK_TOKENS);
    Step {
        tokens: vec![1; len],
        segments: vec![Segment {
            row: 0,
            len: len as u32,
            position: position as u32,
            scan: if prompt { len as u32 } else { 0 },
            slot: 0,
            blocks: 0,
            num_blocks: blocks as u32,
        }],
        block_table: (0..blocks as u32).collect(),
        logit_rows: vec![len as u32 - 1],
        ..Step::default()
    }
}

/// Seconds of many steps under a rule.
fn serve(policy: &mut Policy, backend: &mut Timed, step: &Step) -> f64 {
    let now = |backend: &Timed| *backend.now.lock().unwrap();
    let begun = now(backend);
    for _ in 0..300 {
        let cell = policy.begin(&step.shape(), now(backend));
        backend.begin(step, cell).unwrap();
        backend.finish().unwrap();
        policy.finish(now(backend));
    }
    now(backend) - begun
}

fn load(runtime: &Arc<SimRuntime>) -> Option<(GpuBackend, Prepared)> {
    let folder = checkpoint(&Golden::load("micro-0-f32"))?;
    let types = |stored| BuildOptions { weights: stored, activations: Dtype::F32, kv_cache: Dtype::F32.into() };
    let mut prepared = Prepared::open(&folder, MOST_TOKENS, types);
    prepared.limits.max_model_len = 1024;
    let kernels = KernelOptions { cache_dir: Some(target_dir().join("test-kernels")), ..KernelOptions::default() };
    let (decode_sizes, prefill_sizes) = (Some(vec![1, 4]), Some(vec![64, 128]));
    let graphs = GraphOptions { mode: GraphMode::Full, decode_sizes, prefill_sizes, ..GraphOptions::default() };
    let options = GpuOptions { kernels, graphs, compile: Some(CompileOptions::default()), ..GpuOptions::default() };
    let Prepared { checkpoint, program, limits, pools } = &prepared;
    match GpuBackend::load(runtime.clone(), program, checkpoint, *limits, *pools, &options, &|_, _| {}) {
        Err(error @ DeviceError::NoCode { .. }) => {
            skip("the policy on the simulated GPU", &error.to_string());
            None
        }
        loaded => Some((loaded.unwrap(), prepared)),
    }
}

#[test]
fn a_slow_launcher_gains_and_no_length_loses() {
    let runtime = SimRuntime::new(SimOptions { memory_bytes: 1 << 30, check: false, ..SimOptions::default() });
    let Some((backend, prepared)) = load(&runtime) else { return };
    let now = Arc::new(Mutex::new(0.0));
    let (ends, known) = (VecDeque::new(), HashMap::new());
    let mut backend = Timed { backend, runtime, latency: 0.0, now: now.clone(), free: 0.0, ends, known };
    let cells = backend.cells().to_vec();
    let world = StepWorld { pools: prepared.pools, vocab_size: prepared.program.vocab_size, chooses: true };
    for latency in [0.0, 3e-6, 10e-6, 50e-6] {
        backend.latency = latency;
        let mut measured = Policy::new(PolicyMode::Measured, &cells, &prepared.limits, 1);
        let clock = || *now.lock().unwrap();
        let bench = &mut Bench { backend: &mut backend, world, clock: &clock, progress: &|_, _| {} };
        let calibration = measured.calibrate(bench, 1000.0).unwrap();
        assert_eq!(calibration.measured, calibration.kinds);
        let mut eager = Policy::new(PolicyMode::Eager, &cells, &prepared.limits, 1);
        let lengths = [(16, false), (128, false), (1000, false), (64, true), (100, true), (128, true)];
        let gains = lengths.map(|(context, prompt)| {
            let step = step(context, prompt);
            serve(&mut eager, &mut backend, &step) / serve(&mut measured, &mut backend, &step)
        });
        assert!(gains.iter().all(|gain| *gain > 0.99), "{latency} s a launch: {gains:?}");
        let [short, _, long, ..] = gains;
        assert!(short > long, "{latency} s a launch: {gains:?}");
        if latency == 50e-6 {
            assert!(short > 1.79, "{gains:?}");
        }
    }
}
