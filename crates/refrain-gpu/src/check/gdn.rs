//! Cases of the kernels of Gated DeltaNet.

mod conv;
mod fused;
mod gates;
mod norm;
mod rule;
mod scan;
mod tensor;

use super::{Case, Scale};
use crate::Target;
use refrain_device::{Segment, Step, StepLimits};
use refrain_program::Dtype;

pub(super) fn cases(_target: &Target, scale: Scale) -> Vec<Case> {
    let groups = [conv::cases, norm::cases, gates::cases, scan::cases, fused::cases];
    groups.iter().flat_map(|cases| cases(scale)).collect()
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// Rounding to a type moves each value by at most half a unit of its last digit, 2^-24, 2^-9 or 2^-12 of it, in the mean
/// over many values by 0.4 of that. Sums in f32 add a few units of 2^-24.
fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2e-6,
        Dtype::Bf16 => 3e-3,
        Dtype::F16 => 5e-4,
    }
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Of its first token.
    position: u32,
    /// Tokens, the first `scan` of them for the chunked scan.
    len: u32,
    scan: u32,
    slot: u32,
}

/// A part whose tokens are all prompt tokens, but for single tokens.
fn part(position: u32, len: u32, slot: u32) -> Part {
    Part { position, len, scan: if len == 1 { 0 } else { len }, slot }
}

fn tokens(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.len as usize).sum()
}

/// Slots of a pool that the parts fit in, and some more.
fn slots(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.slot as usize + 2).max().unwrap_or(1)
}

/// A step without a KV cache.
fn step(parts: &[Part]) -> (Step, StepLimits) {
    let mut row = 0;
    let segment = |part: &Part| {
        let Part { position, len, scan, slot } = *part;
        row += len;
        Segment { row: row - len, len, position, scan, slot, blocks: 0, num_blocks: 0 }
    };
    let segments: Vec<Segment> = parts.iter().map(segment).collect();
    let max_tokens = tokens(parts);
    let limits = StepLimits { max_tokens, max_segments: parts.len(), max_logit_rows: 1, max_model_len: 16 };
    (Step { tokens: vec![0; max_tokens], segments, ..Step::default() }, limits)
}
