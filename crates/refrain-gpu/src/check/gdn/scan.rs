//! The gated delta rule: chunks, single tokens, and both in one step.

mod model;

use super::rule::{Decay, Sequence};
use super::tensor::{Columns, Tensor};
use super::{DTYPES, Part, step, tokens, tolerance};
use crate::check::{Buffer, Case, Outcome, Rig, Scale};
use crate::kernels::gdn::GdnScan;
use crate::{LaunchSpec, StepCounts};
use refrain_device::DeviceError;
use refrain_program::{Dtype, GdnShape};

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    match scale {
        Scale::Ragged => ragged(),
        Scale::Model => model::cases(),
    }
}

/// Tokens of a sequence that a step takes: which sequence, how many, and how many of them by chunks.
type Cut = (usize, usize, usize);

#[derive(Clone, Debug)]
struct Operands {
    dtype: Dtype,
    shape: GdnShape,
    decay: Decay,
    /// Position of the first token, tokens and slot of each sequence.
    sequences: Vec<(u32, usize, u32)>,
    steps: Vec<Vec<Cut>>,
    /// Other steps, which must give the same bits.
    same: Vec<Vec<Cut>>,
}

fn shape(num_key_heads: usize, ratio: usize, key_head_dim: usize, value_head_dim: usize) -> GdnShape {
    GdnShape { num_key_heads, num_value_heads: num_key_heads * ratio, key_head_dim, value_head_dim }
}

fn ragged() -> Vec<Case> {
    let mut all: Vec<(String, Operands)> = vec![];
    let small = shape(1, 2, 32, 32);
    let case = |dtype, shape, decay, sequences, steps| Operands { dtype, shape, decay, sequences, steps, same: vec![] };
    for dtype in DTYPES {
        // Head sizes: with and without tensor cores, for vectors and for any, several slices, one to three heads of values
        // for each of keys.
        let shapes = [small, shape(1, 3, 24, 40), shape(2, 1, 128, 64), shape(1, 2, 7, 5), shape(1, 1, 48, 48)];
        let shapes = match dtype {
            Dtype::F32 => &shapes[..4],
            Dtype::Bf16 => &shapes[..2],
            Dtype::F16 => &shapes[..],
        };
        for &shape in shapes {
            let GdnShape { num_key_heads, num_value_heads, key_head_dim, value_head_dim } = shape;
            let name = format!("{num_key_heads}:{num_value_heads} heads of {key_head_dim} and {value_head_dim}");
            let chunks = case(dtype, shape, Decay::Mild, vec![(0, 70, 1)], vec![vec![(0, 70, 70)]]);
            all.push((format!("{dtype:?}, chunks, {name}"), chunks));
            let single = case(dtype, shape, Decay::Mild, vec![(0, 3, 1), (9, 1, 0)], vec![vec![(0, 3, 0), (1, 1, 0)]]);
            all.push((format!("{dtype:?}, tokens, {name}"), single));
        }
        // Positions that are not multiples of 64, slots here and there, chunks and tokens in one segment.
        let sequences = vec![(0, 1, 5), (30, 100, 0), (64, 65, 7), (0, 9, 2), (5, 1, 3)];
        let mixed = vec![(0, 1, 1), (1, 100, 97), (2, 65, 65), (3, 9, 6), (4, 1, 0)];
        all.push((format!("{dtype:?}, mixed"), case(dtype, small, Decay::Mild, sequences, vec![mixed])));
        for decay in [Decay::Extreme, Decay::Slow] {
            let (sequences, steps) = (vec![(0, 150, 0), (3, 20, 1)], vec![vec![(0, 150, 130), (1, 20, 0)]]);
            all.push((format!("{dtype:?}, {decay:?} decay"), case(dtype, small, decay, sequences, steps)));
        }
        // Cut at multiples of 64 the bits are the same, also when generated tokens are computed again.
        let whole = vec![vec![(0, 139, 135)]];
        let pieces = vec![vec![(0, 64, 64)], vec![(0, 72, 71)], vec![(0, 1, 0)], vec![(0, 2, 0)]];
        let mut cut = case(dtype, small, Decay::Mild, vec![(0, 139, 1)], pieces);
        cut.same = whole;
        all.push((format!("{dtype:?}, in pieces"), cut));
        // Cut anywhere they are nearly so.
        let odd = vec![vec![(0, 17, 17)], vec![(0, 60, 60)], vec![(0, 23, 20)]];
        all.push((format!("{dtype:?}, in odd pieces"), case(dtype, small, Decay::Mild, vec![(0, 100, 1)], odd)));
    }
    let large = [shape(1, 1, 256, 20), shape(1, 1, 130, 33), shape(1, 1, 520, 6)];
    for shape in large {
        let (sequences, steps) = (vec![(0, 20, 1)], vec![vec![(0, 20, 15)]]);
        let name = format!("F32, heads of {} and {}", shape.key_head_dim, shape.value_head_dim);
        all.push((name, case(Dtype::F32, shape, Decay::Mild, sequences, steps)));
    }
    all.into_iter().map(|(name, operands)| Case::new("gdn_scan", name, move |rig| run(rig, &operands))).collect()
}

/// A step's launches with what they work on.
struct Launched {
    launches: Vec<LaunchSpec>,
    counts: StepCounts,
    out: Tensor,
    _block: Buffer,
    _inputs: (Tensor, Tensor, Tensor, Buffer),
}

/// The parts of one step, `done` being the tokens that earlier steps have taken of each sequence.
fn parts(sequences: &[Sequence], done: &[usize], cuts: &[Cut]) -> Vec<Part> {
    let part = |&(index, len, scan): &Cut| Part {
        position: sequences[index].position + done[index] as u32,
        len: len as u32,
        scan: scan as u32,
        slot: sequences[index].slot,
    };
    cuts.iter().map(part).collect()
}

/// Runs one step on a pool of states.
fn launch(
    rig: &Rig,
    (dtype, shape): (Dtype, GdnShape),
    sequences: &[Sequence],
    (done, cuts): (&[usize], &[Cut]),
    pool: &Buffer,
) -> Result<Launched, DeviceError> {
    let parts = parts(sequences, done, cuts);
    let (step, limits) = step(&parts);
    let rows = tokens(&parts);
    let key_width = shape.num_key_heads * shape.key_head_dim;
    let value_width = shape.num_value_heads * shape.value_head_dim;
    let gather = |width: usize, pick: &dyn Fn(&Sequence) -> &[f32]| -> Vec<f32> {
        let rows = |&(index, len, _): &Cut| &pick(&sequences[index])[done[index] * width..][..len * width];
        cuts.iter().map(rows).collect::<Vec<_>>().concat()
    };
    let (q, k) = (gather(key_width, &|s| &s.q), gather(key_width, &|s| &s.k));
    let v = gather(value_width, &|s| &s.v);
    // All three in one tensor, as the convolution leaves them; 16 columns are in front of them.
    let width = 2 * key_width + value_width;
    let mut values = vec![0.0; rows * width];
    for (row, values) in values.chunks_exact_mut(width).enumerate() {
        values[..key_width].copy_from_slice(&q[row * key_width..][..key_width]);
        values[key_width..2 * key_width].copy_from_slice(&k[row * key_width..][..key_width]);
        values[2 * key_width..].copy_from_slice(&v[row * value_width..][..value_width]);
    }
    let inputs = Tensor::with(rig, &values, Columns { first: 16, width, stride: width + 16 }, dtype)?;
    let heads = shape.num_value_heads;
    let beta = Tensor::with(rig, &gather(heads, &|s| &s.beta), Columns::whole(heads), Dtype::F32)?;
    let decay = Tensor::with(rig, &gather(heads, &|s| &s.decay), Columns::whole(heads), Dtype::F32)?;
    let out = Tensor::poisoned(rig, rows, Columns { first: 8, width: value_width, stride: value_width + 24 }, dtype)?;
    let workspace = rig.poisoned(GdnScan::workspace_bytes(&limits, &shape, dtype, &rig.target), Dtype::F16)?;
    let view = |first: usize, width: usize| {
        let mut rows = inputs.view();
        rows.base = rows.base.offset(first * dtype.bytes());
        rows.width = width as u32;
        rows
    };
    let op = GdnScan {
        q: view(0, key_width),
        k: view(key_width, key_width),
        v: view(2 * key_width, value_width),
        beta: beta.view(),
        decay: decay.view(),
        state: pool.ptr(),
        shape,
        workspace: workspace.ptr(),
        out: out.view(),
    };
    let (block, pointers, counts) = rig.step(&step, &limits)?;
    let launches = op.launches(&rig.target, &pointers);
    rig.launch(&launches, &counts)?;
    Ok(Launched { launches, counts, out, _block: block, _inputs: (inputs, beta, decay, workspace) })
}

/// States of all slots: NaN for sequences that have none yet.
fn initial_states(rig: &Rig, shape: &GdnShape, sequences: &[Sequence]) -> Vec<f32> {
    let floats = shape.num_value_heads * shape.value_head_dim * shape.key_head_dim;
    let slots = sequences.iter().map(|sequence| sequence.slot as usize + 2).max().unwrap_or(1);
    let mut states = rig.random(slots * floats, 1.0, Dtype::F32);
    for sequence in sequences {
        let slot = &mut states[sequence.slot as usize * floats..][..floats];
        if sequence.position == 0 { slot.fill(f32::NAN) } else { slot.copy_from_slice(&sequence.state) }
    }
    states
}

/// Runs all steps: the outputs of each sequence, and the states of all slots.
fn run_steps(
    rig: &Rig,
    operands: &Operands,
    sequences: &[Sequence],
    steps: &[Vec<Cut>],
    states: &[f32],
) -> Result<(Vec<Vec<f32>>, Vec<f32>), DeviceError> {
    let width = operands.shape.num_value_heads * operands.shape.value_head_dim;
    let pool = rig.upload(states)?;
    let mut outputs = vec![Vec::new(); sequences.len()];
    let mut done = vec![0; sequences.len()];
    for cuts in steps {
        let layer = (operands.dtype, operands.shape);
        let out = launch(rig, layer, sequences, (&done, cuts), &pool)?.out.read(rig)?;
        let mut row = 0;
        for &(index, len, _) in cuts {
            outputs[index].extend_from_slice(&out[row * width..][..len * width]);
            row += len;
            done[index] += len;
        }
    }
    Ok((outputs, rig.download(&pool, states.len())?))
}

fn run(rig: &Rig, operands: &Operands) -> Result<Outcome, DeviceError> {
    let shape = &operands.shape;
    let random = |&part: &_| Sequence::random(rig, shape, operands.dtype, operands.decay, part);
    let sequences: Vec<Sequence> = operands.sequences.iter().map(random).collect();
    let states = initial_states(rig, shape, &sequences);
    let (outputs, after) = run_steps(rig, operands, &sequences, &operands.steps, &states)?;

    let head_floats = shape.value_head_dim * shape.key_head_dim;
    let (mut got, mut want) = (vec![], vec![]);
    // Slots of no sequence stay as they are.
    let mut want_states: Vec<f64> = states.iter().map(|&x| f64::from(x)).collect();
    for (sequence, output) in sequences.iter().zip(&outputs) {
        for head in 0..shape.num_value_heads {
            let (out, state) = sequence.reference(shape, head);
            let at = (sequence.slot as usize * shape.num_value_heads + head) * head_floats;
            want_states[at..][..head_floats].copy_from_slice(&state);
            want.extend(out);
            for token in output.chunks_exact(shape.num_value_heads * shape.value_head_dim) {
                got.extend_from_slice(&token[head * shape.value_head_dim..][..shape.value_head_dim]);
            }
        }
    }
    let (out_tolerance, state_tolerance) = tolerances(operands.dtype);
    let outcome =
        Outcome::compare(&got, &want, out_tolerance).and(Outcome::compare(&after, &want_states, state_tolerance));
    if operands.same.is_empty() {
        return Ok(outcome);
    }
    let (same_outputs, same_after) = run_steps(rig, operands, &sequences, &operands.same, &states)?;
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let equal = bits(&outputs.concat()) == bits(&same_outputs.concat()) && bits(&after) == bits(&same_after);
    Ok(if equal { outcome } else { Outcome { error: f64::INFINITY, ..outcome } })
}

/// Of outputs and of states. In f32 the running sums of the log-decays are exact to 1e-7, and errors of a chunk add up
/// over its triangle. On tensor cores the state and what is added to it are rounded to the 16-bit type once a chunk.
fn tolerances(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F32 => (1e-5, 1e-5),
        Dtype::Bf16 => (1.5 * tolerance(dtype), 5e-3),
        Dtype::F16 => (3.0 * tolerance(dtype), 1e-3),
    }
}
