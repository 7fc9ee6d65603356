mod launches;

use super::average::Average;
use super::*;
use proptest::prelude::*;
use refrain_device::{Part, Replay};

const LIMITS: StepLimits = StepLimits { max_tokens: 512, max_segments: 64, max_logit_rows: 128, max_model_len: 8192 };

fn cells() -> impl Strategy<Value = Vec<Cell>> {
    let replay = prop_oneof![Just(Replay::Piecewise), Just(Replay::Full)];
    let part = prop_oneof![Just(Part::Any), Just(Part::Decode), Just(Part::Prefill)];
    let graph = (any::<bool>(), replay, part, prop_oneof![1u32..70, 1u32..600])
        .prop_map(|(compiled, replay, part, rows)| Cell { compiled, replay, part, rows });
    (any::<bool>(), prop::collection::vec(graph, 0..12)).prop_map(|(compiled, graphs)| {
        let compiled = compiled.then_some(Cell { compiled: true, ..Cell::EAGER });
        std::iter::once(Cell::EAGER).chain(compiled).chain(graphs).collect()
    })
}

fn decode(rows: u32, context: u32) -> StepShape {
    StepShape { rows, sequences: rows, decodes: rows, one_prefill: false, context }
}

fn steps() -> impl Strategy<Value = StepShape> {
    prop_oneof![
        (1u32..=64, 1u32..=8192).prop_map(|(rows, context)| decode(rows, context)),
        (1u32..=512, 0u32..120).prop_map(|(rows, chunks)| StepShape {
            rows,
            sequences: 1,
            decodes: 0,
            one_prefill: true,
            context: chunks * 64 + rows,
        }),
        (1u32..64, 0u32..63, 1u32..440, 1u32..=8192).prop_map(|(prompts, decodes, more, context)| {
            let prompts = prompts.min(64 - decodes);
            let rows = decodes + prompts + more.max(1).min(512 - decodes - prompts);
            StepShape { rows, sequences: decodes + prompts, decodes, one_prefill: false, context }
        }),
    ]
}

fn modes() -> impl Strategy<Value = PolicyMode> {
    (0..PolicyMode::ALL.len()).prop_map(|index| PolicyMode::ALL[index])
}

/// The same sequence of numbers in `[0, 1)` for the same seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

const WAYS: [Cell; 3] = [
    Cell::EAGER,
    Cell { compiled: true, replay: Replay::None, part: Part::Any, rows: 0 },
    Cell { compiled: true, replay: Replay::Full, part: Part::Decode, rows: 8 },
];

/// A policy over [`WAYS`] that was calibrated with these seconds, or knows nothing.
fn policy(calibrated: Option<[f64; 3]>) -> Policy {
    let mut policy = Policy::new(PolicyMode::Measured, &WAYS, &LIMITS, 1);
    if let Some(seconds) = calibrated {
        let index = policy.ranges.index(&decode(8, 100));
        policy.entries[index].set(&seconds.map(Average::calibrated));
    }
    policy
}

/// What came of many steps of one kind.
#[derive(Debug, Default)]
struct Run {
    /// Seconds of all steps.
    seconds: f64,
    /// Steps by cell.
    steps: [u32; 3],
    /// Changes of the present cell.
    switches: u32,
}

/// Runs steps of one kind whose cells cost `truth`, give or take `noise`.
fn run(policy: &mut Policy, truth: [f64; 3], noise: f64, seed: u64, steps: u32) -> Run {
    let mut random = Noise(seed);
    run_with(policy, steps, |way, _| truth[way] * (1.0 + noise * (2.0 * random.next() - 1.0)))
}

/// Runs steps of one kind of which each takes what `cost` says, of the cell's number and of how many ran in it before.
fn run_with(policy: &mut Policy, steps: u32, mut cost: impl FnMut(usize, u32) -> f64) -> Run {
    let (mut run, mut now) = (Run::default(), policy.finished);
    let index = policy.ranges.index(&decode(8, 100));
    for _ in 0..steps {
        let present = policy.entries[index].present;
        let cell = policy.begin(&decode(8, 100), now);
        let way = WAYS.iter().position(|way| *way == cell).unwrap();
        let seconds = cost(way, run.steps[way]);
        now += seconds;
        policy.finish(now);
        run.seconds += seconds;
        run.steps[way] += 1;
        run.switches += u32::from(policy.entries[index].present != present);
    }
    run
}

fn least(truth: [f64; 3]) -> f64 {
    truth.into_iter().fold(f64::INFINITY, f64::min)
}

impl Policy {
    /// Takes it for measured that steps of a phase take so many seconds, however they are run.
    pub(crate) fn tell(&mut self, phase: Phase, seconds: f64) {
        let kinds = (0..self.entries.len()).filter(|&index| self.ranges.phase(index) == phase).collect::<Vec<_>>();
        for index in kinds {
            let averages = vec![Average::calibrated(seconds); self.entries[index].candidates.len()];
            self.entries[index].set(&averages);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the rule, whatever was measured.
    #[test]
    fn the_cell_is_one_of_the_backends_and_suits(
        cells in cells(),
        mode in modes(),
        depth in 1usize..3,
        steps in prop::collection::vec((steps(), 1e-4f64..1.0), 1..80),
    ) {
        let mut policy = Policy::new(mode, &cells, &LIMITS, depth);
        let mut now = 0.0;
        for (step, seconds) in steps {
            let chosen = policy.choose(&step);
            let cell = policy.begin(&step, now);
            prop_assert!(mode == PolicyMode::Measured || chosen == cell);
            prop_assert!(cells.contains(&cell), "{cell} is none of {cells:?}");
            prop_assert!(cell.suits(&step), "{cell} for {step:?}");
            if mode == PolicyMode::Eager {
                prop_assert_eq!(cell, Cell::EAGER);
            }
            now += seconds;
            if policy.flying.len() == depth {
                policy.finish(now);
            }
        }
    }

    /// Steps that are alike have the same candidates, and an example of a kind belongs to it.
    #[test]
    fn within_a_kind_the_same_cells_suit(cells in cells(), steps in prop::collection::vec(steps(), 1..20)) {
        let policy = Policy::new(PolicyMode::Measured, &cells, &LIMITS, 1);
        for step in steps {
            let index = policy.ranges.index(&step);
            let alike = policy.ranges.alike(index);
            let inside = |span: Span, number| (span.from..=span.to).contains(&number);
            prop_assert_eq!(alike.phase, Phase::of(&step));
            prop_assert!(inside(alike.rows, step.rows), "{step:?} in {alike:?}");
            prop_assert!(inside(alike.context, step.context), "{step:?} in {alike:?}");
            let suiting = |step: &StepShape| cells.iter().filter(|cell| cell.suits(step)).count();
            if let Some(example) = alike.example(&cells) {
                prop_assert_eq!(policy.ranges.index(&example), index, "{:?} of {:?}", example, alike);
                prop_assert_eq!(suiting(&example), suiting(&step), "{:?} and {:?}", example, step);
            }
        }
    }

    /// A calibration that has seen the truth through noise, then service with noise and tries: never far from the best.
    #[test]
    fn what_it_loses_is_bounded(
        truth in prop::array::uniform3(1e-3f64..1e-2),
        noise in 0.0f64..0.1,
        seed: u64,
    ) {
        let mut random = Noise(seed);
        let seen = truth.map(|seconds| seconds * (1.0 + noise * (2.0 * random.next() - 1.0)));
        let mut policy = policy(Some(seen));
        let steps = 3000;
        let run = run(&mut policy, truth, noise, seed, steps);
        let lost = run.seconds / (least(truth) * f64::from(steps)) - 1.0;
        prop_assert!(lost < 0.035 + noise / 3.0, "{lost}: {run:?}");
        prop_assert!(policy.spent.trying + policy.spent.looking <= 0.0201 * policy.spent.all + 1e-2, "{:?}", policy.spent);
    }

    /// A calibration that was wrong: whoever it flattered is found out.
    #[test]
    fn flattery_is_found_out(truth in prop::array::uniform3(1e-3f64..1e-2), claims in prop::array::uniform3(0.3f64..1.0)) {
        let mut policy = policy(Some(std::array::from_fn(|way| truth[way] * claims[way])));
        run(&mut policy, truth, 0.0, 1, 2000);
        let late = run(&mut policy, truth, 0.0, 1, 1000);
        prop_assert!(late.seconds / 1000.0 < 1.036 * least(truth), "{late:?}");
    }

    /// A calibration that was wrong: whoever it slandered is found out, too, and what is as bad as it says costs little.
    #[test]
    fn slander_is_found_out(
        truth in prop::array::uniform3(1e-3f64..1e-2),
        claims in prop::array::uniform3(0.3f64..8.0),
        noise in 0.0f64..0.1,
        seed: u64,
    ) {
        let mut policy = policy(Some(std::array::from_fn(|way| truth[way] * claims[way])));
        let all = run(&mut policy, truth, noise, seed, 100_000);
        prop_assert!(all.seconds / 100_000.0 < (1.06 + noise / 3.0) * least(truth), "{all:?}");
        let late = run(&mut policy, truth, noise, seed, 20_000);
        prop_assert!(late.seconds / 20_000.0 < (1.04 + noise / 3.0) * least(truth), "{late:?}");
        prop_assert!(policy.spent.trying + policy.spent.looking <= 0.0201 * policy.spent.all + 1e-1, "{:?}", policy.spent);
    }

    /// Without a calibration, the first measurement of any cell may be an accident.
    #[test]
    fn a_first_step_that_is_held_up_does_not_ban(
        truth in prop::array::uniform3(1e-3f64..1e-2),
        held_up in prop::array::uniform3(1.0f64..20.0),
        known: bool,
    ) {
        let mut policy = policy(known.then_some(truth));
        let all = run_with(&mut policy, 100_000, |way, before| truth[way] * if before == 0 { held_up[way] } else { 1.0 });
        prop_assert!(all.seconds / 100_000.0 < 1.15 * least(truth), "{all:?}");
        let late = run(&mut policy, truth, 0.0, 1, 20_000);
        prop_assert!(late.seconds / 20_000.0 < 1.04 * least(truth), "{late:?}");
    }

    /// Without a calibration, tries find the best.
    #[test]
    fn without_a_calibration_tries_find_the_best(truth in prop::array::uniform3(1e-3f64..1e-2)) {
        let mut policy = policy(None);
        run(&mut policy, truth, 0.01, 7, 4000);
        let late = run(&mut policy, truth, 0.01, 7, 2000);
        prop_assert!(late.seconds / 2000.0 < 1.05 * least(truth), "{late:?}");
    }

    /// Cells that cost the same don't take turns.
    #[test]
    fn equals_do_not_flap(seed: u64, noise in 0.0f64..0.1, apart in 0.0f64..0.02) {
        let truth = [1e-3, 1e-3 * (1.0 + apart), 1e-3];
        let run = run(&mut policy(Some(truth)), truth, noise, seed, 20_000);
        prop_assert!(run.switches <= 6, "{run:?}");
    }
}

#[test]
fn a_cell_that_becomes_slow_is_left() {
    let truth = [2e-3, 1.5e-3, 1e-3];
    let mut policy = policy(Some(truth));
    assert_eq!(run(&mut policy, truth, 0.0, 1, 200).steps, [0, 0, 200]);
    let slow = [2e-3, 1.5e-3, 3e-3];
    let run = run(&mut policy, slow, 0.0, 1, 300);
    assert!(run.steps[1] > 150, "{run:?}");
}

#[test]
fn a_cell_that_was_slow_is_found_out() {
    let mut policy = policy(None);
    let mut steps = 0;
    let run = run_with(&mut policy, 1_000_000, |way, _| {
        steps += 1;
        [1.5e-3, 1.4e-3, if steps <= 2000 { 5e-3 } else { 1e-3 }][way]
    });
    assert!(run.steps[2] > 980_000, "{run:?}");
}

/// What an earlier start has got wrong doesn't stay, however sure it was.
#[test]
fn slander_in_a_kept_table_is_found_out() {
    let truth = [2e-3, 1.5e-3, 1e-3];
    let kept = [2e-3, 1.5e-3, 2e-3].map(|seconds| Average { seconds, samples: 100_000 });
    let mut policy = policy(None);
    let index = policy.ranges.index(&decode(8, 100));
    policy.entries[index].set(&kept);
    let run = run(&mut policy, truth, 0.0, 1, 10_000);
    assert!(run.steps[2] > 9000, "{run:?}");
}

#[test]
fn a_surprise_is_looked_at_ever_more_rarely() {
    let (mut blank, truth) = (policy(None), [1e-3, 1e-3, 0.5]);
    assert_eq!(run(&mut blank, truth, 0.0, 1, 5000).steps[2], 1, "one step of it takes as long as 500 others");
    // No more than the share that looks have, and the first, which nobody could foresee.
    let looks = run(&mut blank, truth, 0.0, 1, 1_000_000).steps[2];
    assert!((2..=11).contains(&looks), "{looks}");
    // Where the share would do for 2500 looks, their number is bounded.
    let truth = [1e-3, 1e-3, 2e-3];
    let looks = run(&mut policy(Some(truth)), truth, 0.0, 1, 1_000_000).steps[2];
    assert!((20..60).contains(&looks), "{looks}");
}

/// Whoever compares modes must not teach the measured one what service would not have taught it.
#[test]
fn nothing_is_learnt_under_a_fixed_rule() {
    let mut policy = policy(Some([2e-3, 1.5e-3, 1e-3]));
    let before = policy.table();
    for mode in PolicyMode::ALL.into_iter().filter(|mode| *mode != PolicyMode::Measured) {
        policy.set_mode(mode);
        run(&mut policy, [1e-4, 1e-4, 1e-2], 0.0, 1, 300);
        assert!(policy.oldest().is_none());
        policy.begin(&decode(8, 100), 10.0);
        assert!(policy.oldest().is_some_and(|(_, seconds)| seconds < 1.1e-2), "steps are paced by what they take now");
        policy.fail_newest();
    }
    policy.set_mode(PolicyMode::Measured);
    assert_eq!(policy.table(), before);
    assert_eq!((policy.spent.all, policy.spent.trying), (0.0, 0.0));
}

/// A trace makes steps slower: whoever looks where the time goes must not change it.
#[test]
fn nothing_is_learnt_from_traced_steps() {
    let mut policy = policy(Some([1.2e-3, 1.1e-3, 1e-3]));
    let (step, before) = (decode(8, 100), policy.table());
    let mut now = 0.0;
    for _ in 0..300 {
        assert_eq!(policy.begin_traced(&step, now), WAYS[2], "the present one, and no try");
        now += 5e-3;
        policy.finish(now);
    }
    assert_eq!((policy.table(), policy.spent), (before.clone(), Spent::default()));
    policy.begin_traced(&step, now);
    assert!(
        policy.oldest().is_some_and(|(_, seconds)| (seconds - 5e-3).abs() < 1e-9),
        "they are paced by their own time"
    );
    policy.fail_newest();
    policy.begin(&step, now);
    assert!(policy.oldest().is_some_and(|(_, seconds)| seconds == 1e-3), "and the others by theirs");
    policy.finish(now + 1.1e-3);
    assert_ne!(policy.table(), before);
}

/// Medians of a few steps are noisy: padding is believed in only if it saves more than that.
#[test]
fn a_calibration_does_not_pad_for_nothing() {
    let pieces = Cell { compiled: true, replay: Replay::Piecewise, part: Part::Any, rows: 64 };
    for (seconds, chosen) in [(0.99e-3, WAYS[2]), (0.9e-3, pieces)] {
        let cells = [WAYS[0], WAYS[2], pieces];
        let mut policy = Policy::new(PolicyMode::Measured, &cells, &LIMITS, 1);
        let index = policy.ranges.index(&decode(8, 100));
        policy.entries[index].set(&[2e-3, 1e-3, seconds].map(Average::calibrated));
        assert_eq!(policy.choose(&decode(8, 100)), chosen, "{seconds}");
    }
}

/// Two steps on their way: the host begins the next one while the device works. What counts is what the user waits for,
/// the host's time or the device's, whichever is longer.
#[test]
fn overlapping_steps_cost_what_is_longer() {
    for (host, device) in [(1e-3, 4e-3), (4e-3, 1e-3)] {
        let mut policy = Policy::new(PolicyMode::Compiled, &WAYS, &LIMITS, 2);
        let step = decode(8, 100);
        let (mut now, mut free): (f64, f64) = (1.0, 0.0);
        let mut ends = VecDeque::new();
        for _ in 0..50 {
            policy.begin(&step, now);
            now += host;
            free = free.max(now) + device;
            ends.push_back(free);
            if ends.len() == 2 {
                now = now.max(ends.pop_front().unwrap());
                policy.finish(now);
            }
        }
        let entry = &policy.entries[policy.ranges.index(&step)];
        let average = entry.candidates[1].fixed;
        assert!(average.samples >= 40, "{average:?}");
        assert!((average.seconds - f64::max(host, device)).abs() < 1e-6, "{average:?}");
    }
}

/// A step is run as two only where that was measured to be faster, and is then run whole now and then.
#[test]
fn steps_are_split_where_that_is_faster() {
    let mixed = StepShape { rows: 60, sequences: 4, decodes: 3, one_prefill: false, context: 90 };
    let prompt = StepShape { rows: 57, sequences: 1, decodes: 0, one_prefill: true, context: 57 };
    let mut policy = policy(None);
    assert!(!policy.splits(&mixed, &decode(3, 90), &prompt), "nothing is known");
    policy.tell(Phase::Decode, 1.0);
    policy.tell(Phase::Prefill, 2.0);
    assert!(!policy.splits(&mixed, &decode(3, 90), &prompt), "the whole is not known");
    for (whole, splits) in [(2.9, false), (3.05, false), (3.2, true), (3.05, true), (2.9, false), (3.05, false)] {
        policy.tell(Phase::Mixed, whole);
        assert_eq!(policy.splits(&mixed, &decode(3, 90), &prompt), splits, "{whole}");
    }
    for (whole, steps, again) in [(3.2, 650, 10), (30.0, 650, 0), (30.0, 5000, 1)] {
        policy.tell(Phase::Mixed, whole);
        let split = policy.split_steps();
        let run = (0..steps).filter(|_| !policy.splits(&mixed, &decode(3, 90), &prompt)).count();
        assert_eq!((run, policy.split_steps() - split), (again, steps - again as u64), "{whole}");
    }
    policy.set_mode(PolicyMode::Graph);
    assert!(!policy.splits(&mixed, &decode(3, 90), &prompt), "a fixed rule runs steps as they are");
}

#[test]
fn fixed_rules_are_those_of_their_names() {
    let graph = |compiled, replay, part, rows| Cell { compiled, replay, part, rows };
    let small = graph(true, Replay::Full, Part::Decode, 4);
    let large = graph(true, Replay::Full, Part::Decode, 8);
    let plain = graph(false, Replay::Full, Part::Decode, 8);
    let pieces = graph(true, Replay::Piecewise, Part::Any, 64);
    let compiled = Cell { compiled: true, ..Cell::EAGER };
    let cells = [Cell::EAGER, compiled, large, small, plain, pieces];
    let mixed = StepShape { rows: 60, sequences: 4, decodes: 3, one_prefill: false, context: 90 };
    let steps = [decode(3, 9), decode(6, 9), mixed, decode(40, 9), StepShape { rows: 500, ..mixed }];
    let cases = [
        (PolicyMode::Static, [small, large, pieces, pieces, compiled]),
        (PolicyMode::Eager, [Cell::EAGER; 5]),
        (PolicyMode::Compiled, [compiled; 5]),
        (PolicyMode::Graph, [small, large, pieces, pieces, compiled]),
        (PolicyMode::EagerGraph, [plain, plain, Cell::EAGER, Cell::EAGER, Cell::EAGER]),
    ];
    for (mode, wanted) in cases {
        let policy = Policy::new(mode, &cells, &LIMITS, 1);
        assert_eq!(steps.map(|step| policy.choose(&step)), wanted, "{mode}");
    }
}
