//! A device on which launching costs time: the calibration and the policy on a model of it, without a real clock.

use super::{LIMITS, decode};
use crate::policy::{Bench, Phase, Policy, PolicyMode, StepWorld};
use proptest::prelude::*;
use refrain_device::{
    Backend, Cell, DeviceError, DeviceInfo, Part, PoolSizes, Replay, Step, StepLimits, StepOutput, StepShape,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

const POOLS: PoolSizes = PoolSizes { blocks: 2048, slots: 64 };
const VOCAB: usize = 100;

/// Launches of an eager step; compiled has two thirds of them.
const LAUNCHES: f64 = 180.0;

/// What time it is where this backend runs.
#[derive(Clone, Default)]
struct Clock(Arc<Mutex<f64>>);

impl Clock {
    fn now(&self) -> f64 {
        *self.0.lock().unwrap()
    }

    fn pass(&self, seconds: f64) {
        *self.0.lock().unwrap() += seconds;
    }
}

/// Costs time, and gives nothing.
struct Launcher {
    info: DeviceInfo,
    cells: Vec<Cell>,
    /// Seconds that the host spends for a launch.
    latency: f64,
    clock: Clock,
    /// When the device is free.
    free: f64,
    ends: VecDeque<f64>,
    steps: usize,
}

impl Launcher {
    fn new(latency: f64, cells: &[Cell], clock: &Clock) -> Launcher {
        let (info, clock, ends) = (DeviceInfo::default(), clock.clone(), VecDeque::new());
        Launcher { info, cells: cells.to_vec(), latency, clock, free: 0.0, ends, steps: 0 }
    }

    /// Seconds of host and device. A graph's kernels follow each other closely; what is padded is computed.
    fn cost(&self, step: &StepShape, cell: Cell) -> (f64, f64) {
        let launches = if cell.compiled { LAUNCHES / 1.5 } else { LAUNCHES };
        let (launched, gap) = match cell.replay {
            Replay::None => (launches, 2e-6),
            Replay::Piecewise => (launches / 5.0, 1.2e-6),
            Replay::Full => (1.0, 1e-6),
        };
        let rows = f64::from(step.rows + cell.padding(step));
        let work = 3e-3 + rows * (2e-6 + f64::from(step.context) * 1e-9);
        (launched * self.latency, work + launches * gap)
    }
}

impl Backend for Launcher {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn begin(&mut self, step: &Step, cell: Cell) -> Result<(), DeviceError> {
        step.validate(&StepLimits { max_tokens: 600, ..LIMITS }, &POOLS, VOCAB)?;
        assert!(self.cells.contains(&cell) && cell.suits(&step.shape()), "{cell} for {:?}", step.shape());
        let (host, device) = self.cost(&step.shape(), cell);
        self.clock.pass(host);
        self.free = self.free.max(self.clock.now()) + device;
        self.ends.push_back(self.free);
        self.steps += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        let end = self.ends.pop_front().expect("a step has begun");
        self.clock.pass((end - self.clock.now()).max(0.0));
        Ok(StepOutput::Logits(&mut []))
    }
}

fn cells() -> Vec<Cell> {
    let graphs = |part, sizes: &[u32]| {
        let ways = [(false, Replay::Full), (true, Replay::Full)];
        let sizes = sizes.to_vec();
        ways.into_iter().flat_map(move |(compiled, replay)| {
            sizes.clone().into_iter().map(move |rows| Cell { compiled, replay, part, rows })
        })
    };
    let pieces = Cell { compiled: true, replay: Replay::Piecewise, part: Part::Any, rows: 128 };
    let mut cells = vec![Cell::EAGER, Cell { compiled: true, ..Cell::EAGER }, pieces];
    cells.extend(graphs(Part::Decode, &[1, 2, 4, 8, 16, 32, 64]));
    cells.extend(graphs(Part::Prefill, &[64, 128, 512]));
    cells
}

fn bench<'a>(backend: &'a mut Launcher, clock: &'a dyn Fn() -> f64) -> Bench<'a> {
    Bench { backend, world: StepWorld { pools: POOLS, vocab_size: VOCAB, chooses: true }, clock, progress: &|_, _| {} }
}

/// Seconds of so many steps under a policy.
fn serve(policy: &mut Policy, backend: &mut Launcher, clock: &Clock, step: &StepShape, steps: usize) -> f64 {
    let world = StepWorld { pools: POOLS, vocab_size: VOCAB, chooses: true };
    let step = crate::policy::synthetic::step(step, &world);
    let begun = clock.now();
    for turn in 0..steps + policy.depth - 1 {
        if turn < steps {
            let cell = policy.begin(&step.shape(), clock.now());
            backend.begin(&step, cell).unwrap();
        }
        if turn + 1 >= policy.depth {
            backend.finish().unwrap();
            policy.finish(clock.now());
        }
    }
    clock.now() - begun
}

/// What issue after issue reports: graphs help where launching is slow and steps are short, and hurt elsewhere. Measured
/// is never worse than eager by more than its tries cost, and gains where there is something to gain.
#[test]
fn on_any_launcher_measured_is_never_below_eager() {
    let prefill = |rows, context| StepShape { rows, sequences: 1, one_prefill: true, context, ..StepShape::default() };
    let shapes = [decode(1, 100), decode(1, 8192), decode(3, 100), decode(5, 4000), decode(33, 900)];
    let prompts = [prefill(64, 64), prefill(65, 65), prefill(512, 512), prefill(512, 4096), prefill(300, 300)];
    for latency in [0.0, 3e-6, 10e-6, 50e-6] {
        for depth in [1, 2] {
            let clock = Clock::default();
            let mut backend = Launcher::new(latency, &cells(), &clock);
            let mut measured = Policy::new(PolicyMode::Measured, &cells(), &LIMITS, depth);
            let now = || clock.now();
            let calibration = measured.calibrate(&mut bench(&mut backend, &now), 3.0).unwrap();
            assert!(calibration.measured > 8 && calibration.seconds < 3.2, "{calibration:?}");
            let mut eager = Policy::new(PolicyMode::Eager, &cells(), &LIMITS, depth);
            for shape in shapes.iter().chain(&prompts) {
                let mut seconds = |policy: &mut Policy| serve(policy, &mut backend, &clock, shape, 400);
                let (eager, measured) = (seconds(&mut eager), seconds(&mut measured));
                let gain = eager / measured;
                assert!(gain > 0.99, "{latency} s a launch, {depth} at a time, {shape:?}: {gain}");
                if latency == 50e-6 && shape.rows == 1 {
                    assert!(gain > 1.79, "{depth} at a time, {shape:?}: {gain}");
                }
            }
        }
    }
}

/// Also with two steps on their way, the best cell is used again soon after a calibration has slandered it.
#[test]
fn slander_is_found_out_however_steps_overlap() {
    for depth in [1, 2] {
        let clock = Clock::default();
        let mut backend = Launcher::new(50e-6, &cells(), &clock);
        let mut policy = Policy::new(PolicyMode::Measured, &cells(), &LIMITS, depth);
        policy.calibrate(&mut bench(&mut backend, &|| clock.now()), 3.0).unwrap();
        let step = decode(1, 100);
        let honest = serve(&mut policy.clone(), &mut backend, &clock, &step, 20_000);
        let index = policy.ranges.index(&step);
        let mut claims: Vec<_> = policy.entries[index].candidates.iter().map(|candidate| candidate.average).collect();
        claims[policy.entries[index].present].seconds *= 4.0;
        policy.entries[index].set(&claims);
        let slandered = serve(&mut policy, &mut backend, &clock, &step, 20_000);
        assert!(slandered < 1.1 * honest, "{depth} at a time: {honest} s, {slandered} s with slander");
    }
}

/// Where launching is slow, sequences that decode and a prompt are replayed one after the other instead of being launched
/// together; elsewhere they share the weights.
#[test]
fn mixed_steps_are_split_where_launching_is_slow() {
    let whole = StepShape { rows: 520, sequences: 9, decodes: 8, one_prefill: false, context: 900 };
    let prompt = StepShape { rows: 512, sequences: 1, decodes: 0, one_prefill: true, context: 512 };
    for (latency, splits) in [(0.0, false), (3e-6, false), (10e-6, false), (50e-6, true)] {
        let limits = StepLimits { max_tokens: 600, ..LIMITS };
        let clock = Clock::default();
        let mut backend = Launcher::new(latency, &cells(), &clock);
        let mut policy = Policy::new(PolicyMode::Measured, &cells(), &limits, 1);
        policy.calibrate(&mut bench(&mut backend, &|| clock.now()), 3.0).unwrap();
        for shape in [whole, decode(8, 900), prompt] {
            serve(&mut policy, &mut backend, &clock, &shape, 200);
        }
        assert_eq!(policy.splits(&whole, &decode(8, 900), &prompt), splits, "{latency}");
        let apart = serve(&mut policy, &mut backend, &clock, &decode(8, 900), 100)
            + serve(&mut policy, &mut backend, &clock, &prompt, 100);
        let together = serve(&mut policy, &mut backend, &clock, &whole, 100);
        assert_eq!(apart < together, splits, "{latency}: {apart} apart, {together} together");
    }
}

/// One sequence over all lengths comes first; a budget that fits nothing measures nothing and leaves the policy usable.
#[test]
fn the_budget_is_kept() {
    for budget in [0.0, 0.2, 1.0] {
        let clock = Clock::default();
        let mut backend = Launcher::new(10e-6, &cells(), &clock);
        let mut policy = Policy::new(PolicyMode::Measured, &cells(), &LIMITS, 1);
        let now = || clock.now();
        let calibration = policy.calibrate(&mut bench(&mut backend, &now), budget).unwrap();
        assert!(clock.now() <= budget + 0.05, "{budget}: {calibration:?}");
        assert!(calibration.measured < calibration.kinds, "{calibration:?}");
        let known = policy.table().into_iter().filter(|entry| entry.average.samples > 0);
        let first: Vec<_> = known.map(|entry| (entry.alike.phase, entry.alike.rows.to)).collect();
        match budget {
            0.0 => assert_eq!((first.len(), backend.steps), (0, 0)),
            0.2 => assert!(first.contains(&(Phase::Decode, 1)), "{first:?}"),
            _ => assert!(first.iter().any(|&(_, rows)| rows > 1), "{first:?}"),
        }
        serve(&mut policy, &mut backend, &clock, &decode(3, 700), 10);
    }
}

/// What a policy has learnt, another one takes over, and notices when the machine has changed.
#[test]
fn a_table_is_restored_and_checked() {
    let clock = Clock::default();
    let now = || clock.now();
    let mut backend = Launcher::new(10e-6, &cells(), &clock);
    let mut first = Policy::new(PolicyMode::Measured, &cells(), &LIMITS, 2);
    let calibration = first.calibrate(&mut bench(&mut backend, &now), 2.0).unwrap();
    let mut second = Policy::new(PolicyMode::Measured, &cells(), &LIMITS, 2);
    assert_eq!(second.restore(&first.table()), calibration.measured);
    assert_eq!(second.table(), first.table());
    let before = backend.steps;
    assert!(second.still_holds(&mut bench(&mut backend, &now)).unwrap());
    assert!((1..600).contains(&(backend.steps - before)));
    let mut slower = Launcher::new(40e-6, &cells(), &clock);
    assert!(!second.still_holds(&mut bench(&mut slower, &now)).unwrap());
    // Other cells: only kinds whose cells are all known.
    let mut other = Policy::new(PolicyMode::Measured, &cells()[..3], &LIMITS, 2);
    assert!(other.restore(&first.table()) < calibration.measured);
    let mut blank = Policy::new(PolicyMode::Measured, &cells(), &LIMITS, 2);
    assert_eq!(blank.restore(&[]), 0);
    assert!(!blank.still_holds(&mut bench(&mut backend, &now)).unwrap());
}

/// What the first start had no time for is measured by later ones.
#[test]
fn a_table_is_completed() {
    let clock = Clock::default();
    let now = || clock.now();
    let mut backend = Launcher::new(10e-6, &cells(), &clock);
    let mut known = Vec::new();
    let mut measured = 0;
    for _ in 0..20 {
        let mut policy = Policy::new(PolicyMode::Measured, &cells(), &LIMITS, 2);
        assert_eq!(policy.restore(&known), measured);
        let done = policy.calibrate(&mut bench(&mut backend, &now), 3.0).unwrap();
        assert_eq!(done.before, measured);
        assert!(done.seconds < 3.2, "{done:?}");
        measured += done.measured;
        known = policy.table();
        if measured == done.kinds {
            return;
        }
        assert!(done.measured > 0, "{done:?}");
    }
    panic!("{measured} kinds are known after 20 starts");
}

/// A padded graph that was not measured is not believed.
#[test]
fn what_is_assumed_for_others_is_never_padded() {
    let clock = Clock::default();
    let now = || clock.now();
    let mut backend = Launcher::new(50e-6, &cells(), &clock);
    let mut policy = Policy::new(PolicyMode::Measured, &cells(), &LIMITS, 1);
    policy.calibrate(&mut bench(&mut backend, &now), 0.5).unwrap();
    let assumed: Vec<_> = policy.table().into_iter().filter(|entry| entry.average.samples == 0).collect();
    assert!(assumed.iter().any(|entry| entry.present && entry.cell.replay == Replay::Full), "{assumed:?}");
    for entry in assumed.iter().filter(|entry| entry.cell.replay != Replay::None) {
        assert!(entry.cell.rows <= entry.alike.rows.from, "{entry:?}");
    }
}

proptest! {
    /// Whatever the shape, the step is valid for the backend and belongs to the kind that it stands for.
    #[test]
    fn synthetic_steps_are_valid(
        seqs in 1usize..20,
        more in 64usize..300,
        max_model_len in 2usize..3000,
        blocks in 0usize..100,
        sizes in prop::collection::vec((0usize..3, 1u32..300), 0..5),
    ) {
        let limits = StepLimits {
            max_tokens: seqs + more,
            max_segments: seqs,
            max_logit_rows: seqs + 64,
            max_model_len,
        };
        let pools = PoolSizes { blocks: max_model_len.div_ceil(16) + blocks, slots: seqs };
        let parts = [Part::Any, Part::Decode, Part::Prefill];
        let graphs = sizes.iter().map(|&(part, rows)| Cell { replay: Replay::Full, part: parts[part], rows, ..Cell::EAGER });
        let cells: Vec<Cell> = std::iter::once(Cell::EAGER).chain(graphs).collect();
        let policy = Policy::new(PolicyMode::Measured, &cells, &limits, 1);
        let world = StepWorld { pools, vocab_size: VOCAB, chooses: true };
        for index in 0..policy.ranges.count() {
            let alike = policy.ranges.alike(index);
            let Some(shape) = alike.example(&cells).filter(|shape| shape.sequences as usize <= seqs) else { continue };
            let step = crate::policy::synthetic::step(&shape, &world);
            prop_assert!(step.validate(&limits, &pools, VOCAB).is_ok(), "{:?} for {shape:?}", step.validate(&limits, &pools, VOCAB));
            prop_assert_eq!(policy.ranges.index(&step.shape()), index, "{:?} for {:?} of {:?}", step.shape(), shape, alike);
        }
    }
}
