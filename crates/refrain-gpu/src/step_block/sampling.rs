//! What is to be chosen, as the step block tells it.

use super::{StepCounts, StepLayout, Writer};
use bytemuck::{Pod, Zeroable};
use refrain_device::{Adjustment, RowSampling, Step};

/// `RowSampling` of `step.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct RowSamplingWords {
    pub uniform: f64,
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition: f32,
    pub presence: f32,
    pub adjustments: u32,
    pub num_adjustments: u32,
    pub flags: u32,
    pub given: u32,
    pub top: u32,
    reserved: [u32; 3],
}

pub(super) const ROW_ONLY_ADJUSTED: u32 = 1;
pub(super) const ROW_GIVEN: u32 = 2;
pub(super) const ROW_LOGPROBS: u32 = 4;

impl From<&RowSampling> for RowSamplingWords {
    fn from(row: &RowSampling) -> RowSamplingWords {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        RowSamplingWords {
            uniform: row.uniform,
            temperature: row.temperature,
            top_k: row.top_k,
            top_p: row.top_p,
            min_p: row.min_p,
            repetition: row.repetition,
            presence: row.presence,
            adjustments: row.adjustments.start,
            num_adjustments: row.adjustments.len() as u32,
            flags: flag(row.only_adjusted, ROW_ONLY_ADJUSTED)
                | flag(row.given.is_some(), ROW_GIVEN)
                | flag(row.logprobs.is_some(), ROW_LOGPROBS),
            given: row.given.unwrap_or(0),
            top: row.logprobs.unwrap_or(0),
            reserved: [0; 3],
        }
    }
}

/// `Adjustment` of `step.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct AdjustmentWords {
    pub token: u32,
    pub flags: u32,
    pub bias: f32,
    pub frequency: f32,
}

impl From<&Adjustment> for AdjustmentWords {
    fn from(adjustment: &Adjustment) -> AdjustmentWords {
        let &Adjustment { token, forbidden, bias, occurred, generated, frequency } = adjustment;
        let flags = u32::from(forbidden) | u32::from(occurred) << 1 | u32::from(generated) << 2;
        AdjustmentWords { token, flags, bias, frequency }
    }
}

impl StepLayout {
    /// Writes what is to be chosen, the adjustments at `offset`.
    pub(super) fn write_sampling(&self, step: &Step, writer: &mut Writer<'_>, counts: &mut StepCounts, offset: usize) {
        counts.sampled = counts.logit_rows;
        for (index, row) in step.sampling.iter().enumerate() {
            writer.item(self.offsets.sampling, index as u32, &RowSamplingWords::from(row));
            if row.given.is_none() {
                if row.only_adjusted || !row.adjustments.is_empty() {
                    counts.adjusted = counts.sampled;
                }
                if row.temperature > 0.0 {
                    counts.drawn = counts.sampled;
                }
            }
            if row.logprobs.is_some() {
                counts.logprobs = counts.sampled;
            }
        }
        for (index, adjustment) in step.adjustments.iter().enumerate() {
            writer.item(offset, index as u32, &AdjustmentWords::from(adjustment));
        }
    }
}
