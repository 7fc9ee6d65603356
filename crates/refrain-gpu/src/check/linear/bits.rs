//! A row's product must not change a bit with the rows beside it, with the plan for few rows, or with the tile for many.

use super::{Method, Types, dtype_name};
use crate::check::operand::{Columns, Operand, step_of};
use crate::check::{Case, Outcome, Rig};
use crate::kernels::linear::Linear;
use crate::{Count, Rows};
use refrain_device::DeviceError;

pub(super) fn cases(types: &[Types]) -> Vec<Case> {
    let few = types.iter().map(|&types| {
        let name = format!("{}, the same bits for 1, 2, 4 and 8 rows", dtype_name(types[1]));
        Case::new("gemv", name, move |rig| same(rig, types, [43, 1096], &[1, 2, 4, 8], Method::Gemv))
    });
    let many = types.iter().map(|&types| {
        let name = format!("{}, the same bits by every tile", dtype_name(types[1]));
        Case::new("gemm", name, move |rig| same(rig, types, [70, 104], &[16, 32, 64, 128], Method::Tiled))
    });
    let ranges = types.iter().flat_map(|&types| {
        let name = |what: &str| format!("{}, the same bits by {what}", dtype_name(types[1]));
        let few = name("the plans of ranges");
        let many = name("the tiles of ranges");
        [
            Case::new("gemv", few, move |rig| same(rig, types, [43, 1096], &[1, 3, 6], Method::Gemv)),
            Case::new("gemm", many, move |rig| same(rig, types, [70, 104], &[16, 48, 96], Method::Range)),
        ]
    });
    few.chain(many).chain(ranges).collect()
}

/// The values that differ between a product of the most of `rows` at once and its parts of each other number of them.
fn same(
    rig: &Rig,
    types: Types,
    [outputs, inputs]: [usize; 2],
    rows: &[usize],
    method: fn(u32) -> Method,
) -> Result<Outcome, DeviceError> {
    let [x_type, dtype, out_type] = types;
    let all = rows[rows.len() - 1];
    let (x, _) = Operand::random(rig, all, Columns::all(inputs), x_type, 1.0)?;
    let weight = rig.upload_as(&rig.random(outputs * inputs, 0.5, dtype), dtype)?;
    let mut results = Vec::new();
    for &rows in rows {
        let out = Operand::poisoned(rig, all, Columns::all(outputs), out_type)?;
        let (_step, step, counts) = step_of(rig, vec![0; rows], vec![])?;
        for first in (0..all).step_by(rows) {
            let from =
                |view: Rows| Rows { base: view.base.offset(first * view.stride as usize * view.dtype.bytes()), ..view };
            let (x, out) = (from(x.view()), from(out.view()));
            let linear = Linear { count: Count::Tokens, x, weight: weight.ptr(), dtype, out };
            rig.launch(&method(rows as u32).launches(linear, &rig.target, &step), &counts)?;
        }
        results.push(out.read(rig)?);
    }
    let together = results.pop().expect("there are several");
    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() || a.is_nan();
    let wrong: usize =
        results.iter().map(|parts| parts.iter().zip(&together).filter(|pair| differ(*pair)).count()).sum();
    Ok(Outcome { error: wrong as f64, tolerance: 0.5, ..Outcome::default() })
}
