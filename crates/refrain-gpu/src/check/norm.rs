//! Cases of `norm.cu`.

use super::operand::{Columns, Operand, some_rows, step_of};
use super::{Case, Outcome, Rig, Scale, rounded};
use crate::kernels::norm::{AddRmsNorm, RmsNorm};
use crate::{Count, Target};
use refrain_device::DeviceError;
use refrain_program::Dtype;

const EPS: f32 = 1e-6;

pub(super) fn cases(_: &Target, scale: Scale) -> Vec<Case> {
    let sums = match scale {
        Scale::Ragged => vec![
            (3, Columns::among(72), [Dtype::F32; 3]),
            (65, Columns::askew(67), [Dtype::F32, Dtype::Bf16, Dtype::Bf16]),
            (1, Columns::all(2560), [Dtype::F32, Dtype::F32, Dtype::Bf16]),
            (3, Columns::all(5120), [Dtype::Bf16, Dtype::F32, Dtype::Bf16]),
            (2, Columns::among(16392), [Dtype::F32, Dtype::F32, Dtype::F16]),
            (3, Columns::askew(2051), [Dtype::F16, Dtype::F32, Dtype::F32]),
        ],
        Scale::Model => {
            [1, 64, 8192].map(|rows| (rows, Columns::all(2560), [Dtype::F32, Dtype::F32, Dtype::Bf16])).into()
        }
    };
    let sum = |(rows, columns, types): (usize, Columns, [Dtype; 3])| {
        let name = format!("{}, {rows} x {}", types.map(dtype_name).join(" "), columns.width);
        Case::new("add_rms_norm", name, move |rig| run_sum(rig, rows, columns, types))
    };
    alone(scale).into_iter().chain(sums.into_iter().map(sum)).collect()
}

fn alone(scale: Scale) -> Vec<Case> {
    let case = |name: &str, rows, columns: Columns, types: [Dtype; 2]| {
        let [from, to] = types.map(dtype_name);
        let name = format!("{name}, {from} to {to}, {rows} x {}", columns.width);
        Case::new("rms_norm", name, move |rig| run(rig, rows, columns, types))
    };
    match scale {
        Scale::Ragged => {
            let mut cases = Vec::new();
            for types in [F32, [Dtype::F32, Dtype::Bf16], [Dtype::F16, Dtype::F16]] {
                cases.push(case("aligned", 3, Columns::among(72), types));
                cases.push(case("unaligned", 65, Columns::askew(67), types));
            }
            cases.push(case("one row", 1, Columns::all(2560), [Dtype::F32, Dtype::Bf16]));
            cases.push(case("two vectors a thread", 3, Columns::all(5120), [Dtype::Bf16, Dtype::Bf16]));
            cases.push(case("three elements a thread", 2, Columns::askew(1100), F32));
            cases.push(case("longer than registers", 2, Columns::among(16392), [Dtype::Bf16, Dtype::Bf16]));
            cases.push(case("longer than registers, unaligned", 3, Columns::askew(2051), F32));
            cases
        }
        Scale::Model => {
            let types = [Dtype::F32, Dtype::Bf16];
            [1, 64, 8192].map(|rows| case("hidden", rows, Columns::all(2560), types)).into()
        }
    }
}

const F32: [Dtype; 2] = [Dtype::F32; 2];

pub(super) fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}

fn run(rig: &Rig, rows: usize, columns: Columns, [from, to]: [Dtype; 2]) -> Result<Outcome, DeviceError> {
    let width = columns.width;
    let (x, values) = Operand::random(rig, rows, columns, from, 2.0)?;
    let weight = rig.random(width, 0.5, Dtype::F32);
    let weight_buffer = rig.upload(&weight)?;
    let out = Operand::poisoned(rig, rows, columns, to)?;
    let (_step, step, counts) = step_of(rig, vec![0; rows], vec![])?;
    let norm = RmsNorm { count: Count::Tokens, x: x.view(), weight: weight_buffer.ptr(), eps: EPS, out: out.view() };
    let launches = norm.launches(&rig.target, &step);
    rig.launch(&launches, &counts)?;
    let outcome = out.compare_some(rig, reference(&values, &weight))?;
    let (bytes, flops) = (x.bytes() + out.bytes() + 4 * width as u64, 4 * (rows * width) as u64);
    Ok(outcome.timed(bytes, flops, rig.time(&launches, &counts)?))
}

/// Row, column and value of the norm of some rows of `values`, `[rows, width]`.
fn reference(values: &[f32], weight: &[f32]) -> impl Iterator<Item = (usize, usize, f64)> {
    let width = weight.len();
    some_rows(values.len() / width).flat_map(move |row| {
        let x = &values[row * width..][..width];
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let scale = (squares / width as f64 + f64::from(EPS)).sqrt().recip();
        let weighted = x.iter().zip(weight).map(move |(&x, &weight)| f64::from(x) * scale * (1.0 + f64::from(weight)));
        weighted.enumerate().map(move |(column, value)| (row, column, value))
    })
}

/// The sum takes the place of its first operand.
fn run_sum(rig: &Rig, rows: usize, columns: Columns, types: [Dtype; 3]) -> Result<Outcome, DeviceError> {
    let width = columns.width;
    let (a, a_values) = Operand::random(rig, rows, columns, types[0], 1.5)?;
    let (b, b_values) = Operand::random(rig, rows, columns, types[1], 1.5)?;
    let weight = rig.random(width, 0.5, Dtype::F32);
    let weight_buffer = rig.upload(&weight)?;
    let out = Operand::poisoned(rig, rows, columns, types[2])?;
    let (_step, step, counts) = step_of(rig, vec![0; rows], vec![])?;
    let (sum, count) = (a.view(), Count::Tokens);
    let norm =
        AddRmsNorm { count, a: a.view(), b: b.view(), sum, weight: weight_buffer.ptr(), eps: EPS, out: out.view() };
    let launches = norm.launches(&rig.target, &step);
    rig.launch(&launches, &counts)?;
    let sums: Vec<f32> = a_values.iter().zip(&b_values).map(|(a, b)| rounded(a + b, types[0])).collect();
    let wrong = a.read(rig)?.iter().zip(&sums).filter(|(got, want)| got.to_bits() != want.to_bits()).count();
    let exact = Outcome { error: wrong as f64, tolerance: 0.5, ..Outcome::default() };
    let outcome = exact.and(out.compare_some(rig, reference(&sums, &weight))?);
    let bytes = 2 * a.bytes() + b.bytes() + out.bytes() + 4 * width as u64;
    Ok(outcome.timed(bytes, 5 * (rows * width) as u64, rig.time(&launches, &counts)?))
}
