//! The programs that a backend runs: the model's own, and what the passes have made of it for ranges of rows.

use crate::StepCounts;
use crate::kernels::sample::Sample;
use crate::loader::Kernels;
use crate::lower::{Lowered, Places};
use crate::ops::{OpList, Queue};
use refrain_device::{Cell, DeviceError, Replay, StepLimits};
use std::collections::HashSet;

/// A program as launches.
pub(crate) struct Lowering {
    names: Vec<String>,
    ops: Vec<Lowered>,
    sampling: Vec<Lowered>,
    sample: Sample,
}

impl Lowering {
    /// Lowers the program of `places`.
    pub fn new(places: &Places<'_>, limits: &StepLimits) -> Lowering {
        let (ops, sampling) = (places.lower(), vec![places.lower_sampling(limits)]);
        let names = places.program.nodes.iter().map(|node| places.program.node_name(node)).collect();
        Lowering { names, ops, sampling, sample: places.sample(limits) }
    }

    /// Everything that may be launched.
    pub fn all(&self) -> impl Iterator<Item = &Lowered> {
        self.ops.iter().chain(&self.sampling)
    }

    /// With its kernels, which have been prepared.
    pub fn ready(self, kernels: &Kernels) -> Result<Ready, DeviceError> {
        let ops = OpList::new(self.names, self.ops, kernels)?;
        let sampling = OpList::new(vec!["sample".to_owned()], self.sampling, kernels)?;
        Ok(Ready { ops, sampling, sample: self.sample })
    }
}

/// A program as what is enqueued for it.
pub(crate) struct Ready {
    pub ops: OpList,
    /// The choice of tokens behind it.
    pub sampling: OpList,
    /// Where its logits lie, and what is chosen from them.
    pub sample: Sample,
}

/// All programs of a backend, which use the same memory.
pub(crate) struct Programs {
    /// Op by op, as the model is written down.
    pub eager: Ready,
    /// With the largest number of rows of each; ascending, the last has no end. None when nothing is compiled.
    pub compiled: Vec<(u32, Ready)>,
}

impl Programs {
    /// The program for a step of some rows in the way of a cell. A graph has that of the rows for which it was recorded.
    pub fn of(&self, cell: &Cell, rows: u32) -> &Ready {
        let rows = if cell.replay == Replay::None { rows } else { cell.rows };
        let range = || self.compiled.iter().find(|(most, _)| rows <= *most);
        let compiled = if cell.compiled { range() } else { None };
        compiled.map_or(&self.eager, |(_, ready)| ready)
    }

    /// Runs the products of the vendor's library for many numbers of rows, so that the library has loaded its kernels,
    /// which takes device memory, before anybody asks what is in use. What they compute is leftovers.
    pub fn warm_library(&self, limits: &StepLimits, queue: &Queue<'_>) -> Result<(), DeviceError> {
        let most = limits.max_tokens as u32;
        let powers = std::iter::successors(Some(16_u32), |rows| rows.checked_mul(2)).take_while(|rows| *rows < most);
        let mut known = HashSet::new();
        for rows in powers.chain([most]) {
            let logit_rows = rows.min(limits.max_logit_rows as u32);
            let counts = StepCounts { tokens: rows, logit_rows, ..StepCounts::default() };
            for cell in self.cells() {
                self.of(&cell, rows).ops.warm_library(&counts, queue, &mut known)?;
            }
        }
        Ok(())
    }

    /// Tunes the products of the vendor's library where a range is of one number of rows only, which is what such a range
    /// is for.
    pub fn tune_library(&self, limits: &StepLimits, queue: &Queue<'_>) -> Result<(), DeviceError> {
        let mut known = HashSet::new();
        let ends = [0].into_iter().chain(self.compiled.iter().map(|(most, _)| *most));
        for (before, (rows, ready)) in ends.zip(&self.compiled) {
            if before + 1 == *rows && *rows as usize <= limits.max_tokens {
                let logit_rows = (*rows).min(limits.max_logit_rows as u32);
                let counts = StepCounts { tokens: *rows, logit_rows, ..StepCounts::default() };
                ready.ops.tune_library(&counts, queue, &mut known)?;
            }
        }
        Ok(())
    }

    /// The cells without graphs.
    pub fn cells(&self) -> Vec<Cell> {
        let compiled = Cell { compiled: true, ..Cell::EAGER };
        [Cell::EAGER].into_iter().chain((!self.compiled.is_empty()).then_some(compiled)).collect()
    }
}
