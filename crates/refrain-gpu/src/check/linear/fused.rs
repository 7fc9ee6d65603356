//! Products of few rows together with the ops around them.

use crate::check::norm::dtype_name;
use crate::check::operand::{Columns, Operand, one_of_each, some_rows, step_of, tolerance};
use crate::check::{Buffer, Case, Outcome, Rig, Scale, rounded};
use crate::kernels::linear::{Around, Epilogue, Gemv, Linear, Prologue};
use crate::{Count, LaunchSpec};
use refrain_device::DeviceError;
use refrain_program::Dtype;

const EPS: f32 = 1e-6;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    RmsNorm,
    /// With so many heads.
    GatedRmsNorm(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Behind {
    Nothing,
    Add,
    SiluMul,
}

#[derive(Clone, Copy)]
struct Fused {
    rows: usize,
    /// The plan is that for so many.
    plan: u32,
    /// Columns of `out`, and of `x`.
    shape: [usize; 2],
    /// Types of `x` and of `out`; the weight and what it is multiplied with have one type.
    types: [Dtype; 3],
    before: Before,
    behind: Behind,
    columns: fn(usize) -> Columns,
    cold: bool,
}

const F32: [Dtype; 3] = [Dtype::F32; 3];
/// Types of `x`, the weight and `out` of a model in BF16: norms take the residual stream, gates what the scan gives.
const NORM: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F32];
const GATED: [Dtype; 3] = [Dtype::F16, Dtype::Bf16, Dtype::F32];
const ALONE: [Dtype; 3] = [Dtype::Bf16, Dtype::Bf16, Dtype::F32];
const ACTIVATION: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::Bf16];

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    match scale {
        Scale::Ragged => ragged(),
        Scale::Model => model(),
    }
}

fn ragged() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |rows, plan, shape, types, before, behind, columns: fn(usize) -> Columns| {
        cases.push(case(Fused { rows, plan, shape, types, before, behind, columns, cold: false }));
    };
    for (types, gated) in [(NORM, GATED), (F32, F32), ([Dtype::F16, Dtype::F16, Dtype::F16], GATED)] {
        add(1, 1, [37, 136], types, Before::RmsNorm, Behind::Nothing, Columns::among);
        add(3, 4, [38, 64], types, Before::RmsNorm, Behind::SiluMul, Columns::among);
        add(13, 8, [33, 200], types, Before::RmsNorm, Behind::Add, Columns::all);
        add(2, 2, [9, 67], types, Before::RmsNorm, Behind::SiluMul, Columns::askew);
        add(1, 1, [70, 192], gated, Before::GatedRmsNorm(6), Behind::Add, Columns::among);
        add(6, 8, [21, 120], gated, Before::GatedRmsNorm(3), Behind::Add, Columns::all);
        add(3, 2, [9, 84], gated, Before::GatedRmsNorm(7), Behind::Nothing, Columns::askew);
    }
    for types in [ALONE, F32] {
        add(1, 1, [70, 1544], types, Before::Nothing, Behind::Add, Columns::among);
        add(9, 8, [39, 72], types, Before::Nothing, Behind::Add, Columns::all);
        add(3, 4, [39, 72], types, Before::Nothing, Behind::SiluMul, Columns::among);
        add(1, 1, [9, 67], types, Before::Nothing, Behind::Add, Columns::askew);
    }
    // Several loads along the columns, several units for a block, outputs below a unit's, heads of 128.
    add(8, 8, [130, 1160], ACTIVATION, Before::RmsNorm, Behind::SiluMul, Columns::among);
    add(1, 1, [300, 1024], GATED, Before::GatedRmsNorm(8), Behind::Add, Columns::all);
    add(1, 1, [4, 72], ACTIVATION, Before::RmsNorm, Behind::SiluMul, Columns::among);
    add(4, 4, [1, 72], NORM, Before::RmsNorm, Behind::SiluMul, Columns::among);
    cases
}

/// The products of Qwen3.5-4B as a compiled program has them.
fn model() -> Vec<Case> {
    let all: [([usize; 2], [Dtype; 3], Before, Behind); 6] = [
        ([12352, 2560], NORM, Before::RmsNorm, Behind::Nothing),
        ([10240, 2560], NORM, Before::RmsNorm, Behind::Nothing),
        ([2560, 4096], GATED, Before::GatedRmsNorm(32), Behind::Add),
        ([2560, 4096], ALONE, Before::Nothing, Behind::Add),
        ([9216, 2560], ACTIVATION, Before::RmsNorm, Behind::SiluMul),
        ([2560, 9216], ALONE, Before::Nothing, Behind::Add),
    ];
    let mut cases = Vec::new();
    for (shape, types, before, behind) in all {
        for rows in [1, 2, 4, 8] {
            let plan = rows as u32;
            cases.push(case(Fused { rows, plan, shape, types, before, behind, columns: Columns::all, cold: true }));
        }
    }
    cases
}

fn case(fused: Fused) -> Case {
    let Fused { rows, plan, shape: [outputs, inputs], types: [x, weight, out], before, behind, .. } = fused;
    let types = format!("{} {} to {}", dtype_name(x), dtype_name(weight), dtype_name(out));
    let name = format!("{before:?}, {behind:?}, {types}, {rows} x {inputs} by {outputs}, for {plan} rows");
    Case::new("fused_linear", name, move |rig| run(rig, fused))
}

/// More than a device caches.
const COLD_BYTES: usize = 256 << 20;

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// What the matrix is multiplied with, of one row.
fn operand(fused: &Fused, x: &[f32], gate: &[f32], norm: &[f32]) -> Vec<f64> {
    let scale = |part: &[f32]| {
        let squares: f64 = part.iter().map(|&x| f64::from(x).powi(2)).sum();
        (squares / part.len() as f64 + f64::from(EPS)).sqrt().recip()
    };
    let made: Vec<f64> = match fused.before {
        Before::Nothing => return x.iter().map(|&x| f64::from(x)).collect(),
        Before::RmsNorm => {
            let scale = scale(x);
            x.iter().zip(norm).map(|(&x, &norm)| f64::from(x) * scale * (1.0 + f64::from(norm))).collect()
        }
        Before::GatedRmsNorm(heads) => {
            let head = x.len() / heads;
            let scales: Vec<f64> = x.chunks_exact(head).map(scale).collect();
            let value = |(k, (&x, &gate)): (usize, (&f32, &f32))| {
                f64::from(norm[k % head]) * f64::from(x) * scales[k / head] * silu(f64::from(gate))
            };
            x.iter().zip(gate).enumerate().map(value).collect()
        }
    };
    made.into_iter().map(|value| f64::from(rounded(value as f32, fused.types[1]))).collect()
}

fn run(rig: &Rig, fused: Fused) -> Result<Outcome, DeviceError> {
    let Fused { rows, plan, shape: [outputs, inputs], types: [x_type, dtype, out_type], before, behind, .. } = fused;
    let columns = fused.columns;
    let (x, x_values) = Operand::random(rig, rows, columns(inputs), x_type, 1.0)?;
    let (gate, gate_values) = Operand::random(rig, rows, columns(inputs), Dtype::F32, 2.0)?;
    let norm = rig.random(inputs, 0.5, Dtype::F32);
    let norm_buffer = rig.upload(&norm)?;
    let halves = if behind == Behind::SiluMul { 2 } else { 1 };
    // Products around one, where the sigmoid bends.
    let deviation = (inputs as f32).sqrt().recip();
    let weights = rig.random(halves * outputs * inputs, deviation, dtype);
    // The residual is updated in place.
    let (out, residual_values) = match behind {
        Behind::Add => Operand::random(rig, rows, columns(outputs), out_type, 1.0)?,
        _ => (Operand::poisoned(rig, rows, columns(outputs), out_type)?, Vec::new()),
    };
    let prologue = match before {
        Before::Nothing => Prologue::None,
        Before::RmsNorm => Prologue::RmsNorm { weight: norm_buffer.ptr(), eps: EPS, operand: dtype },
        Before::GatedRmsNorm(heads) => Prologue::GatedRmsNorm {
            gate: gate.view(),
            weight: norm_buffer.ptr(),
            heads: heads as u32,
            eps: EPS,
            operand: dtype,
        },
    };
    let epilogue = match behind {
        Behind::Nothing => Epilogue::None,
        Behind::Add => Epilogue::Add { residual: out.view() },
        Behind::SiluMul => Epilogue::SiluMul,
    };
    let around = Around { prologue, epilogue };
    let (_step, step, counts) = step_of(rig, vec![0; rows], vec![])?;
    let weight_bytes = weights.len() * dtype.bytes();
    let copies = if fused.cold { COLD_BYTES.div_ceil(weight_bytes).min(16) } else { 1 };
    let copies = (0..copies).map(|_| rig.upload_as(&weights, dtype)).collect::<Result<Vec<Buffer>, _>>()?;
    let launches: Vec<LaunchSpec> = copies
        .iter()
        .flat_map(|weight| {
            let linear = Linear { count: Count::Tokens, x: x.view(), weight: weight.ptr(), dtype, out: out.view() };
            Gemv::choose(&linear, &around, &rig.target, plan).launches(&rig.target, &step)
        })
        .collect();
    rig.launch(&launches[..1], &counts)?;

    let stride = if rows * outputs > 1 << 14 { outputs.div_ceil(256) } else { 1 };
    let mut sample = Vec::new();
    for row in some_rows(rows) {
        let part = |values: &[f32]| values[row * inputs..][..inputs].to_vec();
        let operand = operand(&fused, &part(&x_values), &part(&gate_values), &norm);
        let product = |n: usize| -> f64 {
            let weight = &weights[n * inputs..][..inputs];
            operand.iter().zip(weight).map(|(&x, &weight)| x * f64::from(weight)).sum()
        };
        for column in one_of_each(outputs, stride, row) {
            let value = match behind {
                Behind::Nothing => product(column),
                Behind::Add => f64::from(residual_values[row * outputs + column]) + product(column),
                Behind::SiluMul => silu(product(column)) * product(outputs + column),
            };
            sample.push((row, column, value));
        }
    }
    // Where an operand lies between two values of its type, f32 and double precision may choose either.
    let rounding = if dtype == Dtype::F32 || before == Before::Nothing { 1e-4 } else { 4e-4 };
    let exact = dtype == Dtype::F32 && out_type == Dtype::F32;
    let tolerance = if exact { tolerance(Dtype::F32) } else { tolerance(out_type).max(rounding) };
    let outcome = Outcome { tolerance, ..out.compare_some(rig, sample)? };
    let around_bytes = if matches!(before, Before::GatedRmsNorm(_)) { gate.bytes() } else { 0 };
    let bytes = weight_bytes as u64 + x.bytes() + around_bytes + (halves as u64) * out.bytes();
    let seconds = rig.time(&launches, &counts)?.map(|seconds| seconds / copies.len() as f64);
    Ok(outcome.timed(bytes, 2 * (rows * inputs * halves * outputs) as u64, seconds))
}
