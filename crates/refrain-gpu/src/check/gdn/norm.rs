//! The norms of heads.

use super::tensor::{Columns, Tensor};
use super::{DTYPES, part, step, tolerance};
use crate::check::{Case, Outcome, Rig, Scale};
use crate::kernels::gdn::{GatedRmsNorm, L2Norm};
use refrain_device::DeviceError;
use refrain_program::Dtype;

const EPS: f32 = 1e-6;
const SCALE: f32 = 0.0883;

/// Where the result goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Apart,
    OverX,
    OverGate,
}

#[derive(Clone, Copy, Debug)]
struct Operands {
    dtype: Dtype,
    /// Of the gate, and of the result of the gated norm where it lies apart.
    gate_dtype: Dtype,
    out_dtype: Dtype,
    rows: usize,
    heads: usize,
    x: Columns,
    gate: Columns,
    place: Place,
}

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    let mut all: Vec<(String, Operands, Operands)> = vec![];
    match scale {
        Scale::Ragged => {
            for dtype in DTYPES {
                // Vectors and single elements, idle lanes, several elements of a lane, more heads than a block takes.
                let shapes = [(5, 128), (2, 37), (3, 40), (1, 256), (18, 16)];
                let shapes = if dtype == Dtype::F16 { &shapes[..] } else { &shapes[..2] };
                // As in programs: values of the scan, gates of a projection, and what the next projection takes.
                let (gate_dtype, out_dtype) =
                    if dtype == Dtype::F16 { (Dtype::F32, Dtype::Bf16) } else { (dtype, dtype) };
                for &(heads, head_dim) in shapes {
                    for (rows, place) in [(1, Place::Apart), (7, Place::OverX), (3, Place::OverGate)] {
                        let width = heads * head_dim;
                        let x = Columns { first: 8, width, stride: width + 16 };
                        let gate = Columns { first: 0, width, stride: width + 24 };
                        let operands = Operands { dtype, gate_dtype, out_dtype, rows, heads, x, gate, place };
                        let l2 = Operands { place: if rows == 3 { Place::Apart } else { place }, ..operands };
                        all.push((format!("{dtype:?}, T {rows}, {heads} heads of {head_dim}"), l2, operands));
                    }
                }
            }
        }
        Scale::Model => {
            for rows in [1, 64, 8192] {
                let (dtype, gate_dtype, out_dtype) = (Dtype::F16, Dtype::F32, Dtype::Bf16);
                let (x, gate) = (Columns::whole(4096), Columns { first: 8192, width: 4096, stride: 12352 });
                let place = Place::Apart;
                let gated = Operands { dtype, gate_dtype, out_dtype, rows, heads: 32, x, gate, place };
                let x = Columns { first: 0, width: 4096, stride: 8192 };
                let l2 = Operands { place: Place::OverX, x, ..gated };
                all.push((format!("F16, T {rows}"), l2, gated));
            }
        }
    }
    let case = |(name, l2, gated): (String, Operands, Operands)| {
        [
            Case::new("l2_norm", name.clone(), move |rig| run_l2(rig, &l2)),
            Case::new("gated_rms_norm", name, move |rig| run_gated(rig, &gated)),
        ]
    };
    all.into_iter().flat_map(case).collect()
}

fn run_l2(rig: &Rig, operands: &Operands) -> Result<Outcome, DeviceError> {
    let &Operands { dtype, rows, heads, x: columns, place, .. } = operands;
    let values = rig.random(rows * columns.width, 2.0, dtype);
    let x = Tensor::with(rig, &values, columns, dtype)?;
    let apart = Tensor::poisoned(rig, rows, Columns::whole(columns.width), dtype)?;
    let out = if place == Place::OverX { &x } else { &apart };
    let op = L2Norm {
        x: x.view(),
        heads: heads as u32,
        scaled: heads.div_ceil(2) as u32,
        scale: SCALE,
        eps: EPS,
        out: out.view(),
    };
    let (step, limits) = step(&[part(0, rows as u32, 0)]);
    let (_block, pointers, counts) = rig.step(&step, &limits)?;
    let launches = op.launches(&rig.target, &pointers);
    rig.launch(&launches, &counts)?;

    let mut want = Vec::with_capacity(values.len());
    for (index, head) in values.chunks_exact(columns.width / heads).enumerate() {
        let sum: f64 = head.iter().map(|&x| f64::from(x).powi(2)).sum();
        let scale = if index % heads < heads.div_ceil(2) { f64::from(SCALE) } else { 1.0 };
        let factor = scale / (sum + f64::from(EPS)).sqrt();
        want.extend(head.iter().map(|&x| f64::from(x) * factor));
    }
    let outcome = Outcome::compare(&out.read(rig)?, &want, tolerance(dtype));
    let bytes = (2 * values.len() * dtype.bytes()) as u64;
    Ok(outcome.timed(bytes, 3 * values.len() as u64, rig.time(&launches, &counts)?))
}

fn run_gated(rig: &Rig, operands: &Operands) -> Result<Outcome, DeviceError> {
    let &Operands { dtype, gate_dtype, out_dtype, rows, heads, x: columns, gate: gate_columns, place } = operands;
    let (width, head_dim) = (columns.width, columns.width / heads);
    let values = rig.random(rows * width, 2.0, dtype);
    let gates = rig.random(rows * width, 2.0, gate_dtype);
    let weights = rig.random(head_dim, 1.0, Dtype::F32);
    let x = Tensor::with(rig, &values, columns, dtype)?;
    let gate = Tensor::with(rig, &gates, gate_columns, gate_dtype)?;
    let weight = rig.upload(&weights)?;
    let apart = Tensor::poisoned(rig, rows, Columns::whole(width), out_dtype)?;
    let out = match place {
        Place::Apart => &apart,
        Place::OverX => &x,
        Place::OverGate => &gate,
    };
    let op = GatedRmsNorm {
        x: x.view(),
        gate: gate.view(),
        weight: weight.ptr(),
        heads: heads as u32,
        eps: EPS,
        out: out.view(),
    };
    let (step, limits) = step(&[part(0, rows as u32, 0)]);
    let (_block, pointers, counts) = rig.step(&step, &limits)?;
    let launches = op.launches(&rig.target, &pointers);
    rig.launch(&launches, &counts)?;

    let mut want = Vec::with_capacity(values.len());
    for (head, gate) in values.chunks_exact(head_dim).zip(gates.chunks_exact(head_dim)) {
        let sum: f64 = head.iter().map(|&x| f64::from(x).powi(2)).sum();
        let factor = 1.0 / (sum / head_dim as f64 + f64::from(EPS)).sqrt();
        for ((&x, &gate), &weight) in head.iter().zip(gate).zip(&weights) {
            let gate = f64::from(gate);
            want.push(f64::from(weight) * f64::from(x) * factor * gate / (1.0 + (-gate).exp()));
        }
    }
    let outcome = Outcome::compare(&out.read(rig)?, &want, tolerance(out.view().dtype));
    let bytes = (values.len() * (dtype.bytes() + gate_dtype.bytes() + out.view().dtype.bytes())) as u64;
    Ok(outcome.timed(bytes, 8 * values.len() as u64, rig.time(&launches, &counts)?))
}
