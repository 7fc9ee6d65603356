//! Who computes what in the next step: [`plan`] decides, [`State`] remembers. No device, no token, no clock here.

mod plan;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use plan::{StepPlan, plan};
pub(crate) use state::{Rank, Sequence, State};
