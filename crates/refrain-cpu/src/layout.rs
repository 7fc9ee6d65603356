//! Where everything lies in the one arena of the backend, computed before anything is allocated.

use crate::kernels::attention::attention_scratch_floats;
use crate::kernels::gdn_scan::{gdn_scan_scratch_floats, slot_floats};
use crate::kernels::kv_cache::KvLayout;
use crate::{CpuOptions, linear, matrix};
use refrain_device::{Footprint, PoolSizes, StepLimits};
use refrain_program::{
    ActivationPlan, CacheDtype, Compiled, CompiledRange, Dtype, FEW_ROWS, GdnShape, Op, Program, Rows, StateKind,
    WeightKind, compile,
};

/// Everything in the arena begins at a multiple of a page, so that huge pages and streams don't overlap by accident.
const ALIGNMENT: usize = 4096;

/// Floats for the partial results of attention over a split context: enough for 16 sequences' worth of 64 splits.
const PARTIAL_FLOATS: usize = 1 << 20;

/// What one rotary table serves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) rotary_dim: usize,
    pub(crate) theta: f32,
}

/// Byte offsets in the arena.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Of each weight.
    pub(crate) weights: Vec<usize>,
    /// Of the activations.
    pub(crate) activations: usize,
    /// Of each activation, from [`Layout::activations`]: a plan for each program. One runs at a time.
    pub(crate) plans: Vec<ActivationPlan>,
    /// Of the product's rounded inputs.
    pub(crate) rounded: usize,
    /// Of the workers' scratch, and the floats of each.
    pub(crate) scratch: usize,
    pub(crate) scratch_floats: usize,
    /// Of the partial results of split attention.
    pub(crate) partials: usize,
    pub(crate) partial_floats: usize,
    /// The rotary tables with their offsets, `[max_tokens, rotary_dim]` f32 each.
    pub(crate) ropes: Vec<(Rope, usize)>,
    /// Of each state's pool.
    pub(crate) states: Vec<usize>,
    /// Bytes of it all.
    pub(crate) bytes: usize,
    /// The same by use.
    pub(crate) footprint: Footprint,
}

/// Bytes that the backend needs for `program`, by use; exact but for the rounding of each part to whole pages.
pub fn footprint(program: &Program, limits: &StepLimits, options: &CpuOptions) -> Footprint {
    Layout::new(&programs(program, options).0, limits, &PoolSizes { blocks: 0, slots: 0 }, options).footprint
}

/// What the passes do to `program`, for steps of any size; nothing without them.
pub fn compiled(program: &Program, options: &CpuOptions) -> Vec<CompiledRange> {
    programs(program, options).1
}

/// What is loaded of a program: the program itself and, with [`CpuOptions::passes`], the compiled one, with what the passes
/// have done for it.
pub(crate) fn programs(program: &Program, options: &CpuOptions) -> (Vec<Program>, Vec<CompiledRange>) {
    let mut programs = vec![program.clone()];
    // Our own products take what is fused to them for any number of rows.
    let compiled = options.passes.map(|passes| compile(program, &passes, FEW_ROWS));
    let ranges = compiled.map(|Compiled { program, applied }| {
        programs.push(program);
        CompiledRange { most_rows: u32::MAX, applied }
    });
    (programs, ranges.into_iter().collect())
}

/// Bytes of a weight as the backend keeps it.
pub(crate) fn weight_bytes(kind: &WeightKind, dtype: Dtype) -> usize {
    match *kind {
        WeightKind::Matrix { outputs, inputs } => matrix::packed_bytes(dtype, outputs, inputs),
        WeightKind::Vector { .. } | WeightKind::Convolution { .. } => kind.elements() * 4,
    }
}

/// The layout of an attention layer's cache.
pub(crate) fn kv_layout(kv_heads: usize, head_dim: usize, dtype: CacheDtype) -> KvLayout {
    KvLayout { kv_heads, head_dim, element: dtype.into() }
}

/// Bytes of one unit (block or slot) of a state.
pub(crate) fn state_unit_bytes(kind: &StateKind, dtype: CacheDtype) -> usize {
    match *kind {
        StateKind::KvCache { kv_heads, head_dim } => kv_layout(kv_heads, head_dim, dtype).block_bytes(),
        StateKind::GdnState { value_heads, key_head_dim, value_head_dim } => {
            let shape = GdnShape { num_key_heads: 1, num_value_heads: value_heads, key_head_dim, value_head_dim };
            slot_floats(&shape) * 4
        }
        StateKind::ConvState { channels, taps } => channels * (taps - 1) * 4,
    }
}

impl Layout {
    /// For programs that share their weights and states.
    pub(crate) fn new(programs: &[Program], limits: &StepLimits, pools: &PoolSizes, options: &CpuOptions) -> Self {
        let program = &programs[0];
        let mut end = 0usize;
        let mut place = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(ALIGNMENT);
            at
        };
        let mut footprint = Footprint::default();

        let weights =
            program.weights.iter().map(|weight| place(weight_bytes(&weight.kind, weight.dtype))).collect::<Vec<_>>();
        footprint.weights = place(0);

        let plan = |program: &Program| program.activation_plan(limits.max_tokens, limits.max_logit_rows);
        let plans: Vec<ActivationPlan> = programs.iter().map(plan).collect();
        let largest = plans.iter().map(|plan| plan.bytes).max().unwrap_or(0);
        let activations = place(largest);
        footprint.activations = largest.next_multiple_of(ALIGNMENT);

        let before = place(0);
        let (rounded_bytes, scratch_floats) = work_sizes(programs, limits);
        let rounded = place(rounded_bytes);
        let scratch = place(options.threads * scratch_floats * 4);
        let partial_floats =
            if program.nodes.iter().any(|node| matches!(node.op, Op::Attention { .. })) { PARTIAL_FLOATS } else { 0 };
        let partials = place(partial_floats * 4);
        let ropes = ropes(program)
            .into_iter()
            .map(|rope| (rope, place(limits.max_tokens * rope.rotary_dim * 4)))
            .collect::<Vec<_>>();
        footprint.workspace = place(0) - before;

        let states = program
            .states
            .iter()
            .map(|state| {
                let unit = state_unit_bytes(&state.kind, state.dtype);
                match state.kind {
                    StateKind::KvCache { .. } => {
                        footprint.kv_block += unit;
                        place(unit * pools.blocks)
                    }
                    StateKind::GdnState { .. } | StateKind::ConvState { .. } => {
                        footprint.gdn_slot += unit;
                        place(unit * pools.slots)
                    }
                }
            })
            .collect();
        let bytes = place(0);
        Self {
            weights,
            activations,
            plans,
            rounded,
            scratch,
            scratch_floats,
            partials,
            partial_floats,
            ropes,
            states,
            bytes,
            footprint,
        }
    }
}

/// The distinct rotary tables of a program.
fn ropes(program: &Program) -> Vec<Rope> {
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

/// Bytes for the rounded inputs of the largest product, and floats of scratch for one worker.
fn work_sizes(programs: &[Program], limits: &StepLimits) -> (usize, usize) {
    let program = &programs[0];
    let (mut rounded, mut scratch) = (0, 0);
    for node in programs.iter().flat_map(|program| &program.nodes) {
        scratch = scratch.max(match node.op {
            Op::FusedLinear { prologue, .. } => linear::scratch_floats(prologue.x().width),
            Op::Elementwise(_) => node.op.staged().iter().map(|view| view.width).sum(),
            _ => 0,
        });
    }
    for op in program.parts() {
        match &op {
            Op::Linear { x, out, .. } => {
                let rows = match program.tensor(out.tensor).rows {
                    Rows::Tokens => limits.max_tokens,
                    Rows::Logits => limits.max_logit_rows,
                };
                rounded = rounded.max(linear::workspace_bytes(rows, x.width));
            }
            Op::GdnScan { shape, .. } => scratch = scratch.max(gdn_scan_scratch_floats(shape)),
            Op::Attention { shape, .. } => scratch = scratch.max(attention_scratch_floats(shape)),
            _ => {}
        }
    }
    // Whole pages, so that two workers never share one.
    (rounded, (scratch * 4).next_multiple_of(ALIGNMENT) / 4)
}
