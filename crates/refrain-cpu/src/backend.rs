//! The backend itself: walks through the program, op by op, and runs each on all threads.

use crate::kernels::attention::{Attention, AttentionPlan, PlanLimits, attention, attention_merge};
use crate::kernels::elementwise::{self, GdnGates, Pairwise};
use crate::kernels::gdn_conv::{GdnConv, gdn_conv};
use crate::kernels::gdn_scan::{GdnScan, gdn_scan, slot_floats};
use crate::kernels::kv_cache::{KvAppend, kv_append};
use crate::kernels::norm::{self, GatedRmsNorm, L2Norm, QkNormRope, RmsNorm, fill_rope};
use crate::kernels::{Rows, Shared};
use crate::layout::{Layout, kv_layout};
use crate::linear::{self, Product};
use crate::load::{Weight, load_weights};
use crate::matrix::Matrix;
use crate::pool::Pool;
use crate::{Isa, Precision, SimdLevel};
use refrain_device::{
    Arena, BLOCK_TOKENS, Backend, Cell, DeviceError, DeviceInfo, PoolSizes, Step, StepLimits, StepOutput,
};
use refrain_program::{AttentionShape, Op, Program, StateId, StateKind, TensorId, View, WeightId};
use std::ops::Range;

/// How the backend computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Compute threads, at least 1.
    pub threads: usize,
    /// Arithmetic of the matrix products.
    pub precision: Precision,
    /// Instruction set; `None` is the best there is.
    pub isa: Option<Isa>,
}

/// A program with its weights, ready to execute steps on the processor's cores.
pub struct CpuBackend {
    program: Program,
    limits: StepLimits,
    pools: PoolSizes,
    info: DeviceInfo,
    isa: Isa,
    precision: Precision,
    layout: Layout,
    arena: Arena,
    weights: Vec<Weight>,
    pool: Pool,
    /// One plan for each distinct shape of attention, renewed every step.
    plans: Vec<(AttentionShape, AttentionPlan)>,
    /// Pieces of segments, renewed every step.
    pieces: Vec<Piece>,
    /// `0, 1, 2, ...`: row `t` of the step uses row `t` of the rotary tables.
    identity: Vec<u32>,
    /// Logit rows of the step that has begun.
    begun: Option<usize>,
}

/// Some consecutive tokens of one segment.
#[derive(Clone, Copy, Debug)]
struct Piece {
    segment: usize,
    first: usize,
    len: usize,
}

// Two crates that don't know each other name the same number.
const _: () = assert!(refrain_program::SCAN_CHUNK == refrain_device::SCAN_CHUNK);

/// Tokens of a piece.
const PIECE_TOKENS: usize = 64;

/// Elements that are worth handing to another thread.
const ITEM_ELEMENTS: usize = 16 * 1024;

impl CpuBackend {
    /// Plans the memory, packs the weights and starts the threads.
    ///
    /// # Errors
    /// [`DeviceError`] when a weight is missing or misshapen, memory can't be had, or the processor lacks
    /// [`CpuOptions::isa`].
    pub fn load(
        program: &Program,
        weights: &dyn refrain_program::WeightSource,
        limits: StepLimits,
        pools: PoolSizes,
        options: &CpuOptions,
    ) -> Result<Self, DeviceError> {
        let unsupported = |why: String| DeviceError::Unsupported { device: "cpu", why };
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if isa > Isa::detect() {
            return Err(unsupported(format!("it has no {isa}; the best it has is {}", Isa::detect())));
        }
        let options = CpuOptions { threads: options.threads.max(1), ..*options };
        let mut pool = Pool::new(options.threads)
            .map_err(|error| unsupported(format!("can't start {} threads: {error}", options.threads)))?;
        let layout = Layout::new(program, &limits, &pools, &options);
        let arena = Arena::new(layout.bytes, "weights, activations and state pools")?;
        let weights = load_weights(program, weights, &layout, &arena, &mut pool)?;
        let mut plans: Vec<(AttentionShape, AttentionPlan)> = Vec::new();
        for node in &program.nodes {
            if let Op::Attention { shape, .. } = node.op
                && !plans.iter().any(|(known, _)| *known == shape)
            {
                plans.push((shape, AttentionPlan::default()));
            }
        }
        let arithmetic = linear::describe(isa, options.precision, program);
        let threads = options.threads;
        Ok(Self {
            info: DeviceInfo {
                kind: "cpu",
                name: processor_name(),
                compute: format!("{arithmetic}, {threads} thread{}", if threads == 1 { "" } else { "s" }),
            },
            program: program.clone(),
            limits,
            pools,
            isa,
            precision: options.precision,
            layout,
            arena,
            weights,
            pool,
            plans,
            pieces: Vec::with_capacity(limits.max_tokens / PIECE_TOKENS + limits.max_segments),
            identity: (0..limits.max_tokens as u32).collect(),
            begun: None,
        })
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    /// Runs the step: nothing goes on here while the caller does something else.
    fn begin(&mut self, step: &Step, _: Cell) -> Result<(), DeviceError> {
        step.validate(&self.limits, &self.pools, self.program.vocab_size)?;
        self.prepare(step);
        let (places, run) = (
            Places { program: &self.program, layout: &self.layout, arena: &self.arena, weights: &self.weights },
            Run {
                step,
                isa: self.isa,
                level: self.isa.simd(),
                precision: self.precision,
                plans: &self.plans,
                pieces: &self.pieces,
                identity: &self.identity,
            },
        );
        for node in &self.program.nodes {
            // SAFETY: the program was validated when it was built and the step just now, so every view, weight and
            // state that an op names lies in the arena; ops run one after another.
            unsafe { run.op(&mut self.pool, &places, &node.op) };
        }
        self.begun = Some(step.logit_rows.len());
        Ok(())
    }

    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        let logit_rows = self.begun.take().expect("a step has begun");
        let (program, weights) = (&self.program, &self.weights);
        let places = Places { program, layout: &self.layout, arena: &self.arena, weights };
        let logits = places.rows(self.program.logits);
        let width = self.program.logits.width;
        // SAFETY: the logits are `[S, vocab]` without gaps, and nobody else touches the arena before the next step.
        let logits = unsafe { std::slice::from_raw_parts_mut(logits.data, logit_rows * width) };
        Ok(StepOutput::Logits(logits))
    }
}

impl CpuBackend {
    /// Everything that depends on the step but not on the layer.
    fn prepare(&mut self, step: &Step) {
        let limits = PlanLimits { workers: self.pool.threads(), partial_floats: self.layout.partial_floats };
        for (shape, plan) in &mut self.plans {
            plan.plan(&step.segments, shape, limits);
        }
        self.pieces.clear();
        for (index, segment) in step.segments.iter().enumerate() {
            let len = segment.len as usize;
            self.pieces.extend((0..len).step_by(PIECE_TOKENS).map(|first| Piece {
                segment: index,
                first,
                len: PIECE_TOKENS.min(len - first),
            }));
        }
        for &(rope, offset) in &self.layout.ropes {
            let (base, pieces, width) = (Shared(self.arena.base().wrapping_add(offset)), &self.pieces, rope.rotary_dim);
            self.pool.run(pieces.len(), &|item, _| {
                let piece = pieces[item];
                let segment = &step.segments[piece.segment];
                let row = segment.row as usize + piece.first;
                let position = segment.position as usize + piece.first;
                // SAFETY: the table has a row for every token of the largest step; pieces don't overlap.
                let table = unsafe {
                    let first = { base }.0.cast::<f32>().add(row * width);
                    std::slice::from_raw_parts_mut(first, piece.len * width)
                };
                fill_rope(position..position + piece.len, rope.rotary_dim, rope.theta, table);
            });
        }
    }
}

/// Finds what an op names.
struct Places<'a> {
    program: &'a Program,
    layout: &'a Layout,
    arena: &'a Arena,
    weights: &'a [Weight],
}

impl<'a> Places<'a> {
    fn at<T>(&self, offset: usize) -> *mut T {
        self.arena.base().wrapping_add(offset).cast()
    }

    fn rows(&self, view: View) -> Rows {
        let data = self.at::<f32>(self.layout.tensor(view.tensor)).wrapping_add(view.column);
        Rows { data, stride: self.width(view.tensor) }
    }

    fn width(&self, tensor: TensorId) -> usize {
        self.program.tensor(tensor).width
    }

    fn floats(&self, id: WeightId) -> &'a [f32] {
        match self.weights[id.0] {
            // SAFETY: the arena is borrowed for `'a`.
            Weight::Floats(floats) => unsafe { floats.slice() },
            Weight::Matrix(_) => unreachable!("a validated program reads matrices as matrices"),
        }
    }

    fn matrix(&self, id: WeightId) -> Matrix {
        match self.weights[id.0] {
            Weight::Matrix(matrix) => matrix,
            Weight::Floats(_) => unreachable!("a validated program reads vectors as vectors"),
        }
    }

    fn state<T>(&self, id: StateId) -> Shared<T> {
        Shared(self.at(self.layout.states[id.0]))
    }

    fn kv_layout(&self, id: StateId) -> crate::kernels::kv_cache::KvLayout {
        let state = self.program.state(id);
        match state.kind {
            StateKind::KvCache { kv_heads, head_dim } => kv_layout(kv_heads, head_dim, state.dtype),
            _ => unreachable!("a validated program attends over a KV cache"),
        }
    }
}

/// One step's run through the program.
struct Run<'a> {
    step: &'a Step,
    isa: Isa,
    level: SimdLevel,
    precision: Precision,
    plans: &'a [(AttentionShape, AttentionPlan)],
    pieces: &'a [Piece],
    identity: &'a [u32],
}

impl Run<'_> {
    /// Runs one op on all rows of the step.
    ///
    /// # Safety
    /// Program and step are valid for the layout; nobody else uses the arena.
    unsafe fn op(&self, pool: &mut Pool, places: &Places<'_>, op: &Op) {
        let level = self.level;
        let segments = &self.step.segments;
        let rows = match op.writes().first() {
            Some(out) => self.rows_of(places, *out),
            None => self.step.tokens.len(),
        };
        let r = |view: View| places.rows(view);
        // SAFETY: all calls by the contract of this function; items write disjoint rows, heads or channels.
        unsafe {
            match *op {
                Op::Embed { table, out } => {
                    let (matrix, out) = (places.matrix(table), r(out));
                    by_rows(pool, rows, matrix.inputs, &|range| {
                        range.for_each(|row| matrix.read_row(self.step.tokens[row] as usize, out.row(row)));
                    });
                }
                Op::Linear { x, weight, out } => {
                    let product = Product { x: r(x), matrix: places.matrix(weight), out: r(out), rows };
                    linear::run(pool, self.isa, self.precision, &product, places.at(places.layout.rounded));
                }
                Op::RmsNorm { x, weight, eps, out } => {
                    let args = RmsNorm { x: r(x), weight: places.floats(weight), eps, out: r(out) };
                    by_rows(pool, rows, x.width, &|range| norm::rms_norm(level, &args, range));
                }
                Op::L2Norm { x, heads, scaled, scale, eps, out } => {
                    let head_dim = x.width / heads;
                    let args = L2Norm { x: r(x), heads, head_dim, scaled, scale, eps, out: r(out) };
                    by_rows(pool, rows, x.width, &|range| norm::l2_norm(level, &args, range));
                }
                Op::GatedRmsNorm { x, gate, weight, heads, eps, out } => {
                    let weight = places.floats(weight);
                    let args = GatedRmsNorm { x: r(x), gate: r(gate), weight, heads, eps, out: r(out) };
                    by_rows(pool, rows, x.width, &|range| norm::gated_rms_norm(level, &args, range));
                }
                Op::QkNormRope { x, weight, heads, rotary_dim, theta, eps, out } => {
                    let table = places
                        .layout
                        .ropes
                        .iter()
                        .find(|(rope, _)| rope.rotary_dim == rotary_dim && rope.theta == theta);
                    let (_, offset) = *table.expect("every rotary op has its table");
                    let args = QkNormRope {
                        x: r(x),
                        weight: places.floats(weight),
                        heads,
                        rotary_dim,
                        eps,
                        rope: std::slice::from_raw_parts(places.at(offset), rows * rotary_dim),
                        rope_rows: &self.identity[..rows],
                        out: r(out),
                    };
                    by_rows(pool, rows, x.width, &|range| norm::qk_norm_rope(level, &args, range));
                }
                Op::GdnGates { b, a, a_log, dt_bias, beta, decay } => {
                    let args = GdnGates {
                        b: r(b),
                        a: r(a),
                        a_log: places.floats(a_log),
                        dt_bias: places.floats(dt_bias),
                        beta: r(beta),
                        decay: r(decay),
                    };
                    // Exponentials and logarithms in double precision: an element counts for many.
                    by_rows(pool, rows, b.width * 32, &|range| elementwise::gdn_gates(&args, range));
                }
                Op::SigmoidGate { x, gate, out } => {
                    let args = Pairwise { a: r(x), b: r(gate), width: x.width, out: r(out) };
                    by_rows(pool, rows, x.width, &|range| elementwise::sigmoid_gate(level, &args, range));
                }
                Op::SiluMul { gate, up, out } => {
                    let args = Pairwise { a: r(gate), b: r(up), width: up.width, out: r(out) };
                    by_rows(pool, rows, up.width, &|range| elementwise::silu_mul(level, &args, range));
                }
                Op::Add { a, b, out } => {
                    let args = Pairwise { a: r(a), b: r(b), width: a.width, out: r(out) };
                    by_rows(pool, rows, a.width, &|range| elementwise::add(level, &args, range));
                }
                Op::GatherRows { x, out } => {
                    let (from, to) = (r(x), r(out));
                    by_rows(pool, rows, x.width, &|range| {
                        elementwise::gather_rows(from, &self.step.logit_rows, x.width, to, range);
                    });
                }
                Op::GdnConv { x, weight, state, kernel, out } => {
                    let args = GdnConv {
                        x: r(x),
                        weight: places.floats(weight),
                        state: places.state(state),
                        slot_stride: x.width * (kernel - 1),
                        channels: x.width,
                        taps: kernel,
                        out: r(out),
                    };
                    pool.run(self.pieces.len(), &|item, _| {
                        let Piece { segment, first, len } = self.pieces[item];
                        gdn_conv(level, &args, &segments[segment], first..first + len, 0..x.width);
                    });
                }
                Op::GdnScan { q, k, v, beta, decay, state, shape, out } => {
                    let args = GdnScan {
                        q: r(q),
                        k: r(k),
                        v: r(v),
                        beta: r(beta),
                        decay: r(decay),
                        state: places.state(state),
                        slot_stride: slot_floats(&shape),
                        shape,
                        out: r(out),
                    };
                    // Prompts come last in a step and take longest: they begin.
                    let heads = shape.num_value_heads;
                    pool.run(segments.len() * heads, &|item, worker| {
                        let segment = &segments[segments.len() - 1 - item / heads];
                        gdn_scan(level, &args, segment, item % heads, scratch(places, worker));
                    });
                }
                Op::KvAppend { k, v, state, .. } => {
                    let args = KvAppend {
                        k: r(k),
                        v: r(v),
                        cache: places.state(state),
                        layout: places.kv_layout(state),
                        segments,
                        block_table: &self.step.block_table,
                    };
                    // A block is one item's: pieces of segments would split those that straddle a multiple of 64.
                    by_rows(pool, rows, k.width, &|range| kv_append(level, &args, range));
                }
                Op::Attention { q, state, shape, gate: None, out } => {
                    let (_, plan) =
                        self.plans.iter().find(|(known, _)| *known == shape).expect("every shape has its plan");
                    let args = Attention {
                        q: r(q),
                        cache: places.state(state),
                        layout: places.kv_layout(state),
                        shape,
                        segments,
                        block_table: &self.step.block_table,
                        partials: Shared(places.at(places.layout.partials)),
                        out: r(out),
                    };
                    pool.run(plan.items.len(), &|item, worker| {
                        attention(level, &args, &plan.items[item], scratch(places, worker));
                    });
                    pool.run(plan.merges.len(), &|item, _| attention_merge(level, &args, &plan.merges[item]));
                }
                Op::Attention { gate: Some(_), .. }
                | Op::AddRmsNorm { .. }
                | Op::FusedLinear { .. }
                | Op::QkNormRopeAppend(_)
                | Op::GdnPrepare(_)
                | Op::GdnStep { .. }
                | Op::Elementwise(_) => op.parts().iter().for_each(|part| self.op(pool, places, part)),
            }
        }
    }

    fn rows_of(&self, places: &Places<'_>, view: View) -> usize {
        match places.program.tensor(view.tensor).rows {
            refrain_program::Rows::Tokens => self.step.tokens.len(),
            refrain_program::Rows::Logits => self.step.logit_rows.len(),
        }
    }
}

/// The scratch memory of one worker.
fn scratch(places: &Places<'_>, worker: usize) -> *mut f32 {
    places.at::<f32>(places.layout.scratch).wrapping_add(worker * places.layout.scratch_floats)
}

/// Cuts `rows` rows of `width` elements into items that are worth a thread's while.
fn by_rows(pool: &mut Pool, rows: usize, width: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
    // A multiple of the block size, so that aligned prompts write whole KV blocks.
    let block = (ITEM_ELEMENTS / width.max(1)).max(1).next_multiple_of(BLOCK_TOKENS);
    pool.run(rows.div_ceil(block), &|item, _| work(item * block..rows.min((item + 1) * block)));
}

/// What the system calls the processor.
pub fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

#[cfg(test)]
mod tests;
