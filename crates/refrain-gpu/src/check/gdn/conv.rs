//! The short causal convolution.

use super::tensor::{Columns, Tensor};
use super::{DTYPES, Part, part, slots, step, tokens, tolerance};
use crate::check::{Case, Outcome, Rig, Scale};
use crate::kernels::gdn::GdnConv;
use refrain_device::DeviceError;
use refrain_program::Dtype;

#[derive(Clone, Debug)]
struct Operands {
    dtype: Dtype,
    out_dtype: Dtype,
    /// Deviation of the inputs.
    strength: f32,
    taps: usize,
    x: Columns,
    out: Columns,
    parts: Vec<Part>,
}

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    let operands: Vec<(String, Operands)> = match scale {
        Scale::Ragged => ragged(),
        Scale::Model => [(vec![part(0, 8192, 0)], "T 8192"), (vec![part(1000, 1, 0)], "T 1"), (decode(64), "T 64")]
            .map(|(parts, name)| {
                let (x, out) = (Columns { first: 0, width: 8192, stride: 12352 }, Columns::whole(8192));
                let (dtype, out_dtype) = (Dtype::F32, Dtype::F16);
                let operands = Operands { dtype, out_dtype, strength: 1.0, taps: 4, x, out, parts };
                (format!("F32 to F16, {name}"), operands)
            })
            .into(),
    };
    operands.into_iter().map(|(name, operands)| Case::new("gdn_conv", name, move |rig| run(rig, &operands))).collect()
}

/// One new token each of some sequences.
fn decode(sequences: u32) -> Vec<Part> {
    (0..sequences).map(|index| part(1000 + index, 1, sequences - 1 - index)).collect()
}

fn ragged() -> Vec<(String, Operands)> {
    // First pieces of one row, sequences shorter than the taps, pieces cut inside, single tokens with and without state.
    let parts = vec![
        part(0, 1, 3),
        part(63, 10, 0),
        part(5, 1, 7),
        part(0, 130, 2),
        part(64, 2, 8),
        part(61, 70, 5),
        part(0, 2, 4),
        part(126, 3, 1),
    ];
    let aligned = (Columns { first: 16, width: 72, stride: 112 }, Columns::whole(72));
    let unaligned = (Columns { first: 3, width: 37, stride: 45 }, Columns { first: 1, width: 37, stride: 39 });
    let operands = |dtype, out_dtype, taps, (x, out)| Operands {
        dtype,
        out_dtype,
        strength: 1.0,
        taps,
        x,
        out,
        parts: parts.clone(),
    };
    let mut all = vec![];
    for dtype in DTYPES {
        all.push(operands(dtype, dtype, 4, aligned));
        all.push(operands(dtype, dtype, 4, unaligned));
    }
    all.push(operands(Dtype::Bf16, Dtype::Bf16, 2, aligned));
    all.push(operands(Dtype::F32, Dtype::F32, 8, aligned));
    all.push(operands(Dtype::F32, Dtype::F32, 1, unaligned));
    all.push(operands(Dtype::F16, Dtype::F16, 17, aligned));
    all.push(operands(Dtype::F32, Dtype::F32, 40, unaligned));
    // F16 ends at 65504.
    all.push(Operands { strength: 1e5, ..operands(Dtype::F32, Dtype::F16, 4, aligned) });
    let name = |operands: &Operands| {
        let Operands { dtype, out_dtype, strength, taps, x, .. } = operands;
        format!("{dtype:?} times {strength} to {out_dtype:?}, {} channels, {taps} taps", x.width)
    };
    all.into_iter().map(|operands| (name(&operands), operands)).collect()
}

/// Which entry of the window of a sequence has the input `age` positions before `position`, where there is such an input.
pub(super) fn entry_before(position: u32, age: u32, taps: usize) -> Option<usize> {
    position.checked_sub(age).map(|position| position as usize % taps)
}

fn run(rig: &Rig, operands: &Operands) -> Result<Outcome, DeviceError> {
    let &Operands { dtype, out_dtype, strength, taps, x: columns, out, ref parts } = operands;
    let (channels, rows, kept) = (columns.width, tokens(parts), taps - 1);
    let x = rig.random(rows * channels, strength, dtype);
    let weight = rig.random(taps * channels, 0.5, Dtype::F32);
    let mut state = rig.random(slots(parts) * taps * channels, strength, dtype);
    for part in parts {
        // What is left of another sequence must not be read, nor the input that a new one takes the place of.
        let slot = &mut state[part.slot as usize * taps * channels..][..taps * channels];
        for (entry, inputs) in slot.chunks_exact_mut(channels).enumerate() {
            let is_kept = (1..=kept as u32).any(|age| entry_before(part.position, age, taps) == Some(entry));
            if !is_kept {
                inputs.fill(f32::NAN);
            }
        }
    }

    let input = Tensor::with(rig, &x, columns, dtype)?;
    let result = Tensor::poisoned(rig, rows, out, out_dtype)?;
    let weights = rig.upload(&weight)?;
    let pool = rig.upload_as(&state, dtype)?;
    let op =
        GdnConv { x: input.view(), weight: weights.ptr(), state: pool.ptr(), taps: taps as u32, out: result.view() };
    let (step, limits) = step(parts);
    let (_block, pointers, counts) = rig.step(&step, &limits)?;
    let launches = op.launches(&rig.target, &pointers);
    rig.launch(&launches, &counts)?;

    let got = result.read(rig)?;
    let got_state = rig.download_as(&pool, state.len(), dtype)?;
    let mut want = Vec::with_capacity(got.len());
    let mut row = 0;
    for part in parts {
        let len = part.len as usize;
        let slot = &mut state[part.slot as usize * taps * channels..][..taps * channels];
        // The inputs of the sequence from `kept` before the step on.
        let mut history = vec![0.0; kept * channels];
        for (index, inputs) in history.chunks_exact_mut(channels).enumerate() {
            if let Some(entry) = entry_before(part.position, (kept - index) as u32, taps) {
                inputs.copy_from_slice(&slot[entry * channels..][..channels]);
            }
        }
        history.extend_from_slice(&x[row * channels..][..len * channels]);
        for token in 0..len {
            for channel in 0..channels {
                let tap = |tap: usize| {
                    f64::from(weight[tap * channels + channel]) * f64::from(history[(token + tap) * channels + channel])
                };
                let sum: f64 = (0..taps).map(tap).sum();
                let silu = sum / (1.0 + (-sum).exp());
                want.push(if out_dtype == Dtype::F16 { silu.min(65504.0) } else { silu });
            }
        }
        for age in 1..=kept.min(len) {
            let entry = entry_before(part.position + part.len, age as u32, taps).expect("the step has as many");
            slot[entry * channels..][..channels].copy_from_slice(&history[(kept + len - age) * channels..][..channels]);
        }
        row += len;
    }
    // NaN where nothing is kept, before and after.
    let number = |value: &f32| if value.is_nan() { 0.0 } else { *value };
    let got_state: Vec<f32> = got_state.iter().map(number).collect();
    let want_state: Vec<f64> = state.iter().map(number).map(f64::from).collect();
    let elements = (rows * channels) as u64;
    let states = (2 * parts.len() * kept * channels) as u64;
    let bytes = (dtype.bytes() as u64 * (elements + states)) + out_dtype.bytes() as u64 * elements;
    let bytes = bytes + (taps * channels * 4) as u64;
    // The state is copied, bit for bit.
    let outcome =
        Outcome::compare(&got, &want, tolerance(out_dtype)).and(Outcome::compare(&got_state, &want_state, 1e-9));
    Ok(outcome.timed(bytes, 2 * taps as u64 * elements, rig.time(&launches, &counts)?))
}
