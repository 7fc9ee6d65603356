//! From ops to launches: which kernel runs an op, on which addresses, for how many rows.

mod fused;

use crate::kernel::{Count, Kernel, LaunchSpec, Rows};
use crate::kernels::attention::Attention;
use crate::kernels::elementwise::{Add, Embed, GatherRows, SigmoidGate, SiluMul};
use crate::kernels::gdn::{GatedRmsNorm, GdnConv, GdnGates, GdnScan, L2Norm};
use crate::kernels::kv_append::KvAppend;
use crate::kernels::linear::{self, Linear};
use crate::kernels::norm::RmsNorm;
use crate::kernels::qk_norm_rope::{self, QkNormRope};
use crate::kernels::sample::{Sample, SampleSpace};
use crate::layout::Layout;
use crate::ops::Recorded;
use crate::{StepPointers, Target};
use refrain_device::{DevicePtr, GemmShape, GemmType, StepLimits};
use refrain_program::{
    AttentionShape, CacheDtype, CompileOptions, Dtype, Op, Program, Rows as RowCount, StateId, View, WeightId,
    compile_ranges,
};

/// What one rotary table serves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rope {
    pub rotary_dim: usize,
    pub theta: f32,
}

impl Rope {
    /// Radians by which a position turns each pair, `[rotary_dim / 2]`.
    pub fn frequencies(&self) -> Vec<f32> {
        qk_norm_rope::frequencies(self.rotary_dim, self.theta)
    }
}

/// The distinct rotary tables of a program.
pub(crate) fn ropes(program: &Program) -> Vec<Rope> {
    let mut ropes = Vec::new();
    for op in program.parts() {
        if let Op::QkNormRope { rotary_dim, theta, .. } = op {
            let rope = Rope { rotary_dim, theta };
            if !ropes.contains(&rope) {
                ropes.push(rope);
            }
        }
    }
    ropes
}

/// Bytes of scratch memory of each kind of op. They don't share: some hold counters that must stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Workspaces {
    pub attention: usize,
    pub scan: usize,
    pub gemm: usize,
    pub sample: usize,
}

/// What the vendor's library of products may use; its fastest algorithms for Hopper want that much.
const GEMM_WORKSPACE: usize = 32 << 20;

impl Workspaces {
    /// The larger of each.
    pub fn or(self, other: Workspaces) -> Workspaces {
        Workspaces {
            attention: self.attention.max(other.attention),
            scan: self.scan.max(other.scan),
            gemm: self.gemm.max(other.gemm),
            sample: self.sample.max(other.sample),
        }
    }

    /// For steps within `limits`.
    pub fn of(program: &Program, limits: &StepLimits, target: &Target) -> Workspaces {
        let sample = SampleSpace::new(limits, program.vocab_size).bytes;
        let mut bytes = Workspaces { gemm: GEMM_WORKSPACE, sample, ..Workspaces::default() };
        for op in program.parts() {
            match &op {
                Op::Attention { shape, q, .. } => {
                    let dtype = program.tensor(q.tensor).dtype;
                    bytes.attention = bytes.attention.max(Attention::workspace_bytes(limits, shape, dtype, target));
                }
                Op::GdnScan { shape, q, .. } => {
                    let dtype = program.tensor(q.tensor).dtype;
                    bytes.scan = bytes.scan.max(GdnScan::workspace_bytes(limits, shape, dtype, target));
                }
                _ => {}
            }
        }
        bytes
    }
}

/// Something to enqueue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// A kernel of our own.
    Launch(LaunchSpec),
    /// A product by the vendor's library; `shape.m` is the count of the step.
    Gemm { shape: GemmShape, x: DevicePtr, weight: DevicePtr, out: DevicePtr },
}

/// An op as what is enqueued for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lowered {
    /// What the ranges count.
    pub count: Count,
    /// In which recordings it can be.
    pub recorded: Recorded,
    /// Up to how many rows, and what is done then; ascending, the last has no end.
    pub variants: Vec<(u32, Vec<Action>)>,
}

impl Lowered {
    /// An op whose grids depend on its rows only.
    fn new(count: Count, variants: Vec<(u32, Vec<Action>)>) -> Lowered {
        let recorded = if count == Count::Tokens { Recorded::Always } else { Recorded::WithLogits };
        Lowered { count, recorded, variants }
    }

    /// The same for any number of rows.
    fn any(count: Count, launches: Vec<LaunchSpec>) -> Lowered {
        Lowered::new(count, vec![(u32::MAX, launches.into_iter().map(Action::Launch).collect())])
    }

    /// In which recordings an op can be: the grids of some count pieces of sequences.
    fn recorded_as(self, op: &Op) -> Lowered {
        match op {
            Op::Attention { .. } | Op::GdnScan { .. } | Op::GdnStep { .. } => {
                Lowered { recorded: Recorded::OfOneKind, ..self }
            }
            _ => self,
        }
    }
}

/// Where everything that ops name lies.
pub(crate) struct Places<'a> {
    pub program: &'a Program,
    pub layout: &'a Layout,
    pub base: DevicePtr,
    pub target: &'a Target,
    /// Whether there is a library of products.
    pub gemm: bool,
    /// Rows of the largest step that the program is run for.
    pub most_rows: u32,
}

impl Places<'_> {
    fn step(&self) -> StepPointers {
        self.layout.step_layout.pointers(self.base.offset(self.layout.step))
    }

    fn rows(&self, view: View) -> Rows {
        let tensor = self.program.tensor(view.tensor);
        let offset = self.layout.tensor(view.tensor) + view.column * tensor.dtype.bytes();
        Rows {
            base: self.base.offset(offset),
            stride: tensor.width as u32,
            width: view.width as u32,
            dtype: tensor.dtype,
        }
    }

    fn count(&self, view: View) -> Count {
        match self.program.tensor(view.tensor).rows {
            RowCount::Tokens => Count::Tokens,
            RowCount::Logits => Count::LogitRows,
        }
    }

    fn weight(&self, id: WeightId) -> DevicePtr {
        self.base.offset(self.layout.weights[id.0])
    }

    fn weight_dtype(&self, id: WeightId) -> Dtype {
        self.program.weight(id).dtype
    }

    fn state(&self, id: StateId) -> DevicePtr {
        self.base.offset(self.layout.states[id.0])
    }

    fn state_dtype(&self, id: StateId) -> CacheDtype {
        self.program.state(id).dtype
    }

    fn frequencies(&self, rope: Rope) -> DevicePtr {
        let found = self.layout.frequencies.iter().find(|(known, _)| *known == rope);
        self.base.offset(found.expect("every rotary op has its table").1)
    }

    /// All ops of the program.
    pub fn lower(&self) -> Vec<Lowered> {
        self.program.nodes.iter().map(|node| self.op(&node.op)).collect()
    }

    /// One op. A fused op without kernels of its own is lowered as its parts are.
    fn op(&self, op: &Op) -> Lowered {
        if let Some(fused) = self.fused(op) {
            return fused;
        }
        let parts: Vec<Lowered> = op.parts().iter().map(|part| self.part(part)).collect();
        one_after_another(parts)
    }

    fn part(&self, op: &Op) -> Lowered {
        let (target, step) = (self.target, &self.step());
        let count = op.writes().first().map_or(Count::Tokens, |out| self.count(*out));
        let r = |view: View| self.rows(view);
        let launches = match *op {
            Op::Linear { x, weight, out } => return self.linear(x, weight, out),
            Op::Embed { table, out } => {
                let (dtype, table) = (self.weight_dtype(table), self.weight(table));
                let chosen = self.base.offset(self.layout.sample_chosen);
                Embed { table, dtype, chosen, out: r(out) }.launches(target, step)
            }
            Op::RmsNorm { x, weight, eps, out } => {
                RmsNorm { count, x: r(x), weight: self.weight(weight), eps, out: r(out) }.launches(target, step)
            }
            Op::Add { a, b, out } => Add { count, a: r(a), b: r(b), out: r(out) }.launches(target, step),
            Op::SigmoidGate { x, gate, out } => {
                SigmoidGate { count, x: r(x), gate: r(gate), out: r(out) }.launches(target, step)
            }
            Op::SiluMul { gate, up, out } => {
                SiluMul { count, gate: r(gate), up: r(up), out: r(out) }.launches(target, step)
            }
            Op::GatherRows { x, out } => GatherRows { x: r(x), out: r(out) }.launches(target, step),
            Op::GdnConv { x, weight, state, kernel, out } => {
                let (weight, state) = (self.weight(weight), self.state(state));
                GdnConv { x: r(x), weight, state, taps: kernel as u32, out: r(out) }.launches(target, step)
            }
            Op::L2Norm { x, heads, scaled, scale, eps, out } => {
                let (heads, scaled) = (heads as u32, scaled as u32);
                L2Norm { x: r(x), heads, scaled, scale, eps, out: r(out) }.launches(target, step)
            }
            Op::GdnGates { b, a, a_log, dt_bias, beta, decay } => {
                let (a_log, dt_bias) = (self.weight(a_log), self.weight(dt_bias));
                GdnGates { b: r(b), a: r(a), a_log, dt_bias, beta: r(beta), decay: r(decay) }.launches(target, step)
            }
            Op::GdnScan { q, k, v, beta, decay, state, shape, out } => GdnScan {
                q: r(q),
                k: r(k),
                v: r(v),
                beta: r(beta),
                decay: r(decay),
                state: self.state(state),
                shape,
                workspace: self.base.offset(self.layout.scan_workspace),
                out: r(out),
            }
            .launches(target, step),
            Op::GatedRmsNorm { x, gate, weight, heads, eps, out } => {
                let (weight, heads) = (self.weight(weight), heads as u32);
                GatedRmsNorm { x: r(x), gate: r(gate), weight, heads, eps, out: r(out) }.launches(target, step)
            }
            Op::QkNormRope { x, weight, heads, rotary_dim, theta, eps, out } => {
                let frequencies = self.frequencies(Rope { rotary_dim, theta });
                let (weight, heads, rotary_dim) = (self.weight(weight), heads as u32, rotary_dim as u32);
                QkNormRope { x: r(x), weight, frequencies, heads, rotary_dim, eps, out: r(out) }.launches(target, step)
            }
            Op::KvAppend { k, v, state, shape } => {
                let (cache, dtype) = (self.state(state), self.state_dtype(state));
                KvAppend { k: r(k), v: r(v), cache, dtype, shape }.launches(target, step)
            }
            Op::Attention { q, state, shape, out, .. } => self.attention(q, state, shape, out).launches(target, step),
            Op::AddRmsNorm { .. }
            | Op::FusedLinear { .. }
            | Op::QkNormRopeAppend(_)
            | Op::GdnPrepare(_)
            | Op::GdnStep { .. }
            | Op::Elementwise(_) => unreachable!("no part is fused"),
        };
        Lowered::any(count, launches).recorded_as(op)
    }

    fn attention(&self, q: View, state: StateId, shape: AttentionShape, out: View) -> Attention {
        let (cache, dtype) = (self.state(state), self.state_dtype(state));
        let workspace = self.base.offset(self.layout.attention_workspace);
        Attention { q: self.rows(q), cache, dtype, shape, workspace, gate: None, out: self.rows(out) }
    }

    /// The choice of tokens from the logits.
    pub fn sample(&self, limits: &StepLimits) -> Sample {
        Sample {
            logits: self.base.offset(self.layout.tensor(self.program.logits.tensor)),
            vocab: self.program.vocab_size,
            workspace: self.base.offset(self.layout.sample_workspace),
            space: SampleSpace::new(limits, self.program.vocab_size),
        }
    }

    /// Its launches, which follow the ops in steps that want tokens.
    pub fn lower_sampling(&self, limits: &StepLimits) -> Lowered {
        Lowered::any(Count::Sampled, self.sample(limits).launches(&self.step()))
    }

    /// A product: a kernel of our own for few rows, the vendor's library for many, where it has one for these types.
    fn linear(&self, x: View, weight: WeightId, out: View) -> Lowered {
        let (count, dtype) = (self.count(out), self.weight_dtype(weight));
        let operands = Linear { count, x: self.rows(x), weight: self.weight(weight), dtype, out: self.rows(out) };
        let library = self.gemm.then(|| gemm_shape(&operands)).flatten();
        let variants = linear::variants(&operands, self.target, &self.step(), library.is_some(), self.most_rows);
        let mut variants: Vec<(u32, Vec<Action>)> = variants
            .into_iter()
            .map(|(most, launches)| (most, launches.into_iter().map(Action::Launch).collect()))
            .collect();
        if let Some(shape) = library {
            let Linear { x, weight, out, .. } = operands;
            variants.push((u32::MAX, vec![Action::Gemm { shape, x: x.base, weight, out: out.base }]));
        }
        Lowered::new(count, variants)
    }
}

/// What is enqueued for several ops of the same rows: the ranges of rows are cut wherever one of theirs ends.
fn one_after_another(ops: Vec<Lowered>) -> Lowered {
    let count = ops[0].count;
    let mut ends: Vec<u32> = ops.iter().flat_map(|op| op.variants.iter().map(|(most, _)| *most)).collect();
    ends.sort_unstable();
    ends.dedup();
    let actions = |end: u32| -> Vec<Action> {
        let of = |op: &Lowered| {
            let found = op.variants.iter().find(|(most, _)| end <= *most);
            found.expect("the last range has no end").1.clone()
        };
        ops.iter().flat_map(of).collect()
    };
    let recorded =
        if ops.iter().any(|op| op.recorded == Recorded::OfOneKind) { Recorded::OfOneKind } else { ops[0].recorded };
    Lowered { recorded, ..Lowered::new(count, ends.into_iter().map(|end| (end, actions(end))).collect()) }
}

/// The shape of a product for the library; `None` for types that libraries don't mix.
fn gemm_shape(linear: &Linear) -> Option<GemmShape> {
    let input = gemm_type(linear.x.dtype);
    let output = gemm_type(linear.out.dtype);
    (linear.dtype == linear.x.dtype && (output == input || output == GemmType::F32)).then_some(GemmShape {
        m: 0,
        n: linear.out.width as usize,
        k: linear.x.width as usize,
        x_stride: linear.x.stride as usize,
        out_stride: linear.out.stride as usize,
        input,
        output,
    })
}

fn gemm_type(dtype: Dtype) -> GemmType {
    match dtype {
        Dtype::F32 => GemmType::F32,
        Dtype::Bf16 => GemmType::Bf16,
        Dtype::F16 => GemmType::F16,
    }
}

/// The distinct kernels of all launches.
pub(crate) fn kernels<'a>(ops: impl IntoIterator<Item = &'a Lowered>) -> Vec<Kernel> {
    let actions = ops.into_iter().flat_map(|op| &op.variants).flat_map(|(_, actions)| actions);
    let mut kernels: Vec<Kernel> = actions
        .filter_map(|action| match action {
            Action::Launch(spec) => Some(spec.kernel.clone()),
            Action::Gemm { .. } => None,
        })
        .collect();
    kernels.sort();
    kernels.dedup();
    kernels
}

/// The kernels that a program needs on a target for steps within limits, and what is compiled of it where it is, for packs
/// made ahead.
pub fn required_kernels(
    program: &Program,
    compile: Option<&CompileOptions>,
    target: &Target,
    limits: &StepLimits,
    gemm: bool,
) -> Vec<Kernel> {
    let pools = refrain_device::PoolSizes { blocks: 1, slots: 1 };
    let compiled = compile.map(|options| compile_ranges(program, options)).unwrap_or_default();
    let mut ops = Vec::new();
    let ranges = compiled.iter().map(|(range, program)| (program, range.most_rows));
    for (program, most_rows) in [(program, u32::MAX)].into_iter().chain(ranges) {
        let layout = Layout::new(program, limits, &pools, target);
        let places = Places { program, layout: &layout, base: DevicePtr(0), target, gemm, most_rows };
        ops.extend(places.lower());
        ops.push(places.lower_sampling(limits));
    }
    kernels(&ops)
}
