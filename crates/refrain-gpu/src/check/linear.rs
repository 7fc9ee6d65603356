//! Cases of the products: `gemv.cu`, `gemv_mma.cu`, `gemm.cu`, `gemm_mma.cu`.

mod bits;
mod fused;

use super::norm::dtype_name;
use super::operand::{Columns, Operand, one_of_each, some_rows, step_of, tolerance};
use super::{Buffer, Case, Outcome, Rig, Scale};
use crate::kernels::linear::{Around, Gemv, GemvPlan, Linear, Tile, Tiled};
use crate::{Count, LaunchSpec, StepPointers, Target};
use refrain_device::DeviceError;
use refrain_program::Dtype;

/// Types of `x`, the weight and `out`.
type Types = [Dtype; 3];

const BF16: Types = [Dtype::Bf16, Dtype::Bf16, Dtype::Bf16];
const LOGITS: Types = [Dtype::Bf16, Dtype::Bf16, Dtype::F32];
const F16: Types = [Dtype::F16, Dtype::F16, Dtype::F16];
const F32: Types = [Dtype::F32, Dtype::F32, Dtype::F32];
const F32_OF_BF16: Types = [Dtype::F32, Dtype::Bf16, Dtype::F32];
const BF16_OF_F32: Types = [Dtype::Bf16, Dtype::F32, Dtype::Bf16];

#[derive(Clone, Copy)]
struct Product {
    rows: usize,
    inputs: usize,
    outputs: usize,
    types: Types,
    /// How the columns of `x` and `out` lie in their buffers.
    columns: fn(usize) -> Columns,
    /// Whether it is timed with weights that no cache holds any more.
    cold: bool,
}

/// What computes it.
#[derive(Clone, Copy)]
enum Method {
    /// The plan for steps of up to so many rows.
    Gemv(u32),
    Plan(GemvPlan),
    /// The tile for so many rows.
    Tiled(u32),
    /// The tile of a range of steps that ends with so many rows.
    Range(u32),
}

impl Method {
    fn launches(self, linear: Linear, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let around = Around::default();
        match self {
            Method::Gemv(rows) => Gemv::choose(&linear, &around, target, rows).launches(target, step),
            Method::Plan(plan) => Gemv { linear, around, plan }.launches(target, step),
            Method::Tiled(rows) | Method::Range(rows) => {
                let end = if let Method::Range(end) = self { end } else { u32::MAX };
                let choice = Tile::choices(&linear, target, end).into_iter().find(|(most, _)| rows <= *most);
                Tiled { linear, tile: choice.expect("the last has no end").1 }.launches(target, step)
            }
        }
    }

    fn kernel(self) -> &'static str {
        match self {
            Method::Gemv(_) | Method::Plan(_) => "gemv",
            Method::Tiled(_) | Method::Range(_) => "gemm",
        }
    }
}

pub(super) fn cases(_: &Target, scale: Scale) -> Vec<Case> {
    let alone = match scale {
        Scale::Ragged => ragged(),
        Scale::Model => model(),
    };
    alone.into_iter().chain(fused::cases(scale)).collect()
}

fn ragged() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |rows, [outputs, inputs]: [usize; 2], types, columns: fn(usize) -> Columns, method| {
        cases.push(case(Product { rows, inputs, outputs, types, columns, cold: false }, method));
    };
    for types in [BF16, LOGITS, F16, F32, F32_OF_BF16, BF16_OF_F32] {
        // Fewer rows than there is room for, as many, and more: those take the weights again.
        add(1, [37, 136], types, Columns::among, Method::Gemv(1));
        add(3, [70, 64], types, Columns::among, Method::Gemv(4));
        add(13, [33, 200], types, Columns::all, Method::Gemv(8));
        // Rows that begin anywhere, and a number of inputs that nothing divides.
        add(2, [9, 67], types, Columns::askew, Method::Gemv(2));
        add(65, [37, 67], types, Columns::askew, Method::Tiled(65));
        add(67, [70, 200], types, Columns::among, Method::Tiled(67));
    }
    // Several loads along the columns, several units for a block, a number of outputs below a unit's.
    add(8, [130, 1160], BF16, Columns::among, Method::Gemv(8));
    add(1, [600, 1536], LOGITS, Columns::all, Method::Gemv(1));
    add(1, [3, 72], BF16, Columns::among, Method::Gemv(1));
    add(4, [1, 72], F32, Columns::among, Method::Gemv(4));
    add(1, [70, 1544], F32, Columns::among, Method::Gemv(1));
    // Every tile, with rows and columns that fill none.
    for rows in [16, 32, 64, 130] {
        add(rows + 3, [139, 104], BF16, Columns::among, Method::Tiled(rows as u32));
    }
    add(130, [140, 264], LOGITS, Columns::askew, Method::Tiled(130));
    add(3, [139, 1160], BF16, Columns::among, Method::Gemv(3));
    add(40, [139, 104], BF16, Columns::among, Method::Range(48));
    add(161, [139, 104], BF16, Columns::among, Method::Range(180));
    cases.extend(bits::cases(&[LOGITS, F32, BF16_OF_F32]));
    cases
}

/// `[outputs, inputs]` of Qwen3.5-4B: what enters a GDN layer, what enters an attention layer, what leaves both, gate
/// and up, down, and the vocabulary.
const SHAPES: [[usize; 2]; 6] =
    [[12352, 2560], [10240, 2560], [2560, 4096], [18432, 2560], [2560, 9216], [248_320, 2560]];

fn model() -> Vec<Case> {
    let product = |rows, [outputs, inputs]: [usize; 2]| {
        let types = if outputs == 248_320 { LOGITS } else { BF16 };
        Product { rows, inputs, outputs, types, columns: Columns::all, cold: true }
    };
    let mut cases = Vec::new();
    for shape in SHAPES {
        for rows in [1, 2, 4, 8] {
            cases.push(case(product(rows, shape), Method::Gemv(rows as u32)));
        }
    }
    for rows in [16, 32, 64, 8192] {
        cases.extend(SHAPES[..5].iter().map(|&shape| case(product(rows, shape), Method::Tiled(rows as u32))));
    }
    cases
}

/// Cases that time the shapes of a model at one row with several plans, to choose the constants of
/// [`GemvPlan::choose`] by. The vocabulary's is left out: it takes long to make, and its time is that of its bytes.
pub(super) fn plans(target: &Target) -> Vec<Case> {
    let fma = [(1, 5), (1, 10), (2, 5)];
    let fma = fma.map(|(outputs, depth)| GemvPlan::Fma { rows: 1, outputs, depth, staged: true, resident: 2 });
    let mut cases = Vec::new();
    for [outputs, inputs] in SHAPES[..5].iter().copied() {
        let product = Product { rows: 1, inputs, outputs, types: BF16, columns: Columns::all, cold: true };
        let mma = target.mma.then(|| mma_plans(inputs as u32)).into_iter().flatten();
        cases.extend(fma.into_iter().chain(mma).map(|plan| case(product, Method::Plan(plan))));
    }
    cases
}

fn mma_plans(inputs: u32) -> Vec<GemvPlan> {
    let slice = inputs.div_ceil(512);
    let mut plans = Vec::new();
    for (groups, depth) in (1..=4).flat_map(|groups| (8..=20).map(move |depth| (groups, depth))) {
        if (slice * groups).is_multiple_of(depth) {
            let resident = GemvPlan::resident(slice * groups, groups, depth);
            let plan = |blocks| GemvPlan::Mma { rows: 1, slice, groups, depth, resident, blocks };
            plans.extend((1..=resident).map(plan));
        }
    }
    plans
}

fn case(product: Product, method: Method) -> Case {
    let Product { rows, inputs, outputs, types: [x, weight, out], .. } = product;
    let types = format!("{} {} to {}", dtype_name(x), dtype_name(weight), dtype_name(out));
    let how = match method {
        Method::Gemv(rows) => format!("for {rows} rows"),
        Method::Plan(plan) => format!("{plan:?}"),
        Method::Tiled(rows) => format!("tile for {rows} rows"),
        Method::Range(rows) => format!("tile of a range to {rows} rows"),
    };
    let name = format!("{types}, {rows} x {inputs} by {outputs}, {how}");
    Case::new(method.kernel(), name, move |rig| run(rig, product, method))
}

/// More than a device caches, so that the times of a product are those of reading its weights from memory.
const COLD_BYTES: usize = 256 << 20;

fn run(rig: &Rig, product: Product, method: Method) -> Result<Outcome, DeviceError> {
    let Product { rows, inputs, outputs, types: [x_type, dtype, out_type], columns, cold } = product;
    let (x, x_values) = Operand::random(rig, rows, columns(inputs), x_type, 1.0)?;
    let weights = rig.random(outputs * inputs, 0.5, dtype);
    let out = Operand::poisoned(rig, rows, columns(outputs), out_type)?;
    let (_step, step, counts) = step_of(rig, vec![0; rows], vec![])?;
    let weight_bytes = weights.len() * dtype.bytes();
    let copies = if cold { COLD_BYTES.div_ceil(weight_bytes).min(16) } else { 1 };
    let copies = (0..copies).map(|_| rig.upload_as(&weights, dtype)).collect::<Result<Vec<Buffer>, _>>()?;
    let launches: Vec<LaunchSpec> = copies
        .iter()
        .flat_map(|weight| {
            let linear = Linear { count: Count::Tokens, x: x.view(), weight: weight.ptr(), dtype, out: out.view() };
            method.launches(linear, &rig.target, &step)
        })
        .collect();
    rig.launch(&launches[..1], &counts)?;

    let columns = if rows * outputs > 1 << 16 { outputs.div_ceil(256) } else { 1 };
    let sample = some_rows(rows).flat_map(|row| {
        let (x, weights) = (&x_values[row * inputs..][..inputs], &weights);
        one_of_each(outputs, columns, row).map(move |column| {
            let weight = &weights[column * inputs..][..inputs];
            let products = x.iter().zip(weight).map(|(&x, &weight)| f64::from(x) * f64::from(weight));
            (row, column, products.sum::<f64>())
        })
    });
    // Tensor cores cut off what they add, which shifts long sums a little towards zero.
    let truncated = x_type == dtype && dtype != Dtype::F32;
    let tolerance = if truncated { tolerance(out_type).max(5e-5) } else { tolerance(out_type) };
    let outcome = Outcome { tolerance, ..out.compare_some(rig, sample)? };
    let bytes = weight_bytes as u64 + x.bytes() + out.bytes();
    let seconds = rig.time(&launches, &counts)?.map(|seconds| seconds / copies.len() as f64);
    Ok(outcome.timed(bytes, 2 * (rows * inputs * outputs) as u64, seconds))
}
