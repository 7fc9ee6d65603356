//! What comes before the gated delta rule as one kernel, and all of it as one for single tokens.

use super::conv::entry_before;
use super::rule::Sequence;
use super::tensor::{Columns, Tensor};
use super::{Part, part, slots, step, tokens, tolerance};
use crate::check::{Buffer, Case, Outcome, Rig, Scale};
use crate::kernels::gdn::{GdnConv, GdnGates, GdnPrepare, GdnScan, GdnStep, L2Norm};
use crate::{LaunchSpec, StepPointers};
use refrain_device::{DeviceError, StepLimits};
use refrain_program::{Dtype, GdnShape};

const EPS: f32 = 1e-6;

#[derive(Clone, Debug)]
struct Operands {
    /// Types of the projections, and of what the rule takes and gives.
    dtypes: [Dtype; 2],
    shape: GdnShape,
    taps: usize,
    parts: Vec<Part>,
    /// Whether the projections begin where vectors can be loaded.
    aligned: bool,
}

fn shape(num_key_heads: usize, ratio: usize, key_head_dim: usize, value_head_dim: usize) -> GdnShape {
    GdnShape { num_key_heads, num_value_heads: num_key_heads * ratio, key_head_dim, value_head_dim }
}

/// As in a program: projections in F32, the scan in F16 where activations are 16 bits wide.
const MIXED: [Dtype; 2] = [Dtype::F32, Dtype::F16];
const F32: [Dtype; 2] = [Dtype::F32, Dtype::F32];

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    let all = match scale {
        Scale::Ragged => ragged(),
        Scale::Model => model(),
    };
    let case = |(name, operands): (String, Operands)| {
        let same = operands.clone();
        let prepare = Case::new("gdn_prepare", name.clone(), move |rig| run(rig, &operands, false));
        [prepare, Case::new("gdn_step", name, move |rig| run(rig, &same, true))]
    };
    all.into_iter().flat_map(case).collect()
}

fn ragged() -> Vec<(String, Operands)> {
    // Prompts and pieces of them, single tokens with full, short and no windows, a single token of a prompt, generated
    // tokens that are computed again.
    let again = Part { position: 70, len: 5, scan: 0, slot: 9 };
    let scanned = Part { position: 64, len: 1, scan: 1, slot: 6 };
    let both = Part { position: 62, len: 7, scan: 4, slot: 11 };
    let mixed =
        vec![part(0, 1, 3), part(63, 10, 0), part(5, 1, 7), part(0, 67, 2), again, scanned, part(2, 1, 4), both];
    let single = vec![part(9, 1, 2), part(1, 1, 0), part(0, 1, 1), part(130, 1, 5)];
    let small = shape(1, 2, 32, 32);
    let mut all = Vec::new();
    let mut add = |dtypes: [Dtype; 2], shape: GdnShape, taps, parts: &[Part], aligned| {
        let GdnShape { num_key_heads, num_value_heads, key_head_dim, value_head_dim } = shape;
        let heads = format!("{num_key_heads}:{num_value_heads} heads of {key_head_dim} and {value_head_dim}");
        let name = format!("{dtypes:?}, {heads}, {taps} taps, {} sequences, aligned: {aligned}", parts.len());
        all.push((name, Operands { dtypes, shape, taps, parts: parts.to_vec(), aligned }));
    };
    for dtypes in [MIXED, F32, [Dtype::Bf16, Dtype::Bf16]] {
        add(dtypes, small, 4, &mixed, true);
        add(dtypes, small, 4, &single, true);
    }
    add(MIXED, shape(2, 2, 128, 64), 4, &single, true);
    add(F32, shape(1, 3, 16, 40), 2, &mixed, true);
    // Elements one by one, one tap, more taps than the fused kernel holds, heads that no power of two shares.
    add(F32, small, 4, &single, false);
    add(F32, small, 1, &single, true);
    add(F32, small, 17, &single, true);
    add(F32, shape(1, 3, 24, 40), 4, &mixed, true);
    add(F32, shape(1, 2, 7, 5), 4, &single, true);
    all
}

fn model() -> Vec<(String, Operands)> {
    let decode = |sequences: u32| (0..sequences).map(|index| part(1000 + index, 1, sequences - 1 - index)).collect();
    let steps: [(&str, Vec<Part>); 4] =
        [("T 1", decode(1)), ("T 8", decode(8)), ("T 64", decode(64)), ("T 8192", vec![part(0, 8192, 0)])];
    let operands = |(name, parts): (&str, Vec<Part>)| {
        let shape = shape(16, 2, 128, 128);
        (format!("F32 to F16, {name}"), Operands { dtypes: MIXED, shape, taps: 4, parts, aligned: true })
    };
    steps.into_iter().map(operands).collect()
}

/// A layer's weights and what it is given, on the host.
struct Layer {
    x: Vec<f32>,
    b: Vec<f32>,
    a: Vec<f32>,
    weight: Vec<f32>,
    a_log: Vec<f32>,
    dt_bias: Vec<f32>,
    /// `[slot, taps, channels]`.
    window: Vec<f32>,
    /// `[slot, value_heads, value_dim, key_dim]`.
    state: Vec<f32>,
}

fn channels(shape: &GdnShape) -> usize {
    2 * shape.num_key_heads * shape.key_head_dim + shape.num_value_heads * shape.value_head_dim
}

fn state_floats(shape: &GdnShape) -> usize {
    shape.num_value_heads * shape.value_head_dim * shape.key_head_dim
}

impl Layer {
    fn random(rig: &Rig, operands: &Operands) -> Layer {
        let Operands { dtypes: [dtype, _], shape, taps, ref parts, .. } = *operands;
        let (rows, channels, heads) = (tokens(parts), channels(&shape), shape.num_value_heads);
        let mut layer = Layer {
            x: rig.random(rows * channels, 1.0, dtype),
            b: rig.random(rows * heads, 2.0, dtype),
            a: rig.random(rows * heads, 2.0, dtype),
            weight: rig.random(taps * channels, 0.7, Dtype::F32),
            a_log: rig.random(heads, 0.5, Dtype::F32),
            dt_bias: rig.random(heads, 0.5, Dtype::F32),
            window: rig.random(slots(parts) * taps * channels, 1.0, dtype),
            state: rig.random(slots(parts) * state_floats(&shape), 0.2, Dtype::F32),
        };
        for part in parts {
            let slot = part.slot as usize;
            // What a sequence has not written must not be read.
            for (entry, inputs) in
                layer.window[slot * taps * channels..][..taps * channels].chunks_exact_mut(channels).enumerate()
            {
                if !(1..taps as u32).any(|age| entry_before(part.position, age, taps) == Some(entry)) {
                    inputs.fill(f32::NAN);
                }
            }
            if part.position == 0 {
                layer.state[slot * state_floats(&shape)..][..state_floats(&shape)].fill(f32::NAN);
            }
        }
        layer
    }

    /// What comes before the rule, of one part, and the window after it.
    fn prepare(&self, operands: &Operands, part: &Part, row: usize) -> (Prepared, Vec<f32>) {
        let (shape, taps) = (&operands.shape, operands.taps);
        let (channels, heads) = (channels(shape), shape.num_value_heads);
        let mut window = self.window[part.slot as usize * taps * channels..][..taps * channels].to_vec();
        let mut prepared = Prepared::default();
        for position in part.position..part.position + part.len {
            let row = row + (position - part.position) as usize;
            let x = &self.x[row * channels..][..channels];
            let mut values = Vec::with_capacity(channels);
            for channel in 0..channels {
                let before = |age: usize| match entry_before(position, age as u32, taps) {
                    _ if age == 0 => f64::from(x[channel]),
                    Some(entry) => f64::from(window[entry * channels + channel]),
                    None => 0.0,
                };
                let tap = |age: usize| f64::from(self.weight[(taps - 1 - age) * channels + channel]) * before(age);
                let sum: f64 = (0..taps).map(tap).sum();
                values.push(sum / (1.0 + (-sum).exp()));
            }
            window[position as usize % taps * channels..][..channels].copy_from_slice(x);
            let keys = shape.num_key_heads * shape.key_head_dim;
            let scale = (shape.key_head_dim as f64).powf(-0.5);
            for (index, head) in values[..2 * keys].chunks_exact_mut(shape.key_head_dim).enumerate() {
                let norm = (head.iter().map(|x| x * x).sum::<f64>() + f64::from(EPS)).sqrt().recip();
                let factor = if index < shape.num_key_heads { norm * scale } else { norm };
                head.iter_mut().for_each(|x| *x *= factor);
            }
            prepared.values.extend(values);
            for head in 0..heads {
                let (b, a) = (f64::from(self.b[row * heads + head]), f64::from(self.a[row * heads + head]));
                prepared.beta.push(1.0 / (1.0 + (-b).exp()));
                let softplus = (a + f64::from(self.dt_bias[head])).exp().ln_1p();
                prepared.decay.push(-f64::from(self.a_log[head]).exp() * softplus);
            }
        }
        (prepared, window)
    }
}

/// Of some tokens: `[tokens, channels]`, and `[tokens, value_heads]`.
#[derive(Default)]
struct Prepared {
    values: Vec<f64>,
    beta: Vec<f64>,
    decay: Vec<f64>,
}

impl Prepared {
    /// What the rule computes of it.
    fn sequence(&self, operands: &Operands, layer: &Layer, part: &Part) -> Sequence {
        let shape = &operands.shape;
        let (channels, keys) = (channels(shape), shape.num_key_heads * shape.key_head_dim);
        let columns = |first: usize, width: usize| -> Vec<f32> {
            let rows = self.values.chunks_exact(channels);
            rows.flat_map(|row| row[first..first + width].iter().map(|&x| x as f32)).collect()
        };
        let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect();
        let floats = state_floats(shape);
        Sequence {
            position: part.position,
            slot: part.slot,
            q: columns(0, keys),
            k: columns(keys, keys),
            v: columns(2 * keys, channels - 2 * keys),
            beta: narrow(&self.beta),
            decay: narrow(&self.decay),
            state: layer.state[part.slot as usize * floats..][..floats].to_vec(),
        }
    }
}

/// A layer on the device.
struct Device {
    inputs: [Tensor; 3],
    weights: [Buffer; 3],
    window: Buffer,
    state: Buffer,
    prepared: Tensor,
    gates: [Tensor; 2],
    out: Tensor,
    workspace: Buffer,
}

impl Device {
    fn new(rig: &Rig, operands: &Operands, layer: &Layer, limits: &StepLimits) -> Result<Device, DeviceError> {
        let Operands { dtypes: [dtype, scanned], shape, aligned, ref parts, .. } = *operands;
        let (rows, channels, heads) = (tokens(parts), channels(&shape), shape.num_value_heads);
        let first = if aligned { 16 } else { 3 };
        let columns = |width: usize| Columns { first, width, stride: width + 2 * first };
        let values = heads * shape.value_head_dim;
        Ok(Device {
            inputs: [
                Tensor::with(rig, &layer.x, columns(channels), dtype)?,
                Tensor::with(rig, &layer.b, columns(heads), dtype)?,
                Tensor::with(rig, &layer.a, columns(heads), dtype)?,
            ],
            weights: [rig.upload(&layer.weight)?, rig.upload(&layer.a_log)?, rig.upload(&layer.dt_bias)?],
            window: rig.upload_as(&layer.window, dtype)?,
            state: rig.upload(&layer.state)?,
            prepared: Tensor::poisoned(rig, rows, Columns::whole(channels), scanned)?,
            gates: [
                Tensor::poisoned(rig, rows, Columns::whole(heads), Dtype::F32)?,
                Tensor::poisoned(rig, rows, Columns::whole(heads), Dtype::F32)?,
            ],
            out: Tensor::poisoned(rig, rows, Columns { first: 8, width: values, stride: values + 24 }, scanned)?,
            workspace: rig.poisoned(GdnScan::workspace_bytes(limits, &shape, scanned, &rig.target), Dtype::F16)?,
        })
    }

    fn launches(&self, rig: &Rig, operands: &Operands, step: &StepPointers, whole: bool) -> Vec<LaunchSpec> {
        let shape = operands.shape;
        let keys = shape.num_key_heads * shape.key_head_dim;
        let view = |first: usize, width: usize| {
            let mut rows = self.prepared.view();
            rows.base = rows.base.offset(first * rows.dtype.bytes());
            rows.width = width as u32;
            rows
        };
        let [x, b, a] = self.inputs.each_ref().map(Tensor::view);
        let [beta, decay] = self.gates.each_ref().map(Tensor::view);
        let [weight, a_log, dt_bias] = self.weights.each_ref().map(Buffer::ptr);
        let (state, taps) = (self.window.ptr(), operands.taps as u32);
        let heads = shape.num_key_heads as u32;
        let (both, scale) = (view(0, 2 * keys), (shape.key_head_dim as f32).powf(-0.5));
        let prepare = GdnPrepare {
            conv: GdnConv { x, weight, state, taps, out: self.prepared.view() },
            norm: L2Norm { x: both, heads: 2 * heads, scaled: heads, scale, eps: EPS, out: both },
            gates: GdnGates { b, a, a_log, dt_bias, beta, decay },
        };
        if !whole {
            return prepare.launches(&rig.target, step);
        }
        let scan = GdnScan {
            q: view(0, keys),
            k: view(keys, keys),
            v: view(2 * keys, channels(&shape) - 2 * keys),
            beta,
            decay,
            state: self.state.ptr(),
            shape,
            workspace: self.workspace.ptr(),
            out: self.out.view(),
        };
        GdnStep { prepare, scan }.launches(&rig.target, step)
    }
}

fn run(rig: &Rig, operands: &Operands, whole: bool) -> Result<Outcome, DeviceError> {
    let Operands { dtypes: [dtype, scanned], shape, taps, ref parts, .. } = *operands;
    let layer = Layer::random(rig, operands);
    let (step, limits) = step(parts);
    let device = Device::new(rig, operands, &layer, &limits)?;
    let (_block, pointers, counts) = rig.step(&step, &limits)?;
    let launches = device.launches(rig, operands, &pointers, whole);
    rig.launch(&launches, &counts)?;

    let (mut windows, mut states) = (layer.window.clone(), layer.state.clone());
    let mut want = Prepared::default();
    let mut outputs = Vec::new();
    let (floats, channels) = (state_floats(&shape), channels(&shape));
    let mut row = 0;
    for part in parts {
        let (prepared, window) = layer.prepare(operands, part, row);
        let slot = part.slot as usize;
        windows[slot * taps * channels..][..taps * channels].copy_from_slice(&window);
        row += part.len as usize;
        if whole && launched_few(parts) {
            let (out, state) = rule(&prepared.sequence(operands, &layer, part), &shape);
            outputs.extend(out);
            states[slot * floats..][..floats].copy_from_slice(&state);
        }
        want.values.extend(prepared.values);
        want.beta.extend(prepared.beta);
        want.decay.extend(prepared.decay);
    }
    let (got_windows, want_windows) = (rig.download_as(&device.window, windows.len(), dtype)?, windows);
    let outcome = kept(&got_windows, &want_windows, taps, channels, parts);
    let outcome = if !whole {
        let [beta, decay] = &device.gates;
        let values = Outcome::compare(&device.prepared.read(rig)?, &want.values, tolerance(scanned).max(3e-6));
        let beta = Outcome::compare(&beta.read(rig)?, &want.beta, 2e-6);
        outcome.and(values).and(beta).and(Outcome::compare(&decay.read(rig)?, &want.decay, 3e-6))
    } else if launched_few(parts) {
        let got_states: Vec<f32> = rig.download(&device.state, states.len())?;
        let want_states: Vec<f64> = states.iter().map(|&x| f64::from(x)).collect();
        // Chunks of 16-bit types go through tensor cores.
        let tolerance = if scanned == Dtype::F32 { 1e-5 } else { 4.0 * tolerance(scanned) };
        let out = Outcome::compare(&device.out.read(rig)?, &outputs, tolerance);
        outcome.and(out).and(Outcome::compare(&got_states, &want_states, tolerance))
    } else {
        outcome
    };
    let elements = (tokens(parts) * channels) as u64;
    let read = elements * dtype.bytes() as u64 + (taps * channels * 4) as u64;
    let bytes = match whole {
        true => read + (parts.len() * floats * 8) as u64,
        false => read + elements * scanned.bytes() as u64,
    };
    Ok(outcome.timed(bytes, 2 * taps as u64 * elements, rig.time(&launches, &counts)?))
}

/// Whether the rule is computed on the host too: that of thousands of tokens has cases of its own.
fn launched_few(parts: &[Part]) -> bool {
    tokens(parts) <= 256
}

/// Outputs `[tokens, value_heads * value_dim]`, and the state.
fn rule(sequence: &Sequence, shape: &GdnShape) -> (Vec<f64>, Vec<f32>) {
    let (heads, width) = (shape.num_value_heads, shape.value_head_dim);
    let mut out = vec![0.0; sequence.beta.len() * width];
    let mut state = Vec::new();
    for head in 0..heads {
        let (values, after) = sequence.reference(shape, head);
        for (token, values) in values.chunks_exact(width).enumerate() {
            out[(token * heads + head) * width..][..width].copy_from_slice(values);
        }
        state.extend(after.into_iter().map(|x| x as f32));
    }
    (out, state)
}

/// Whether the windows have what later tokens need, bit for bit. Entries that none of them reads may hold anything.
fn kept(got: &[f32], want: &[f32], taps: usize, channels: usize, parts: &[Part]) -> Outcome {
    let (mut wrong, mut same) = (0, 0);
    for part in parts {
        for age in 1..taps as u32 {
            let Some(entry) = entry_before(part.position + part.len, age, taps) else { continue };
            let at = (part.slot as usize * taps + entry) * channels;
            let pairs = got[at..at + channels].iter().zip(&want[at..at + channels]);
            let equal = pairs.filter(|(got, want)| got.to_bits() == want.to_bits()).count();
            (wrong, same) = (wrong + channels - equal, same + equal);
        }
    }
    let nothing = taps > 1 && same == 0;
    Outcome { error: if nothing { f64::INFINITY } else { wrong as f64 }, tolerance: 0.5, ..Outcome::default() }
}
