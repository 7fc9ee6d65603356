//! The gates of the gated delta rule.

use super::tensor::{Columns, Tensor};
use super::{DTYPES, part, step};
use crate::check::{Case, Outcome, Rig, Scale};
use crate::kernels::gdn::GdnGates;
use refrain_device::DeviceError;
use refrain_program::Dtype;

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    let all: Vec<(Dtype, usize, usize, usize)> = match scale {
        Scale::Ragged => {
            let shapes = [(1, 32, 97), (65, 3, 7), (10, 300, 604)];
            DTYPES.into_iter().zip(shapes).map(|(dtype, (rows, heads, stride))| (dtype, rows, heads, stride)).collect()
        }
        Scale::Model => [1, 64, 8192].map(|rows| (Dtype::F32, rows, 32, 12352)).into(),
    };
    let case = |(dtype, rows, heads, stride)| {
        Case::new("gdn_gates", format!("{dtype:?}, T {rows}, {heads} heads"), move |rig| {
            run(rig, dtype, rows, heads, stride)
        })
    };
    all.into_iter().map(case).collect()
}

fn run(rig: &Rig, dtype: Dtype, rows: usize, heads: usize, stride: usize) -> Result<Outcome, DeviceError> {
    let columns = |first| Columns { first, width: heads, stride };
    let values_b = rig.random(rows * heads, 4.0, dtype);
    // From where softplus is e^x to where it is x.
    let values_a = rig.random(rows * heads, 12.0, dtype);
    let logs = rig.random(heads, 2.0, Dtype::F32);
    let biases = rig.random(heads, 1.0, Dtype::F32);
    let b = Tensor::with(rig, &values_b, columns(0), dtype)?;
    let a = Tensor::with(rig, &values_a, columns(heads + 1), dtype)?;
    let (a_log, dt_bias) = (rig.upload(&logs)?, rig.upload(&biases)?);
    let beta = Tensor::poisoned(rig, rows, Columns { first: 2, width: heads, stride: heads + 5 }, Dtype::F32)?;
    let decay = Tensor::poisoned(rig, rows, Columns::whole(heads), Dtype::F32)?;
    let op = GdnGates {
        b: b.view(),
        a: a.view(),
        a_log: a_log.ptr(),
        dt_bias: dt_bias.ptr(),
        beta: beta.view(),
        decay: decay.view(),
    };
    let (step, limits) = step(&[part(0, rows as u32, 0)]);
    let (_block, pointers, counts) = rig.step(&step, &limits)?;
    let launches = op.launches(&rig.target, &pointers);
    rig.launch(&launches, &counts)?;

    let want_beta: Vec<f64> = values_b.iter().map(|&b| 1.0 / (1.0 + (-f64::from(b)).exp())).collect();
    // Small decays matter as much as large ones: each is compared as a quotient.
    let mut quotients = vec![];
    for (index, (&a, decay)) in values_a.iter().zip(decay.read(rig)?).enumerate() {
        let x = f64::from(a + biases[index % heads]);
        let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
        quotients.push((f64::from(decay) / (-f64::from(logs[index % heads]).exp() * softplus)) as f32);
    }
    let ones = vec![1.0; quotients.len()];
    // The argument of each exponential is rounded: to 2^-24 of up to 40.
    let outcome = Outcome::compare(&beta.read(rig)?, &want_beta, 2e-6).and(Outcome::compare(&quotients, &ones, 3e-6));
    let bytes = (rows * heads * (2 * dtype.bytes() + 8)) as u64;
    Ok(outcome.timed(bytes, 10 * (rows * heads) as u64, rig.time(&launches, &counts)?))
}
