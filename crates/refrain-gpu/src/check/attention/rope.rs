//! [`QkNormRope`] against double precision.

use super::sequences::Sequences;
use super::wide::Wide;
use super::{name, rounding};
use crate::check::{Case, Outcome, Rig};
use crate::kernels::qk_norm_rope::{QkNormRope, frequencies};
use refrain_device::DeviceError;
use refrain_program::Dtype;

/// Base of the frequencies, as Qwen3.5 has it.
pub(super) const THETA: f32 = 1e7;
/// Added to the mean square.
pub(super) const EPS: f32 = 1e-6;

/// The heads of one case.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub heads: usize,
    pub head_dim: usize,
    pub rotary_dim: usize,
}

pub(super) fn cases() -> Vec<Case> {
    let short = vec![(0, 1), (5, 3), (61, 70)];
    // The last positions of the longest sequence that the models know.
    let far = vec![(262_141, 3), (131_071, 1), (199_999, 2)];
    let heads = |heads, head_dim, rotary_dim| Heads { heads, head_dim, rotary_dim };
    use Dtype::{Bf16, F16, F32};
    [
        (F32, F32, heads(3, 40, 10), short.clone()),
        (F32, Bf16, heads(16, 256, 64), vec![(0, 2), (7, 1)]),
        (Bf16, Bf16, heads(4, 256, 64), far.clone()),
        (F16, F16, heads(5, 64, 16), short.clone()),
        (F32, F32, heads(2, 128, 128), far.clone()),
        (F32, F16, heads(1, 32, 8), far.clone()),
        (F32, F32, heads(37, 72, 36), far),
        (F32, F32, heads(2, 8, 0), short),
    ]
    .into_iter()
    .map(|(dtype, out, heads, parts)| {
        let Heads { heads: count, head_dim, rotary_dim } = heads;
        let types = (name(dtype), name(out));
        let case = format!("{} to {}, {count} heads of {head_dim}, {rotary_dim} rotated", types.0, types.1);
        Case::new("qk_norm_rope", case, move |rig| run(rig, (dtype, out), heads, &parts))
    })
    .collect()
}

fn run(rig: &Rig, types: (Dtype, Dtype), heads: Heads, parts: &[(usize, usize)]) -> Result<Outcome, DeviceError> {
    let sequences = Sequences::new(rig, parts);
    let width = heads.heads * heads.head_dim;
    let x = rig.random(sequences.len() * width, 1.5, types.0);
    let weight = rig.random(heads.head_dim, 0.2, Dtype::F32);
    let want = reference(&sequences, heads, &x, &weight);

    let (_block, pointers, counts) = sequences.upload(rig)?;
    let on_device = Wide::upload(rig, &x, width, types.0)?;
    let out = Wide::poisoned(rig, sequences.len(), width, types.1)?;
    let weight = rig.upload(&weight)?;
    let turns = frequencies(heads.rotary_dim, THETA);
    let frequencies = rig.upload(if turns.is_empty() { &[0.0] } else { turns.as_slice() })?;
    let mut op = QkNormRope {
        x: on_device.view(),
        weight: weight.ptr(),
        frequencies: frequencies.ptr(),
        heads: heads.heads as u32,
        rotary_dim: heads.rotary_dim as u32,
        eps: EPS,
        out: out.view(),
    };
    rig.launch(&op.launches(&rig.target, &pointers), &counts)?;
    let apart = Outcome::compare(&out.download(rig)?, &want, rounding(types.1));
    if types.0 != types.1 {
        return Ok(apart);
    }
    op.out = op.x;
    rig.launch(&op.launches(&rig.target, &pointers), &counts)?;
    Ok(apart.and(Outcome::compare(&on_device.download(rig)?, &want, rounding(types.1))))
}

/// The same in f64; the angle is rounded to f32, as Hugging Face's rotary embedding rounds it.
pub(super) fn reference(sequences: &Sequences, heads: Heads, x: &[f32], weight: &[f32]) -> Vec<f64> {
    let half = heads.rotary_dim / 2;
    let turns = frequencies(heads.rotary_dim, THETA);
    let mut want = Vec::with_capacity(x.len());
    let rows = x.chunks_exact(heads.heads * heads.head_dim);
    for (row, (_, position)) in rows.zip(sequences.rows()) {
        for head in row.chunks_exact(heads.head_dim) {
            let squares: f64 = head.iter().map(|&x| f64::from(x).powi(2)).sum();
            let factor = 1.0 / (squares / heads.head_dim as f64 + f64::from(EPS)).sqrt();
            let normed = |i: usize| f64::from(head[i]) * factor * (1.0 + f64::from(weight[i]));
            want.extend((0..heads.head_dim).map(|i| {
                if i >= heads.rotary_dim {
                    return normed(i);
                }
                let (sine, cosine) = f64::from(position as f32 * turns[i % half]).sin_cos();
                if i < half {
                    normed(i) * cosine - normed(i + half) * sine
                } else {
                    normed(i) * cosine + normed(i - half) * sine
                }
            }));
        }
    }
    want
}
