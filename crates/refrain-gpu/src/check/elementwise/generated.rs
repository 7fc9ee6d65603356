//! Chains of element-wise ops whose kernels are generated.

use crate::check::norm::dtype_name;
use crate::check::operand::{Columns, Operand, some_rows, step_of};
use crate::check::{Case, Outcome, Rig, Scale, rounded};
use crate::kernels::generated::{Function, Generated, Operand as Leaf};
use crate::{Count, Rows};
use refrain_device::DeviceError;
use refrain_program::{Dtype, ElementwiseFunction};

/// How an expression is put together from the leaves 0, 1, 2.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// `silu(a + b) * c`.
    SiluOfSum,
    /// `a + b * sigmoid(c)`.
    SumOfGated,
    /// `(a + b) + silu(b) * c`: a leaf twice, and results on both sides.
    Both,
}

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    use Dtype::{Bf16, F16, F32};
    let all: Vec<(Shape, usize, Columns, [Dtype; 4], Dtype)> = match scale {
        Scale::Ragged => vec![
            (Shape::SiluOfSum, 9, Columns::among(24), [F32, Bf16, F32, F32], Bf16),
            (Shape::SumOfGated, 65, Columns::askew(19), [F32, F16, Bf16, F32], F16),
            (Shape::Both, 3, Columns::among(520), [F32, F32, F32, F32], F32),
            (Shape::Both, 1, Columns::askew(65), [F16, F32, Bf16, F16], F16),
        ],
        Scale::Model => [1, 8192].map(|rows| (Shape::SumOfGated, rows, Columns::all(2560), [F32; 4], F32)).into(),
    };
    let case = |(shape, rows, columns, types, inner): (Shape, usize, Columns, [Dtype; 4], Dtype)| {
        let [a, b, c, out] = types.map(dtype_name);
        let name = format!("{shape:?}, {a} {b} {c} to {out} through {}, {rows} x {}", dtype_name(inner), columns.width);
        Case::new("generated", name, move |rig| run(rig, shape, rows, columns, types, inner))
    };
    all.into_iter().map(case).collect()
}

fn function(shape: Shape, [a, b, c]: [Rows; 3], inner: Dtype, dtype: Dtype) -> Function {
    let of = |function, a, b, dtype| Function { function, operands: Box::new([a, b]), dtype };
    let [a, b, c] = [a, b, c].map(Leaf::Rows);
    let (add, silu_mul) = (ElementwiseFunction::Add, ElementwiseFunction::SiluMul);
    match shape {
        Shape::SiluOfSum => of(silu_mul, Leaf::Function(of(add, a, b, inner)), c, dtype),
        Shape::SumOfGated => of(add, a, Leaf::Function(of(ElementwiseFunction::SigmoidGate, b, c, inner)), dtype),
        Shape::Both => {
            let sum = of(add, a, b.clone(), inner);
            of(add, Leaf::Function(sum), Leaf::Function(of(silu_mul, b, c, inner)), dtype)
        }
    }
}

fn reference(shape: Shape, [a, b, c]: [f64; 3], inner: Dtype) -> f64 {
    let round = |value: f64| if inner == Dtype::F32 { value } else { f64::from(rounded(value as f32, inner)) };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match shape {
        Shape::SiluOfSum => {
            let sum = round(a + b);
            sum * sigmoid(sum) * c
        }
        Shape::SumOfGated => a + round(b * sigmoid(c)),
        Shape::Both => round(a + b) + round(b * sigmoid(b) * c),
    }
}

/// The result takes the place of the first leaf.
fn run(
    rig: &Rig,
    shape: Shape,
    rows: usize,
    columns: Columns,
    types: [Dtype; 4],
    inner: Dtype,
) -> Result<Outcome, DeviceError> {
    let (a, a_values) = Operand::random(rig, rows, columns, types[0], 2.0)?;
    let (b, b_values) = Operand::random(rig, rows, columns, types[1], 2.0)?;
    let (c, c_values) = Operand::random(rig, rows, columns, types[2], 2.0)?;
    assert_eq!(types[0], types[3], "the result takes the place of the first leaf");
    let root = function(shape, [a.view(), b.view(), c.view()], inner, types[3]);
    let (_step, step, counts) = step_of(rig, vec![0; rows], vec![])?;
    let launches = Generated { count: Count::Tokens, root, out: a.view() }.launches(&rig.target, &step);
    rig.launch(&launches, &counts)?;
    let width = columns.width;
    let sample = some_rows(rows).flat_map(|row| (0..width).map(move |column| (row, column)));
    let sample = sample.map(|(row, column)| {
        let at = row * width + column;
        let values = [a_values[at], b_values[at], c_values[at]].map(f64::from);
        (row, column, reference(shape, values, inner))
    });
    let outcome = a.compare_some(rig, sample)?;
    // Where a value lies between two of the inner type, f32 and double precision may choose either.
    let rounding = if inner == Dtype::F32 { 0.0 } else { 2e-4 };
    let outcome = Outcome { tolerance: outcome.tolerance.max(rounding), ..outcome };
    let bytes = 2 * a.bytes() + b.bytes() + c.bytes();
    Ok(outcome.timed(bytes, 6 * (rows * width) as u64, rig.time(&launches, &counts)?))
}
