//! Cases of `elementwise.cu`, and of kernels that are generated.

mod generated;

use super::norm::dtype_name;
use super::operand::{Columns, Operand, some_rows, step_of};
use super::{Case, Outcome, Rig, Scale};
use crate::kernels::elementwise::{Add, Embed, GatherRows, SigmoidGate, SiluMul};
use crate::step_block::CARRIED;
use crate::{Count, LaunchSpec, Rows, StepPointers, Target};
use refrain_device::DeviceError;
use refrain_program::Dtype;

/// Two inputs, one output.
#[derive(Clone, Copy)]
struct Pairwise {
    entry: &'static str,
    reference: fn(f64, f64) -> f64,
    launches: fn([Rows; 3], &Target, &StepPointers) -> Vec<LaunchSpec>,
}

const COUNT: Count = Count::Tokens;
const ADD: Pairwise = Pairwise {
    entry: "add",
    reference: |a, b| a + b,
    launches: |[a, b, out], target, step| Add { count: COUNT, a, b, out }.launches(target, step),
};
const SIGMOID_GATE: Pairwise = Pairwise {
    entry: "sigmoid_gate",
    reference: |x, gate| x / (1.0 + (-gate).exp()),
    launches: |[x, gate, out], target, step| SigmoidGate { count: COUNT, x, gate, out }.launches(target, step),
};
const SILU_MUL: Pairwise = Pairwise {
    entry: "silu_mul",
    reference: |gate, up| gate / (1.0 + (-gate).exp()) * up,
    launches: |[gate, up, out], target, step| SiluMul { count: COUNT, gate, up, out }.launches(target, step),
};

pub(super) fn cases(_: &Target, scale: Scale) -> Vec<Case> {
    let known = match scale {
        Scale::Ragged => ragged(),
        Scale::Model => model(),
    };
    known.into_iter().chain(generated::cases(scale)).collect()
}

fn ragged() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for (rows, columns) in [(1, Columns::askew(65)), (130, Columns::among(40)), (3, Columns::among(520))] {
            cases.extend([ADD, SIGMOID_GATE, SILU_MUL].map(|op| pair_case(op, rows, columns, [dtype; 2], false)));
            cases.push(gather_case(rows, rows.div_ceil(3), columns, dtype));
        }
        cases.push(pair_case(ADD, 9, Columns::among(24), [Dtype::F32, dtype], true));
        cases.push(pair_case(ADD, 9, Columns::askew(9), [Dtype::F32, dtype], true));
        for table in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            cases.push(embed_case(65, 11, Columns::askew(19), table, dtype));
            cases.push(embed_case(9, 11, Columns::among(24), table, dtype));
        }
    }
    cases
}

fn model() -> Vec<Case> {
    let mut cases = Vec::new();
    for rows in [1, 8192] {
        // Gate and up, and the heads' gates, lie side by side in what one product has written.
        let half = |width| Columns { before: 0, width, after: width };
        let hidden = Columns::all(2560);
        cases.push(pair_case(ADD, rows, hidden, [Dtype::F32, Dtype::Bf16], true));
        cases.push(pair_case(SIGMOID_GATE, rows, half(4096), [Dtype::Bf16; 2], true));
        cases.push(pair_case(SILU_MUL, rows, half(9216), [Dtype::Bf16; 2], false));
        cases.push(embed_case(rows, 65_536, hidden, Dtype::Bf16, Dtype::F32));
        cases.push(gather_case(rows, rows.min(64), hidden, Dtype::F32));
    }
    cases
}

/// `types` are those of the first input, which the output shares, and of the second.
fn pair_case(op: Pairwise, rows: usize, columns: Columns, types: [Dtype; 2], in_place: bool) -> Case {
    let [a, b] = types.map(dtype_name);
    let place = if in_place { ", in place" } else { "" };
    let name = format!("{a} and {b}, {rows} x {}{place}", columns.width);
    Case::new(op.entry, name, move |rig| pairwise(rig, op, rows, columns, types, in_place))
}

fn pairwise(
    rig: &Rig,
    op: Pairwise,
    rows: usize,
    columns: Columns,
    [dtype, b_type]: [Dtype; 2],
    in_place: bool,
) -> Result<Outcome, DeviceError> {
    let (a, a_values) = Operand::random(rig, rows, columns, dtype, 3.0)?;
    let (b, b_values) = Operand::random(rig, rows, columns, b_type, 3.0)?;
    let separate = Operand::poisoned(rig, rows, columns, dtype)?;
    let out = if in_place { &a } else { &separate };
    let (_step, step, counts) = step_of(rig, vec![0; rows], vec![])?;
    let launches = (op.launches)([a.view(), b.view(), out.view()], &rig.target, &step);
    rig.launch(&launches, &counts)?;
    let width = columns.width;
    let sample = some_rows(rows).flat_map(|row| (0..width).map(move |column| (row, column)));
    let sample = sample.map(|(row, column)| {
        let at = row * width + column;
        (row, column, (op.reference)(f64::from(a_values[at]), f64::from(b_values[at])))
    });
    let outcome = out.compare_some(rig, sample)?;
    let bytes = a.bytes() + b.bytes() + out.bytes();
    Ok(outcome.timed(bytes, 4 * (rows * width) as u64, rig.time(&launches, &counts)?))
}

fn embed_case(rows: usize, vocab: usize, columns: Columns, table: Dtype, dtype: Dtype) -> Case {
    let (from, to) = (dtype_name(table), dtype_name(dtype));
    let name = format!("{from} to {to}, {rows} x {}, {vocab} in the table", columns.width);
    Case::new("embed", name, move |rig| embed(rig, rows, vocab, columns, table, dtype))
}

fn embed(
    rig: &Rig,
    rows: usize,
    vocab: usize,
    columns: Columns,
    table: Dtype,
    dtype: Dtype,
) -> Result<Outcome, DeviceError> {
    let (from, values) = Operand::random(rig, vocab, Columns::all(columns.width), table, 1.0)?;
    let out = Operand::poisoned(rig, rows, columns, dtype)?;
    let mut tokens: Vec<u32> = (0..rows).map(|_| (rig.random_u64() % vocab as u64) as u32).collect();
    tokens[rows - 1] = vocab as u32 - 1;
    // Of some rows the tokens are those that the step before has chosen, one for each row, in the opposite order.
    let words: Vec<u32> = tokens.iter().rev().flat_map(|&token| [token, 0, 0, 0]).collect();
    let chosen = rig.upload(&words)?;
    let row_of = |(row, &token): (usize, &u32)| if row % 3 == 1 { CARRIED | (rows - 1 - row) as u32 } else { token };
    let named = tokens.iter().enumerate().map(row_of).collect();
    let (_step, step, counts) = step_of(rig, named, vec![])?;
    let embed = Embed { table: from.view().base, dtype: table, chosen: chosen.ptr(), out: out.view() };
    let launches = embed.launches(&rig.target, &step);
    rig.launch(&launches, &counts)?;
    let outcome = picked(rig, &out, &values, &tokens, columns.width)?;
    let bytes = out.bytes() + (rows * (columns.width * table.bytes() + 4)) as u64;
    Ok(outcome.timed(bytes, 0, rig.time(&launches, &counts)?))
}

fn gather_case(rows: usize, picked: usize, columns: Columns, dtype: Dtype) -> Case {
    let name = format!("{}, {picked} of {rows} x {}", dtype_name(dtype), columns.width);
    Case::new("gather_rows", name, move |rig| gather(rig, rows, picked, columns, dtype))
}

fn gather(rig: &Rig, rows: usize, picks: usize, columns: Columns, dtype: Dtype) -> Result<Outcome, DeviceError> {
    let (x, values) = Operand::random(rig, rows, columns, dtype, 1.0)?;
    let out = Operand::poisoned(rig, picks, columns, dtype)?;
    let logit_rows: Vec<u32> = (0..picks).map(|pick| ((pick + 1) * rows / picks - 1) as u32).collect();
    let (_step, step, counts) = step_of(rig, vec![0; rows], logit_rows.clone())?;
    let launches = GatherRows { x: x.view(), out: out.view() }.launches(&rig.target, &step);
    rig.launch(&launches, &counts)?;
    let outcome = picked(rig, &out, &values, &logit_rows, columns.width)?;
    Ok(outcome.timed(2 * out.bytes(), 0, rig.time(&launches, &counts)?))
}

/// Compares with the rows of `from` that `index` names.
fn picked(rig: &Rig, out: &Operand, from: &[f32], index: &[u32], width: usize) -> Result<Outcome, DeviceError> {
    let sample = index.iter().enumerate().flat_map(|(row, &picked)| {
        (0..width).map(move |column| (row, column, f64::from(from[picked as usize * width + column])))
    });
    out.compare_some(rig, sample)
}
