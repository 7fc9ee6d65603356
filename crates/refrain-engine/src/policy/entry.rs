//! One kind of steps with the cells that suit them: the choice, and when to try another.

use super::average::Average;
use super::mode::PolicyMode;
use super::ranges::{Alike, Phase};
use refrain_device::{Cell, Part, Replay};

/// How much better another cell must be to replace the present one.
const HYSTERESIS: f64 = 0.03;

/// The same once both averages are sure.
const SURE_HYSTERESIS: f64 = 0.01;

/// Measurements that make an average sure.
const SURE: u32 = 64;

/// Measurements without which a cell isn't taken for the best.
const KNOWN: u32 = 2;

/// Every so many steps of a kind another cell is tried, sooner while it isn't known ...
const TRY_EVERY: u32 = 64;
const TRY_UNKNOWN: u32 = 8;

/// ... unless that would make tries take more than this part of the time.
const TRY_SHARE: f64 = 0.015;

/// What costs more than so many times the present one is tried more rarely ...
const TRY_COST: f64 = 1.25;

/// ... after so many steps of a kind at first, twice as many after each such look, and at most so many ...
const LOOK_AFTER: u64 = 64;
const LOOK_AFTER_MOST: u64 = 1 << 15;

/// ... unless that would make such looks take more than this part of the time. It is a share of its own: cheap tries take
/// all of theirs where they can, and would leave nothing for the dear ones.
const LOOK_SHARE: f64 = 0.005;

/// Every so many steps that are run as two one is run whole, though that costs more than so many times as much.
const WHOLE_EVERY: u32 = 4096;

/// A cell that suits these steps, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The cell.
    pub cell: Cell,
    /// Seconds of a step, as a calibration and the measured rule have seen them.
    pub average: Average,
    /// Seconds of a step under the fixed rules and of one that is traced, from which nobody learns which cell is the best.
    pub fixed: Average,
    /// Whether its graph has more rows than some of these steps.
    padded: bool,
    /// The step of its kind from which on it may be looked at while it seems too dear to be tried.
    look_at: u64,
    /// After how many steps it may be looked at once more.
    look_after: u64,
    /// Steps that were run so.
    pub steps: u64,
    /// Rows that graphs had and the steps had not, over all of them.
    pub padding: u64,
}

/// Seconds so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spent {
    /// Of all measured steps.
    pub all: f64,
    /// Of those that tried another cell than the best.
    pub trying: f64,
    /// Of those that looked at one which seemed too dear to be tried.
    pub looking: f64,
}

/// One kind of steps.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// At least one, of each way the one with the least padding; [`Cell::EAGER`] is the first.
    pub candidates: Vec<Candidate>,
    /// Which of them is taken for the best.
    pub present: usize,
    /// Steps in the measured way.
    advanced: u64,
    /// Steps since the last try.
    since_try: u32,
    /// What is being tried, and for how many more steps.
    trying: Option<(usize, u32)>,
    /// Since one was run whole, how many were run as two; `None` while they are not.
    apart: Option<u32>,
    /// Steps that were run as two.
    pub split: u64,
}

impl Entry {
    /// Nothing is known yet: [`Cell::EAGER`] it is.
    pub fn new(alike: &Alike, cells: &[Cell]) -> Entry {
        let mut candidates: Vec<Candidate> = Vec::new();
        for cell in cells.iter().filter(|cell| suits(cell, alike)) {
            let way = |cell: &Cell| (cell.compiled, cell.replay, cell.part);
            match candidates.iter_mut().find(|other| way(&other.cell) == way(cell)) {
                Some(other) if other.cell.rows > cell.rows => other.cell = *cell,
                Some(_) => {}
                None => {
                    candidates.push(Candidate {
                        cell: *cell,
                        average: Average::default(),
                        fixed: Average::default(),
                        padded: false,
                        look_at: LOOK_AFTER,
                        look_after: LOOK_AFTER,
                        steps: 0,
                        padding: 0,
                    });
                }
            }
        }
        for candidate in &mut candidates {
            candidate.padded = candidate.cell.replay != Replay::None && candidate.cell.rows > alike.rows.from;
        }
        Entry { candidates, present: 0, advanced: 0, since_try: 0, trying: None, apart: None, split: 0 }
    }

    /// The candidate of this rule.
    pub fn choose(&self, mode: PolicyMode) -> usize {
        if mode == PolicyMode::Measured {
            return self.trying.map_or(self.present, |(candidate, _)| candidate);
        }
        let liked = |index: &usize| mode.likes(&self.candidates[*index].cell).map(|liking| (liking, *index));
        (0..self.candidates.len()).filter_map(|index| liked(&index)).max().map_or(0, |(_, index)| index)
    }

    /// Counts a step that will be run in the measured way, and begins a try of `burst` steps when it is time.
    pub fn advance(&mut self, burst: u32, spent: &Spent) {
        if let Some((candidate, left)) = self.trying {
            self.trying = (left > 1).then_some((candidate, left - 1));
            if self.trying.is_some() {
                return;
            }
        }
        self.advanced += 1;
        self.since_try = self.since_try.saturating_add(1);
        if self.since_try < TRY_UNKNOWN || self.candidates[self.present].average.samples == 0 {
            return;
        }
        if let Some(index) = self.due_look(burst, spent).or_else(|| self.due_try(burst, spent)) {
            self.since_try = 0;
            self.trying = Some((index, burst));
        }
    }

    /// Ends a try, if there is one.
    pub fn stop_trying(&mut self) {
        self.trying = None;
    }

    /// What seems too dear to be tried, and is to be looked at all the same: what is known of it may be wrong, or no longer
    /// true.
    fn due_look(&mut self, burst: u32, spent: &Spent) -> Option<usize> {
        let affordable = |index: &usize| {
            let cost = self.expected(*index) * f64::from(burst);
            spent.looking + cost <= LOOK_SHARE * spent.all
        };
        let due = |index: &usize| self.is_dear(*index) && self.candidates[*index].look_at <= self.advanced;
        // Not the least known alone: one that takes a thousand times as long would keep the others waiting.
        let looks = (0..self.candidates.len()).filter(|index| due(index) && affordable(index));
        let index = looks.min_by_key(|&index| self.candidates[index].average.samples)?;
        let candidate = &mut self.candidates[index];
        // One measurement may have been an accident, so the second isn't put off.
        if candidate.average.samples >= KNOWN {
            candidate.look_after = LOOK_AFTER_MOST.min(2 * candidate.look_after);
        }
        candidate.look_at = self.advanced + candidate.look_after;
        Some(index)
    }

    /// What is to be tried.
    fn due_try(&self, burst: u32, spent: &Spent) -> Option<usize> {
        let cheap = (0..self.candidates.len()).filter(|&index| index != self.present && !self.is_dear(index));
        let least_known = cheap.min_by_key(|&index| self.candidates[index].average.samples)?;
        if self.candidates[least_known].average.samples >= KNOWN && self.since_try < TRY_EVERY {
            return None;
        }
        let cost = self.expected(least_known) * f64::from(burst);
        (spent.trying + cost <= TRY_SHARE * spent.all).then_some(least_known)
    }

    /// Seconds that a step is expected to take. What was never measured is expected to cost as much as what runs: its
    /// first measurement will tell.
    fn expected(&self, candidate: usize) -> f64 {
        match self.candidates[candidate].average {
            average if average.samples == 0 && average.seconds == 0.0 => self.seconds(self.present),
            average => average.seconds,
        }
    }

    /// Says for what a candidate's step was spent, which `counts` as a measurement or doesn't.
    pub fn spend(&self, candidate: usize, seconds: f64, counts: bool, spent: &mut Spent) {
        spent.all += seconds;
        let surprising = counts && self.candidates[candidate].average.samples < KNOWN;
        match candidate {
            same if same == self.present => {}
            dear if self.is_dear(dear) => spent.looking += seconds,
            // What nobody could foresee happens to a cell once or twice, and would only put off finding the best.
            _ if surprising => spent.trying += seconds.min(TRY_COST * self.seconds(self.present)),
            _ => spent.trying += seconds,
        }
    }

    /// Whether a candidate seems to cost so much more than the present one that it is only looked at, and rarely.
    fn is_dear(&self, candidate: usize) -> bool {
        self.expected(candidate) > TRY_COST * self.seconds(self.present)
    }

    /// Whether a whole graph was recorded for just such steps.
    pub fn has_exact_graph(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.cell.replay == Replay::Full && !candidate.padded)
    }

    /// Whether all of its candidates were measured.
    pub fn is_measured(&self) -> bool {
        self.candidates.iter().all(|candidate| candidate.average.samples > 0)
    }

    /// Seconds of such a step, where they were measured.
    pub fn known(&self) -> Option<f64> {
        let present = self.candidates[self.present].average;
        (present.samples >= KNOWN).then_some(present.seconds)
    }

    /// Whether such a step is run as two that take `apart` seconds together. Now and then one is run whole all the same,
    /// for its average to stay true; more rarely where that costs too much.
    pub fn splits(&mut self, apart: f64) -> bool {
        let Some(whole) = self.known() else { return false };
        let (since, hysteresis) = self.apart.map_or((0, HYSTERESIS), |since| (since, 0.0));
        if apart >= (1.0 - hysteresis) * whole {
            self.apart = None;
            return false;
        }
        let again = since >= if whole <= TRY_COST * apart { TRY_EVERY } else { WHOLE_EVERY };
        self.apart = Some(if again { 0 } else { since.saturating_add(1) });
        self.split += u64::from(!again);
        !again
    }

    /// Takes a measurement of a candidate in.
    pub fn measured(&mut self, candidate: usize, seconds: f64) {
        let (before, was_dear) = (self.candidates[candidate].average, self.is_dear(candidate));
        let average = &mut self.candidates[candidate].average;
        average.add(seconds);
        if before.samples < KNOWN && before.seconds > 0.0 {
            // What was assumed came from other steps. How the cells compare is still the best guess.
            let scale = average.seconds / before.seconds;
            let assumed = self.candidates.iter_mut().filter(|candidate| candidate.average.samples == 0);
            assumed.for_each(|candidate| candidate.average.seconds *= scale);
        }
        if was_dear && before.samples >= KNOWN && seconds <= TRY_COST * self.seconds(self.present) {
            // What was known of it is not true, or no longer. An average would take hundreds of looks to say so.
            self.candidates[candidate].average = Average { seconds, samples: 1 };
        }
        // A surprise isn't looked at longer than needed.
        let dear = self.is_dear(candidate);
        self.trying = self.trying.filter(|&(tried, _)| tried != candidate || !dear);
        self.settle();
    }

    /// Replaces the present candidate when another is better by more than the hysteresis.
    fn settle(&mut self) {
        let known = |candidate: &Candidate| candidate.average.samples >= KNOWN;
        let best = (0..self.candidates.len())
            .filter(|&index| index != self.present && known(&self.candidates[index]))
            .min_by(|&a, &b| self.seconds(a).total_cmp(&self.seconds(b)));
        let (Some(best), present) = (best, self.candidates[self.present].average) else { return };
        let sure = present.samples.min(self.candidates[best].average.samples) >= SURE;
        let hysteresis = if sure { SURE_HYSTERESIS } else { HYSTERESIS };
        if known(&self.candidates[self.present]) && self.seconds(best) < (1.0 - hysteresis) * present.seconds {
            // What has served for long may do so again soon.
            if present.samples >= SURE {
                let left = &mut self.candidates[self.present];
                (left.look_at, left.look_after) = (self.advanced + LOOK_AFTER, LOOK_AFTER);
            }
            self.present = best;
        }
    }

    fn seconds(&self, candidate: usize) -> f64 {
        self.candidates[candidate].average.seconds
    }

    /// Takes what a calibration measured, in the order of the candidates, or what it assumes; 0 seconds where it can't say.
    pub fn set(&mut self, averages: &[Average]) {
        for (candidate, average) in self.candidates.iter_mut().zip(averages) {
            candidate.average = *average;
        }
        // Padding must save more than the measurement may be off.
        let handicap = |index: usize| if self.candidates[index].padded { 1.0 / (1.0 - HYSTERESIS) } else { 1.0 };
        let seconds = |index: usize| self.seconds(index) * handicap(index);
        let told = (0..self.candidates.len()).filter(|&index| self.seconds(index) > 0.0);
        self.present = told.min_by(|&a, &b| seconds(a).total_cmp(&seconds(b))).unwrap_or(0);
    }
}

/// Whether a cell suits every step of a kind.
fn suits(cell: &Cell, alike: &Alike) -> bool {
    let part = match cell.part {
        Part::Any => true,
        Part::Decode => alike.phase == Phase::Decode,
        Part::Prefill => {
            return alike.phase == Phase::Prefill && alike.rows.from == cell.rows && alike.rows.to == cell.rows;
        }
    };
    part && (cell.replay == Replay::None || alike.rows.to <= cell.rows)
}
