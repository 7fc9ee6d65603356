//! Where everything lies that an op names.

use crate::kernels::kv_cache::KvLayout;
use crate::kernels::{Rows, Shared};
use crate::layout::{Layout, Rope, kv_layout};
use crate::load::Weight;
use crate::matrix::Matrix;
use refrain_device::Arena;
use refrain_program::{ActivationPlan, Program, StateId, StateKind, TensorId, View, WeightId};

/// Finds what an op names.
pub(super) struct Places<'a> {
    pub(super) program: &'a Program,
    /// Where the activations of this program lie.
    pub(super) plan: &'a ActivationPlan,
    pub(super) layout: &'a Layout,
    pub(super) arena: &'a Arena,
    pub(super) weights: &'a [Weight],
}

impl<'a> Places<'a> {
    pub(super) fn at<T>(&self, offset: usize) -> *mut T {
        self.arena.base().wrapping_add(offset).cast()
    }

    pub(super) fn rows(&self, view: View) -> Rows {
        let data = self.at::<f32>(self.layout.activations + self.plan.offsets[view.tensor.0]).wrapping_add(view.column);
        Rows { data, stride: self.width(view.tensor) }
    }

    pub(super) fn width(&self, tensor: TensorId) -> usize {
        self.program.tensor(tensor).width
    }

    pub(super) fn floats(&self, id: WeightId) -> &'a [f32] {
        match self.weights[id.0] {
            // SAFETY: the arena is borrowed for `'a`.
            Weight::Floats(floats) => unsafe { floats.slice() },
            Weight::Matrix(_) => unreachable!("a validated program reads matrices as matrices"),
        }
    }

    pub(super) fn matrix(&self, id: WeightId) -> Matrix {
        match self.weights[id.0] {
            Weight::Matrix(matrix) => matrix,
            Weight::Floats(_) => unreachable!("a validated program reads vectors as vectors"),
        }
    }

    pub(super) fn state<T>(&self, id: StateId) -> Shared<T> {
        Shared(self.at(self.layout.states[id.0]))
    }

    pub(super) fn kv_layout(&self, id: StateId) -> KvLayout {
        let state = self.program.state(id);
        match state.kind {
            StateKind::KvCache { kv_heads, head_dim } => kv_layout(kv_heads, head_dim, state.dtype),
            _ => unreachable!("a validated program attends over a KV cache"),
        }
    }

    /// The rotary table of that kind: a row for each token of the step.
    pub(super) fn rope(&self, rotary_dim: usize, theta: f32) -> *const f32 {
        let of = |rope: &Rope| rope.rotary_dim == rotary_dim && rope.theta == theta;
        let found = self.layout.ropes.iter().find(|(rope, _)| of(rope));
        self.at(found.expect("every rotary op has its table").1)
    }

    /// The scratch memory of one worker.
    pub(super) fn scratch(&self, worker: usize) -> *mut f32 {
        self.at::<f32>(self.layout.scratch).wrapping_add(worker * self.layout.scratch_floats)
    }
}
