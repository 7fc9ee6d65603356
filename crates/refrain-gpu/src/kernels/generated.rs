//! Kernels whose text is made when a model is loaded: chains of element-wise ops that no file of `kernels/` computes at
//! once. `kernels/elementwise.h` says how they divide their work.

use super::rows::{are_wide, row_count};
use crate::kernel::{Count, Extent, Kernel, LaunchSpec, Rows, dtype_define};
use crate::{StepPointers, Target};
use refrain_program::{Dtype, Elementwise, ElementwiseFunction, ElementwiseOperand, View};
use std::fmt::Write;

/// A tree of element-wise functions, evaluated in f32; results inside it are rounded to the types that they were staged in.
#[derive(Clone, Debug)]
pub struct Generated {
    /// What the rows are.
    pub count: Count,
    /// What is computed.
    pub root: Function,
    /// `[rows, width]`; may be an operand that has its type.
    pub out: Rows,
}

/// A function of two operands, and the type that its result is rounded to.
#[derive(Clone, Debug)]
pub struct Function {
    /// Which one.
    pub function: ElementwiseFunction,
    /// Its operands.
    pub operands: Box<[Operand; 2]>,
    /// Type of the result.
    pub dtype: Dtype,
}

/// An operand of a function.
#[derive(Clone, Debug)]
pub enum Operand {
    /// `[rows, width]`.
    Rows(Rows),
    /// The result of another function.
    Function(Function),
}

impl Function {
    /// The tree of an op, `rows` being where its views lie.
    pub fn of(tree: &Elementwise, rows: &dyn Fn(View) -> Rows) -> Function {
        let operand = |operand: &ElementwiseOperand| match operand {
            ElementwiseOperand::View(view) => Operand::Rows(rows(*view)),
            ElementwiseOperand::Result(inner) => Operand::Function(Function::of(inner, rows)),
        };
        let operands = Box::new([operand(&tree.a), operand(&tree.b)]);
        Function { function: tree.function, operands, dtype: rows(tree.out).dtype }
    }

    /// Its leaves, each once.
    fn leaves(&self, leaves: &mut Vec<Rows>) {
        for operand in self.operands.iter() {
            match operand {
                Operand::Rows(rows) if !leaves.contains(rows) => leaves.push(*rows),
                Operand::Rows(_) => {}
                Operand::Function(inner) => inner.leaves(leaves),
            }
        }
    }

    /// As an expression of the leaves, which are called `a0`, `a1`, ...; in kernels with roundings, for readers without.
    fn expression(&self, leaves: &[Rows], rounded: bool) -> String {
        let [a, b] = self.operands.each_ref().map(|operand| match operand {
            Operand::Rows(rows) => {
                let index = leaves.iter().position(|leaf| leaf == rows).expect("leaves are collected first");
                format!("a{index}")
            }
            Operand::Function(inner) => {
                let value = inner.expression(leaves, rounded);
                let dtype = dtype_define(inner.dtype);
                if rounded && inner.dtype != Dtype::F32 { format!("kx_rounded({value}, {dtype}())") } else { value }
            }
        });
        match self.function {
            ElementwiseFunction::Add => format!("({a} + {b})"),
            ElementwiseFunction::SigmoidGate => format!("({a} * kx_sigmoid({b}))"),
            ElementwiseFunction::SiluMul => format!("(kx_silu({a}) * {b})"),
        }
    }
}

/// Threads of a block, rows and lanes of its tile.
const THREADS: u32 = 256;
const TILE_ROWS: u32 = 8;
const TILE_LANES: u32 = 64;

impl Generated {
    /// One launch.
    ///
    /// # Panics
    /// When the operands don't agree.
    pub fn launches(&self, _: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let mut leaves = Vec::new();
        self.root.leaves(&mut leaves);
        assert!(leaves.iter().all(|leaf| leaf.width == self.out.width), "{leaves:?} to {:?}", self.out);
        let all: Vec<Rows> = leaves.iter().copied().chain([self.out]).collect();
        let vector = if are_wide(&all) { 8 } else { 1 };
        let kernel = Kernel::generated(self.text(&leaves), "generated", THREADS).define("VECTOR", vector);
        // The argument struct of the text: addresses, then strides and the width.
        let addresses = [row_count(step, self.count)].into_iter().chain(all.iter().map(|rows| rows.base.0));
        let mut arguments: Vec<u8> = addresses.flat_map(u64::to_le_bytes).collect();
        let numbers = all.iter().map(|rows| rows.stride).chain([self.out.width]);
        arguments.extend(numbers.flat_map(u32::to_le_bytes));
        arguments.resize(arguments.len().next_multiple_of(8), 0);
        let columns = Extent::Fixed(self.out.width.div_ceil(TILE_LANES * vector));
        let rows = Extent::Each { count: self.count, per: TILE_ROWS };
        vec![LaunchSpec { kernel, grid: [rows, columns, Extent::Fixed(1)], arguments }]
    }

    /// The text of the kernel. Its first line says what is computed, with the types of the leaves and of the result.
    fn text(&self, leaves: &[Rows]) -> String {
        let name = |rows: &Rows| dtype_define(rows.dtype);
        let types: Vec<&str> = leaves.iter().chain([&self.out]).map(name).collect();
        let numbered = |line: &dyn Fn(usize, &str) -> String| -> String {
            leaves.iter().enumerate().map(|(index, leaf)| line(index, name(leaf))).collect()
        };
        let pointers = numbered(&|index, dtype| format!("    const {dtype}* a{index};\n"));
        let strides = numbered(&|index, _| format!("a{index}_stride, "));
        let parameters: Vec<String> = (0..leaves.len()).map(|index| format!("f32 a{index}")).collect();
        let arrays = numbered(&|index, _| format!("    f32 a{index}[ROWS_EACH][VECTOR];\n"));
        let loads = numbered(&|index, _| {
            format!(
                "            kx_load_vector(a{index}[i], args.a{index} + row * args.a{index}_stride + at.column);\n"
            )
        });
        let values: Vec<String> = (0..leaves.len()).map(|index| format!("a{index}[i][j]")).collect();
        let mut text = String::new();
        let (shown, computed) = (self.root.expression(leaves, false), self.root.expression(leaves, true));
        let _ = write!(
            text,
            "// out = {shown} of {types}
#include \"elementwise.h\"
struct GeneratedArgs {{
    const u32* rows;
{pointers}    {out}* out;
    u32 {strides}out_stride, width;
}};
KX_DEV f32 function({parameters}) {{ return {computed}; }}
KX_KERNEL(generated, GeneratedArgs, THREADS) {{
    kx_let_next_start();
    const Place at = place();
    const u32 rows = *args.rows;
    kx_wait_for_previous();
    if (at.column >= args.width) return;
{arrays}    KX_UNROLL
    for (u32 i = 0; i < ROWS_EACH; i++) {{
        const u64 row = at.row + i * ROW_LANES;
        if (row < rows) {{
{loads}        }}
    }}
    KX_UNROLL
    for (u32 i = 0; i < ROWS_EACH; i++) {{
        const u64 row = at.row + i * ROW_LANES;
        if (row < rows) {{
            f32 out[VECTOR];
            KX_UNROLL
            for (u32 j = 0; j < VECTOR; j++) out[j] = function({values});
            kx_store_vector(args.out + row * args.out_stride + at.column, out);
        }}
    }}
}}
",
            types = types.join(" "),
            out = name(&self.out),
            parameters = parameters.join(", "),
            values = values.join(", "),
        );
        text
    }
}
