//! Where everything lies in the one range of device memory, computed before anything is allocated.

use crate::kernels::sample::SampleSpace;
use crate::lower::{Rope, Workspaces, ropes};
use crate::{StepLayout, Target};
use refrain_device::{BLOCK_TOKENS, Footprint, PoolSizes, StepLimits};
use refrain_program::{
    ActivationPlan, CompileOptions, Program, StateDef, StateKind, TensorId, WeightDef, WeightKind, compile_ranges,
};

/// Everything begins at a multiple of this: what matrix libraries and 16-byte accesses want, with room.
const ALIGNMENT: usize = 256;

/// Byte offsets in the arena.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Of each weight.
    pub weights: Vec<usize>,
    /// Of the frequencies of each rotary table.
    pub frequencies: Vec<(Rope, usize)>,
    /// Of the activations.
    pub activations: usize,
    /// Of each activation, from [`Layout::activations`].
    pub plan: ActivationPlan,
    /// Of the scratch of attention, of the scan, and of the library of products.
    pub attention_workspace: usize,
    pub scan_workspace: usize,
    pub gemm_workspace: usize,
    /// Of the scratch of sampling, and of its result.
    pub sample_workspace: usize,
    /// Of what a step has chosen, in that.
    pub sample_chosen: usize,
    /// Bytes of each.
    pub workspaces: Workspaces,
    /// Of the step block.
    pub step: usize,
    /// Its parts.
    pub step_layout: StepLayout,
    /// Of each state's pool.
    pub states: Vec<usize>,
    /// Bytes of it all.
    pub bytes: usize,
    /// The same by use.
    pub footprint: Footprint,
}

/// Bytes that the backend needs for `program`, also where it is compiled, by use.
pub fn footprint(
    program: &Program,
    compile: Option<&CompileOptions>,
    limits: &StepLimits,
    target: &Target,
) -> Footprint {
    let compiled = compile.map(|options| compile_ranges(program, options)).unwrap_or_default();
    let others: Vec<&Program> = compiled.iter().map(|(_, program)| program).collect();
    Layout::new_for(program, &others, limits, &PoolSizes { blocks: 0, slots: 0 }, target)[0].footprint
}

/// What a driver may take for the kernels of a model and of a library of products, and for itself beside them: an upper
/// bound, which is not known before they are loaded. Whoever loads them can compare what is in use then.
const CODE_BYTES: usize = 128 << 20;

/// Bytes of device memory to be kept for device code. The simulated GPU keeps its code on the host.
pub fn code_bytes(target: &Target) -> usize {
    if target.arch.starts_with("sim") { 0 } else { CODE_BYTES }
}

/// Bytes of a weight on the device: matrices as the program says, vectors and convolutions in f32.
pub(crate) fn weight_bytes(weight: &WeightDef) -> usize {
    let element = match weight.kind {
        WeightKind::Matrix { .. } => weight.dtype.bytes(),
        WeightKind::Vector { .. } | WeightKind::Convolution { .. } => 4,
    };
    weight.kind.elements() * element
}

/// Bytes of a state of one sequence. The window of a convolution has one entry more than the mathematics needs: see
/// `kernels/gdn_window.h`.
fn slot_bytes(state: &StateDef) -> usize {
    match state.kind {
        StateKind::ConvState { taps, .. } => state.unit_bytes() / (taps - 1).max(1) * taps,
        StateKind::GdnState { .. } | StateKind::KvCache { .. } => state.unit_bytes(),
    }
}

impl Layout {
    /// For one program.
    pub fn new(program: &Program, limits: &StepLimits, pools: &PoolSizes, target: &Target) -> Layout {
        Layout::new_for(program, &[], limits, pools, target).swap_remove(0)
    }

    /// For a program and others that were made of it, one for each. They differ in the plan of activations only: all of
    /// them use the same region.
    pub fn new_for(
        program: &Program,
        others: &[&Program],
        limits: &StepLimits,
        pools: &PoolSizes,
        target: &Target,
    ) -> Vec<Layout> {
        let programs = || [program].into_iter().chain(others.iter().copied());
        let mut end = 0usize;
        let mut place = |bytes: usize| {
            let at = end;
            end = end.saturating_add(bytes).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
            at
        };
        let mut footprint = Footprint::default();

        let weights: Vec<usize> = program.weights.iter().map(|weight| place(weight_bytes(weight))).collect();
        let frequencies = ropes(program).into_iter().map(|rope| (rope, place(rope.rotary_dim / 2 * 4))).collect();
        footprint.weights = place(0);

        let plans: Vec<ActivationPlan> =
            programs().map(|program| program.activation_plan(limits.max_tokens, limits.max_logit_rows)).collect();
        let activations = place(plans.iter().map(|plan| plan.bytes).max().unwrap_or(0));
        footprint.activations = place(0) - activations;

        let all = programs().map(|program| Workspaces::of(program, limits, target));
        let workspaces = all.reduce(Workspaces::or).unwrap_or_default();
        let attention_workspace = place(workspaces.attention);
        let scan_workspace = place(workspaces.scan);
        let gemm_workspace = place(workspaces.gemm);
        let sample_workspace = place(workspaces.sample);
        let step_layout = StepLayout::new(limits);
        let step = place(step_layout.bytes);
        // And what the pools of states may be shifted by, so that the sum of all uses is never less than the whole.
        footprint.workspace = place(0) - attention_workspace + program.states.len() * ALIGNMENT;

        let states = program
            .states
            .iter()
            .map(|state| match state.kind {
                StateKind::KvCache { .. } => {
                    let unit = state.unit_bytes() * BLOCK_TOKENS;
                    footprint.kv_block += unit;
                    place(unit.saturating_mul(pools.blocks))
                }
                StateKind::GdnState { .. } | StateKind::ConvState { .. } => {
                    let unit = slot_bytes(state);
                    footprint.gdn_slot += unit;
                    place(unit.saturating_mul(pools.slots))
                }
            })
            .collect();
        let bytes = place(0);
        let layout = Layout {
            weights,
            frequencies,
            activations,
            plan: ActivationPlan { offsets: Vec::new(), bytes: 0 },
            attention_workspace,
            scan_workspace,
            gemm_workspace,
            sample_workspace,
            sample_chosen: sample_workspace + SampleSpace::new(limits, program.vocab_size).chosen(),
            workspaces,
            step,
            step_layout,
            states,
            bytes,
            footprint,
        };
        plans.into_iter().map(|plan| Layout { plan, ..layout.clone() }).collect()
    }

    /// Offset of an activation.
    pub fn tensor(&self, id: TensorId) -> usize {
        self.activations + self.plan.offsets[id.0]
    }
}
