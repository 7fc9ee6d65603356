//! The table of a policy, for metrics, reports and files.

use super::{Alike, Average, Phase, Policy};
use refrain_device::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of a cell for one kind of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyEntry {
    /// The steps.
    pub alike: Alike,
    /// The cell.
    pub cell: Cell,
    /// Its seconds.
    pub average: Average,
    /// Whether it is the one that is measured to be the best.
    pub present: bool,
}

/// Steps that were run in one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellSteps {
    /// What the steps did.
    pub phase: Phase,
    /// The cell.
    pub cell: Cell,
    /// How many.
    pub steps: u64,
    /// Rows that graphs had and the steps had not, over all of them.
    pub padding: u64,
}

impl Policy {
    /// Everything that was measured or is assumed from it, kind by kind.
    pub fn table(&self) -> Vec<PolicyEntry> {
        let kinds = self.entries.iter().enumerate().filter(|(_, entry)| entry.candidates.len() > 1);
        let rows = kinds.flat_map(|(index, entry)| {
            let alike = self.ranges.alike(index);
            let known = entry.candidates.iter().enumerate().filter(|(_, candidate)| candidate.average.seconds > 0.0);
            known.map(move |(at, candidate)| PolicyEntry {
                alike,
                cell: candidate.cell,
                average: candidate.average,
                present: at == entry.present,
            })
        });
        rows.collect()
    }

    /// Takes back a table that was kept, as far as it is about kinds and cells of this policy, and measured all cells of a
    /// kind. Says how many kinds that was.
    pub fn restore(&mut self, table: &[PolicyEntry]) -> usize {
        let mut measured = Vec::new();
        for (index, entry) in self.entries.iter_mut().enumerate().filter(|(_, entry)| entry.candidates.len() > 1) {
            let alike = self.ranges.alike(index);
            let known = |cell: Cell| {
                let mut found = table.iter().filter(|kept| kept.alike == alike && kept.cell == cell);
                found.find(|kept| kept.average.samples > 0).map(|kept| kept.average)
            };
            let averages: Option<Vec<Average>> = entry.candidates.iter().map(|own| known(own.cell)).collect();
            if let Some(averages) = averages {
                entry.set(&averages);
                measured.push(index);
            }
        }
        self.assume_the_rest(&measured);
        measured.len()
    }

    /// Every cell that there is.
    pub fn cells(&self) -> BTreeSet<Cell> {
        self.entries.iter().flat_map(|entry| &entry.candidates).map(|candidate| candidate.cell).collect()
    }

    /// Steps that were run as two.
    pub fn split_steps(&self) -> u64 {
        self.entries.iter().map(|entry| entry.split).sum()
    }

    /// Steps by phase and cell, those that have occurred.
    pub fn steps(&self) -> Vec<CellSteps> {
        let mut all: BTreeMap<(Phase, Cell), CellSteps> = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let phase = self.ranges.phase(index);
            for candidate in entry.candidates.iter().filter(|candidate| candidate.steps > 0) {
                let cell = candidate.cell;
                let sum = all.entry((phase, cell)).or_insert(CellSteps { phase, cell, steps: 0, padding: 0 });
                sum.steps += candidate.steps;
                sum.padding += candidate.padding;
            }
        }
        all.into_values().collect()
    }
}
