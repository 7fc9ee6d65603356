//! What must not change a bit: other sequences in the step, where a prompt is cut, and running once more.

use super::attend::{Operands, Setting};
use super::sequences::Sequences;
use crate::check::{Case, Outcome, Rig};
use refrain_device::DeviceError;
use refrain_program::{Dtype, Fp8};

/// So many values are not what they must be, to the bit.
pub(super) fn wrong(count: usize) -> Outcome {
    Outcome { error: count as f64, tolerance: 0.5, ..Outcome::default() }
}

pub(super) fn cases() -> Vec<Case> {
    let parts = vec![(300, 1), (0, 130), (64, 70), (0, 1), (131, 1), (10, 9)];
    let bf16 = Setting::new(Dtype::Bf16, Dtype::Bf16, (4, 2, 64));
    let f32 = Setting::new(Dtype::F32, Dtype::F32, (2, 1, 40));
    let mut cases = Vec::new();
    let e4m3 = Setting::new(Dtype::Bf16, Fp8::E4m3, (4, 2, 64));
    let e5m2 = Setting::new(Dtype::F32, Fp8::E5m2, (2, 1, 40));
    let kinds = [("tensor cores", bf16), ("scalar", f32), ("tensor cores, e4m3", e4m3), ("scalar, e5m2", e5m2)];
    for (kind, setting) in kinds {
        let own = parts.clone();
        cases.push(Case::new("attention", format!("{kind}: the same bits alone and cut"), move |rig| {
            alone_and_cut(rig, setting, &own)
        }));
        let own = parts.clone();
        cases.push(Case::new("attention", format!("{kind}: the same bits once more"), move |rig| {
            once_more(rig, setting, &own)
        }));
    }
    cases
}

fn differences(a: &[f32], b: &[f32]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits() || a.is_nan()).count()
}

/// Each sequence by itself, and cut at multiples of 64 where neither part is a single row.
fn alone_and_cut(rig: &Rig, setting: Setting, parts: &[(usize, usize)]) -> Result<Outcome, DeviceError> {
    let sequences = Sequences::new(rig, parts);
    let width = setting.width();
    let q = rig.random(sequences.len() * width, 1.0, setting.dtype);
    let cache = sequences.random_cache(rig, &setting.shape, 2.0, setting.cached);
    let together = Operands::upload(rig, setting, &sequences, &q, &cache)?.run(rig, &sequences)?;
    let mut count = 0;
    for (index, segment) in sequences.step.segments.iter().enumerate() {
        let len = segment.len as usize;
        let mut cuts = vec![0, len];
        let cut = 64 - segment.position as usize % 64;
        if len > 1 && cut + 1 < len {
            cuts.insert(1, cut);
        }
        for ends in cuts.windows(2) {
            let rows = ends[0]..ends[1];
            let of_step = |rows: &std::ops::Range<usize>| {
                (segment.row as usize + rows.start) * width..(segment.row as usize + rows.end) * width
            };
            let part = sequences.only(index, rows.clone());
            let alone = Operands::upload(rig, setting, &part, &q[of_step(&rows)], &cache)?.run(rig, &part)?;
            count += differences(&together[of_step(&rows)], &alone);
        }
    }
    Ok(wrong(count))
}

/// The counters are as they were.
fn once_more(rig: &Rig, setting: Setting, parts: &[(usize, usize)]) -> Result<Outcome, DeviceError> {
    let sequences = Sequences::new(rig, parts);
    let q = rig.random(sequences.len() * setting.width(), 1.0, setting.dtype);
    let cache = sequences.random_cache(rig, &setting.shape, 2.0, setting.cached);
    let operands = Operands::upload(rig, setting, &sequences, &q, &cache)?;
    let first = operands.run(rig, &sequences)?;
    Ok(wrong(differences(&first, &operands.run(rig, &sequences)?)))
}
