//! The gated delta rule: `kernels/gdn_chunk_prepare.cu` and `gdn_chunk_scan*.cu` for the chunks of a step, then
//! `gdn_recurrence.cu` for its generated tokens.

mod plan;

use super::begins_at;
use crate::kernel::{Count, Extent, Kernel, LaunchSpec, Rows};
use crate::{StepPointers, Target};
use bytemuck::{Pod, Zeroable};
use plan::ChunkPlan;
pub(super) use plan::RecurrencePlan;
use refrain_device::{DevicePtr, StepLimits};
use refrain_program::{Dtype, GdnShape};

/// `S <- e^decay S; delta = beta (v - S k); S <- S + delta k^T; out = S q`, for each value head.
#[derive(Clone, Copy, Debug)]
pub struct GdnScan {
    /// `[T, key_heads * key_head_dim]`, normalised and scaled.
    pub q: Rows,
    /// `[T, key_heads * key_head_dim]`, normalised; in the type of `q`, as are `v` and `out`.
    pub k: Rows,
    /// `[T, value_heads * value_head_dim]`.
    pub v: Rows,
    /// `[T, value_heads]` f32.
    pub beta: Rows,
    /// `[T, value_heads]` f32, at most 0: the logarithm of the decay.
    pub decay: Rows,
    /// `[slot, value_heads, value_head_dim, key_head_dim]` f32.
    pub state: DevicePtr,
    /// Heads.
    pub shape: GdnShape,
    /// Scratch memory, [`GdnScan::workspace_bytes`] of it.
    pub workspace: DevicePtr,
    /// `[T, value_heads * value_head_dim]`.
    pub out: Rows,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PrepareArguments {
    step: StepPointers,
    q: u64,
    k: u64,
    beta: u64,
    decay: u64,
    chunks: u64,
    q_stride: u32,
    k_stride: u32,
    beta_stride: u32,
    decay_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScanArguments {
    step: StepPointers,
    q: u64,
    k: u64,
    v: u64,
    chunks: u64,
    state: u64,
    out: u64,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    out_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RecurrenceArguments {
    step: StepPointers,
    q: u64,
    k: u64,
    v: u64,
    beta: u64,
    decay: u64,
    state: u64,
    out: u64,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    beta_stride: u32,
    decay_stride: u32,
    out_stride: u32,
}

/// Why these kernels can't scan heads of a shape with `activations` as the type of `q`; `None` when they can.
pub fn unsupported(shape: &GdnShape, activations: Dtype, target: &Target) -> Option<String> {
    let shared_bytes =
        |key_head_dim| ChunkPlan::new(&GdnShape { key_head_dim, ..*shape }, activations, target).shared_bytes();
    let (given, most) = (shape.key_head_dim, target.shared_bytes);
    (shared_bytes(given) > most).then(|| {
        let possible = (1..given).rev().find(|dim| shared_bytes(*dim) <= most).unwrap_or(0);
        format!(
            "linear_key_head_dim is {given}, the scan takes at most {possible} with the {most} bytes of shared memory \
             that a block has on {}",
            target.arch
        )
    })
}

impl GdnScan {
    /// Bytes of scratch memory for steps within `limits`, `activations` being the type of `q`.
    pub fn workspace_bytes(limits: &StepLimits, shape: &GdnShape, activations: Dtype, target: &Target) -> usize {
        let chunks = (limits.max_tokens / 64 + 2 * limits.max_segments).min(limits.max_tokens);
        let chunk_bytes = ChunkPlan::new(shape, activations, target).chunk_bytes();
        chunks.saturating_mul(shape.num_value_heads * chunk_bytes)
    }

    /// The launches.
    ///
    /// # Panics
    /// When the chunked scan is to use tensor cores (16-bit types, head dimensions that are multiples of 16, the key's
    /// at most 128) and a row of `q`, `k`, `v` or `out` doesn't begin at a multiple of 16 bytes.
    pub fn launches(&self, target: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        self.launches_of(target, step, false)
    }

    /// With `long`, segments of a single token are left out of the recurrence.
    pub(super) fn launches_of(&self, target: &Target, step: &StepPointers, long: bool) -> Vec<LaunchSpec> {
        let plan = ChunkPlan::new(&self.shape, self.q.dtype, target);
        if plan.tensor_cores {
            let aligned = [&self.q, &self.k, &self.v, &self.out].iter().all(|rows| begins_at(rows, 16));
            assert!(aligned, "rows of a GDN layer with heads of whole 16-byte units begin at multiples of 16 bytes");
        }
        vec![self.prepare(&plan, step), self.scan(&plan, step), self.recurrence(target, step, long)]
    }

    /// A kernel with the constants of the layer.
    fn kernel(&self, source: &'static str, entry: &'static str, threads: u32) -> Kernel {
        Kernel::new(source, entry, threads)
            .define_type("X_T", self.q.dtype)
            .define("KEY_HEADS", self.shape.num_key_heads)
            .define("VALUE_HEADS", self.shape.num_value_heads)
            .define("KEY_DIM", self.shape.key_head_dim)
    }

    fn prepare(&self, plan: &ChunkPlan, step: &StepPointers) -> LaunchSpec {
        let kernel = self
            .kernel("gdn_chunk_prepare.cu", "gdn_chunk_prepare", 256)
            .define_type("W_T", plan.matrices())
            .define("TENSOR_CORES", u32::from(plan.tensor_cores));
        let arguments = PrepareArguments {
            step: *step,
            q: self.q.base.0,
            k: self.k.base.0,
            beta: self.beta.base.0,
            decay: self.decay.base.0,
            chunks: self.workspace.0,
            q_stride: self.q.stride,
            k_stride: self.k.stride,
            beta_stride: self.beta.stride,
            decay_stride: self.decay.stride,
        };
        let heads = Extent::Fixed(self.shape.num_key_heads as u32);
        LaunchSpec::on_grid(kernel, [heads, Extent::one(Count::Chunks), Extent::Fixed(1)], &arguments)
    }

    fn scan(&self, plan: &ChunkPlan, step: &StepPointers) -> LaunchSpec {
        let (slice, shared_bytes) = (plan.slice(), plan.shared_bytes());
        let kernel = if plan.tensor_cores {
            self.kernel("gdn_chunk_scan_mma.cu", "gdn_chunk_scan_mma", 64 * plan.pairs)
                .define("PAIRS", plan.pairs)
                .define("STAGES", plan.stages)
        } else {
            self.kernel("gdn_chunk_scan.cu", "gdn_chunk_scan", 256).define("SLICE", slice)
        };
        let kernel = kernel
            .define_type("W_T", plan.matrices())
            .define("VALUE_DIM", self.shape.value_head_dim)
            .define("SHARED_BYTES", shared_bytes)
            .shared(shared_bytes);
        let arguments = ScanArguments {
            step: *step,
            q: self.q.base.0,
            k: self.k.base.0,
            v: self.v.base.0,
            chunks: self.workspace.0,
            state: self.state.0,
            out: self.out.base.0,
            q_stride: self.q.stride,
            k_stride: self.k.stride,
            v_stride: self.v.stride,
            out_stride: self.out.stride,
        };
        LaunchSpec::on_grid(kernel, self.grid(slice, Count::Scans), &arguments)
    }

    fn recurrence(&self, target: &Target, step: &StepPointers, long: bool) -> LaunchSpec {
        let vectors = [&self.q, &self.k].iter().all(|rows| begins_at(rows, 4 * rows.dtype.bytes()));
        let plan = RecurrencePlan::new(&self.shape, vectors, target);
        let kernel = self
            .kernel("gdn_recurrence.cu", "gdn_recurrence", RecurrencePlan::THREADS)
            .define("VALUE_DIM", self.shape.value_head_dim)
            .define("LANES", plan.lanes)
            .define("VECTOR", plan.vector)
            .define("ROWS", plan.rows);
        let (kernel, count) = match long {
            true => (kernel.define("LONG", 1), Count::LongRecurrent),
            false => (kernel, Count::Recurrent),
        };
        let arguments = RecurrenceArguments {
            step: *step,
            q: self.q.base.0,
            k: self.k.base.0,
            v: self.v.base.0,
            beta: self.beta.base.0,
            decay: self.decay.base.0,
            state: self.state.0,
            out: self.out.base.0,
            q_stride: self.q.stride,
            k_stride: self.k.stride,
            v_stride: self.v.stride,
            beta_stride: self.beta.stride,
            decay_stride: self.decay.stride,
            out_stride: self.out.stride,
        };
        LaunchSpec::on_grid(kernel, self.grid(plan.slice(), count), &arguments)
    }

    /// A block for each `slice` value columns of each value head of each thing counted.
    pub(super) fn grid(&self, slice: u32, count: Count) -> [Extent; 3] {
        let slices = (self.shape.value_head_dim as u32).div_ceil(slice);
        [Extent::Fixed(slices), Extent::Fixed(self.shape.num_value_heads as u32), Extent::one(count)]
    }
}
