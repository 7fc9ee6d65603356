//! Before the first request: what do steps of each kind cost in each cell? Within a budget of seconds, the kinds that
//! say most first; the others take over how the cells compare in the nearest kind that was measured.

use super::average::Average;
use super::ranges::{Alike, Phase};
use super::synthetic::{self, StepWorld};
use super::{Entry, Policy};
use refrain_device::{Backend, Cell, DeviceError, Step, StepShape};

/// Steps behind a median, at least ...
const LEAST_SAMPLES: usize = 3;

/// ... and while they are short, up to so many ...
const MOST_SAMPLES: usize = 15;

/// ... until they have taken so many seconds.
const ENOUGH_SECONDS: f64 = 0.01;

/// A median that was kept may be off by this factor before all that was kept is thrown away.
const STILL_TRUE: f64 = 1.25;

/// Kinds that are measured again to see whether what was kept is true.
const CHECKED: usize = 4;

/// Something to measure on.
pub struct Bench<'a> {
    /// The backend, with nothing to do and its pools empty.
    pub backend: &'a mut dyn Backend,
    /// What steps are made for.
    pub world: StepWorld,
    /// Seconds since any moment.
    pub clock: &'a dyn Fn() -> f64,
    /// Is told of kinds of steps that were looked at, out of how many.
    pub progress: &'a dyn Fn(usize, usize),
}

/// What a calibration has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Calibration {
    /// Kinds of steps that had been measured before.
    pub before: usize,
    /// Kinds of steps that are measured now.
    pub measured: usize,
    /// Kinds of steps for which there is a choice.
    pub kinds: usize,
    /// Seconds that it took.
    pub seconds: f64,
}

/// A kind to measure.
struct Kind {
    index: usize,
    step: StepShape,
    /// What comes first: 0, and how large it is.
    order: (u8, u64),
}

impl Policy {
    /// Measures for about `budget` seconds, kinds that were not measured yet.
    ///
    /// # Errors
    /// [`DeviceError`] of the first step that fails.
    pub fn calibrate(&mut self, bench: &mut Bench<'_>, budget: f64) -> Result<Calibration, DeviceError> {
        let begun = (bench.clock)();
        let mut kinds = self.kinds(bench);
        let (all, mut measured) = (kinds.len(), self.measured());
        kinds.retain(|kind| !measured.contains(&kind.index));
        let before = all - kinds.len();
        let mut too_long: Vec<StepShape> = Vec::new();
        for (looked_at, kind) in kinds.iter().enumerate() {
            (bench.progress)(before + looked_at, all);
            // What is larger than steps that were too long is too long.
            let larger = |small: &StepShape| {
                Phase::of(small) == Phase::of(&kind.step)
                    && small.rows <= kind.step.rows
                    && small.context <= kind.step.context
            };
            if too_long.iter().any(larger) {
                continue;
            }
            let left = budget - ((bench.clock)() - begun);
            match self.measure(kind, bench, left)? {
                true => measured.push(kind.index),
                false => too_long.push(kind.step),
            }
        }
        self.assume_the_rest(&measured);
        let measured = measured.len() - before;
        Ok(Calibration { before, measured, kinds: all, seconds: (bench.clock)() - begun })
    }

    /// Numbers of the kinds with a choice that were measured.
    fn measured(&self) -> Vec<usize> {
        let measured =
            self.entries.iter().enumerate().filter(|(_, entry)| entry.candidates.len() > 1 && entry.is_measured());
        measured.map(|(index, _)| index).collect()
    }

    /// Kinds with a choice, in the order in which they are measured.
    fn kinds(&self, bench: &Bench<'_>) -> Vec<Kind> {
        let cells = bench.backend.cells();
        let with_choice = self.entries.iter().enumerate().filter(|(_, entry)| entry.candidates.len() > 1);
        let kinds = with_choice.filter_map(|(index, entry)| {
            let alike = self.ranges.alike(index);
            let step = alike.example(cells)?;
            let possible = step.sequences as usize <= self.limits.max_segments;
            possible.then(|| Kind { index, step, order: (rank(&alike, entry.has_exact_graph(), index), cost(&step)) })
        });
        let mut kinds: Vec<Kind> = kinds.collect();
        kinds.sort_by_key(|kind| kind.order);
        kinds
    }

    /// Measures all cells of a kind; false when that would take more than `left` seconds.
    fn measure(&mut self, kind: &Kind, bench: &mut Bench<'_>, left: f64) -> Result<bool, DeviceError> {
        if left <= 0.0 {
            return Ok(false);
        }
        let step = synthetic::step(&kind.step, &bench.world);
        debug_assert_eq!(self.ranges.index(&step.shape()), kind.index, "{:?} for {:?}", step.shape(), kind.step);
        let candidates: Vec<Cell> =
            self.entries[kind.index].candidates.iter().map(|candidate| candidate.cell).collect();
        // The first run of a shape may pay for more than itself, and tells how long the rest will take.
        let first = bench.samples(&step, candidates[0], 1, 1)?[0];
        if first * (candidates.len() * (LEAST_SAMPLES + self.depth)) as f64 > left {
            return Ok(false);
        }
        let averages = candidates.iter().map(|&cell| bench.median(&step, cell, self.depth).map(Average::calibrated));
        let averages = averages.collect::<Result<Vec<_>, _>>()?;
        self.entries[kind.index].set(&averages);
        Ok(true)
    }

    /// Lets each kind that was not measured take over how the cells compare in the nearest one that was. Graphs that are
    /// padded are not believed without a measurement.
    pub(super) fn assume_the_rest(&mut self, measured: &[usize]) {
        let alikes: Vec<Alike> = (0..self.entries.len()).map(|index| self.ranges.alike(index)).collect();
        for index in (0..self.entries.len()).filter(|index| !measured.contains(index)) {
            let own = &alikes[index];
            let distance = |other: &Alike| {
                let steps = |a: u32, b: u32| (f64::from(a).log2() - f64::from(b).log2()).abs();
                steps(own.context.to, other.context.to) + 4.0 * steps(own.rows.to, other.rows.to)
            };
            let same = measured.iter().filter(|&&other| alikes[other].phase == own.phase);
            let nearest = same.min_by(|&&a, &&b| distance(&alikes[a]).total_cmp(&distance(&alikes[b])));
            let Some(&nearest) = nearest else { continue };
            let averages = assumed(&self.entries[index], own, &self.entries[nearest]);
            self.entries[index].set(&averages);
        }
    }

    /// Whether a table that was kept still holds: measures a few kinds of it again, and leaves it as it is.
    ///
    /// # Errors
    /// [`DeviceError`] of the first step that fails.
    pub fn still_holds(&self, bench: &mut Bench<'_>) -> Result<bool, DeviceError> {
        let mut kinds = self.kinds(bench);
        kinds.retain(|kind| self.entries[kind.index].is_measured());
        // Those that were measured first, which are short, and one in the middle.
        let places = (0..CHECKED - 1).chain([kinds.len() / 2]).filter(|&place| place < kinds.len());
        for place in places.collect::<std::collections::BTreeSet<_>>() {
            let step = synthetic::step(&kinds[place].step, &bench.world);
            for candidate in &self.entries[kinds[place].index].candidates {
                let ratio = bench.median(&step, candidate.cell, self.depth)? / candidate.average.seconds;
                if !(STILL_TRUE.recip()..=STILL_TRUE).contains(&ratio) {
                    return Ok(false);
                }
            }
        }
        Ok(!kinds.is_empty())
    }
}

/// The averages of a kind that was not measured, from one that was.
fn assumed(entry: &Entry, alike: &Alike, other: &Entry) -> Vec<Average> {
    let averages = entry.candidates.iter().map(|candidate| {
        let way = |cell: &Cell| (cell.compiled, cell.replay, cell.part);
        let same = other.candidates.iter().find(|other| way(&other.cell) == way(&candidate.cell));
        let padded = candidate.cell.rows > alike.rows.from;
        match same {
            Some(same) if !padded => Average::assumed(same.average.seconds),
            _ => Average::default(),
        }
    });
    averages.collect()
}

/// What is measured first: one sequence that decodes at every length, steps of the very sizes for which graphs were
/// recorded, a spread of the other decode steps and of whole pieces of prompts, then the rest.
fn rank(alike: &Alike, exact: bool, index: usize) -> u8 {
    match alike.phase {
        Phase::Decode if alike.rows.to == 1 => 0,
        Phase::Decode | Phase::Prefill if exact => 1,
        Phase::Decode | Phase::Prefill if index.is_multiple_of(3) => 2,
        Phase::Decode | Phase::Prefill => 3,
        Phase::Mixed => 4,
    }
}

/// How large a step is, roughly: rows, and what their attention reads.
fn cost(step: &StepShape) -> u64 {
    u64::from(step.rows) * (4096 + u64::from(step.context))
}

impl Bench<'_> {
    /// The median of the seconds of a step, while up to `depth` are on their way.
    fn median(&mut self, step: &Step, cell: Cell, depth: usize) -> Result<f64, DeviceError> {
        let mut samples = self.samples(step, cell, LEAST_SAMPLES, depth)?;
        let sum: f64 = samples.iter().sum();
        if sum < ENOUGH_SECONDS {
            samples = self.samples(step, cell, MOST_SAMPLES, depth)?;
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples[samples.len() / 2])
    }

    /// Seconds of so many steps, after one that doesn't count.
    fn samples(&mut self, step: &Step, cell: Cell, count: usize, depth: usize) -> Result<Vec<f64>, DeviceError> {
        // Nothing begins behind a step that gives logits.
        let depth = if self.world.chooses { depth } else { 1 };
        let steps = count + depth;
        let (mut samples, mut begun, mut finished) = (Vec::new(), Vec::new(), f64::NEG_INFINITY);
        for turn in 0..steps + depth - 1 {
            if turn < steps {
                begun.push((self.clock)());
                self.backend.begin(step, cell)?;
            }
            if turn + 1 >= depth {
                self.backend.finish()?;
                let now = (self.clock)();
                samples.push(now - finished.max(begun[samples.len()]));
                finished = now;
            }
        }
        // Nothing begins while the last ones are waited for.
        samples.truncate(1 + count);
        Ok(samples.split_off(1))
    }
}
