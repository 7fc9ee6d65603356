//! One step's run through a program, op by op, each on all threads.

use super::Piece;
use super::places::Places;
use crate::kernels::Shared;
use crate::kernels::attention::{Attention, AttentionPlan, attention, attention_merge};
use crate::kernels::elementwise::{self, GdnGates, Pairwise};
use crate::kernels::gdn_conv::{GdnConv, gdn_conv};
use crate::kernels::gdn_scan::{GdnScan, gdn_scan, slot_floats};
use crate::kernels::kv_cache::{KvAppend, kv_append};
use crate::kernels::norm::{self, GatedRmsNorm, L2Norm, QkNormRope, RmsNorm};
use crate::linear::{self, Around, Epilogue, Product, Workspace};
use crate::pool::Pool;
use crate::{Isa, Precision, SimdLevel, kernels};
use refrain_device::{BLOCK_TOKENS, Step};
use refrain_program::{AttentionShape, Op, Rows, View};
use std::ops::Range;

/// Elements that are worth handing to another thread.
const ITEM_ELEMENTS: usize = 16 * 1024;

/// One step's run through the program.
pub(super) struct Run<'a> {
    pub(super) step: &'a Step,
    pub(super) isa: Isa,
    pub(super) level: SimdLevel,
    pub(super) precision: Precision,
    pub(super) plans: &'a [(AttentionShape, AttentionPlan)],
    pub(super) pieces: &'a [Piece],
    pub(super) identity: &'a [u32],
}

/// Where the rows of a view lie: in the arena, or in scratch memory.
pub(super) type FindRows<'a> = &'a (dyn Fn(View) -> kernels::Rows + Sync);

impl Run<'_> {
    /// Runs one op on all rows of the step.
    ///
    /// # Safety
    /// Program and step are valid for the layout; nobody else uses the arena.
    pub(super) unsafe fn op(&self, pool: &mut Pool, places: &Places<'_>, op: &Op) {
        let level = self.level;
        let segments = &self.step.segments;
        let r = |view: View| places.rows(view);
        // SAFETY: all calls by the contract of this function; items write disjoint rows, heads or channels.
        unsafe {
            match *op {
                Op::Embed { table, out } => {
                    let (matrix, out) = (places.matrix(table), r(out));
                    by_rows(pool, self.step.tokens.len(), matrix.inputs, &|range, _| {
                        range.for_each(|row| matrix.read_row(self.step.tokens[row] as usize, out.row(row)));
                    });
                }
                Op::Linear { x, weight, out } => {
                    let rows = self.rows_of(places, out);
                    let product = Product { x: r(x), matrix: places.matrix(weight), out: r(out), rows };
                    let around = Around { prologue: None, epilogue: Epilogue::None };
                    linear::run(pool, self.isa, self.precision, &product, &around, &workspace(places));
                }
                Op::GatherRows { x, out } => {
                    let (from, to) = (r(x), r(out));
                    by_rows(pool, self.step.logit_rows.len(), x.width, &|range, _| {
                        elementwise::gather_rows(from, &self.step.logit_rows, x.width, to, range);
                    });
                }
                Op::GdnConv { x, .. } => {
                    let args = conv_args(places, op);
                    pool.run(self.pieces.len(), &|item, _| {
                        let Piece { segment, first, len } = self.pieces[item];
                        gdn_conv(level, &args, &segments[segment], first..first + len, 0..x.width);
                    });
                }
                Op::GdnScan { shape, .. } => {
                    let args = scan_args(places, op);
                    // Prompts come last in a step and take longest: they begin.
                    let heads = shape.num_value_heads;
                    pool.run(segments.len() * heads, &|item, worker| {
                        let segment = &segments[segments.len() - 1 - item / heads];
                        gdn_scan(level, &args, segment, item % heads, places.scratch(worker));
                    });
                }
                Op::Attention { q, state, shape, gate, out } => {
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
                        gate: gate.map(|gate| r(gate.gate)),
                        out: r(out),
                    };
                    pool.run(plan.items.len(), &|item, worker| {
                        attention(level, &args, &plan.items[item], places.scratch(worker));
                    });
                    pool.run(plan.merges.len(), &|item, _| attention_merge(level, &args, &plan.merges[item]));
                }
                Op::RmsNorm { .. }
                | Op::L2Norm { .. }
                | Op::GatedRmsNorm { .. }
                | Op::QkNormRope { .. }
                | Op::GdnGates { .. }
                | Op::SigmoidGate { .. }
                | Op::SiluMul { .. }
                | Op::Add { .. }
                | Op::KvAppend { .. } => {
                    let (rows, width) = (self.rows_of(places, op.reads()[0]), row_work(op));
                    by_rows(pool, rows, width, &|range, _| self.on_rows(places, op, &r, range));
                }
                Op::AddRmsNorm { .. }
                | Op::FusedLinear { .. }
                | Op::QkNormRopeAppend(_)
                | Op::GdnPrepare(_)
                | Op::GdnStep { .. }
                | Op::Elementwise(_) => self.fused(pool, places, op),
            }
        }
    }

    /// Runs an op that treats each row by itself on some rows.
    ///
    /// # Safety
    /// As for [`Run::op`]; nobody else writes these rows.
    pub(super) unsafe fn on_rows(&self, places: &Places<'_>, op: &Op, r: FindRows<'_>, range: Range<usize>) {
        let level = self.level;
        // SAFETY: by contract; all rows are in the step.
        unsafe {
            match *op {
                Op::RmsNorm { x, weight, eps, out } => {
                    let args = RmsNorm { x: r(x), weight: places.floats(weight), eps, out: r(out) };
                    norm::rms_norm(level, &args, range);
                }
                Op::L2Norm { x, heads, scaled, scale, eps, out } => {
                    let head_dim = x.width / heads;
                    let args = L2Norm { x: r(x), heads, head_dim, scaled, scale, eps, out: r(out) };
                    norm::l2_norm(level, &args, range);
                }
                Op::GatedRmsNorm { x, gate, weight, heads, eps, out } => {
                    let weight = places.floats(weight);
                    let args = GatedRmsNorm { x: r(x), gate: r(gate), weight, heads, eps, out: r(out) };
                    norm::gated_rms_norm(level, &args, range);
                }
                Op::QkNormRope { x, weight, heads, rotary_dim, theta, eps, out } => {
                    let rows = self.step.tokens.len();
                    let args = QkNormRope {
                        x: r(x),
                        weight: places.floats(weight),
                        heads,
                        rotary_dim,
                        eps,
                        rope: std::slice::from_raw_parts(places.rope(rotary_dim, theta), rows * rotary_dim),
                        rope_rows: &self.identity[..rows],
                        out: r(out),
                    };
                    norm::qk_norm_rope(level, &args, range);
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
                    elementwise::gdn_gates(&args, range);
                }
                Op::SigmoidGate { x, gate, out } => {
                    let args = Pairwise { a: r(x), b: r(gate), width: x.width, out: r(out) };
                    elementwise::sigmoid_gate(level, &args, range);
                }
                Op::SiluMul { gate, up, out } => {
                    let args = Pairwise { a: r(gate), b: r(up), width: up.width, out: r(out) };
                    elementwise::silu_mul(level, &args, range);
                }
                Op::Add { a, b, out } => {
                    let args = Pairwise { a: r(a), b: r(b), width: a.width, out: r(out) };
                    elementwise::add(level, &args, range);
                }
                Op::KvAppend { k, v, state, .. } => {
                    let args = KvAppend {
                        k: r(k),
                        v: r(v),
                        cache: places.state(state),
                        layout: places.kv_layout(state),
                        segments: &self.step.segments,
                        block_table: &self.step.block_table,
                    };
                    // A block is one item's: pieces of segments would split those that straddle a multiple of 64.
                    kv_append(level, &args, range);
                }
                ref other => unreachable!("{} doesn't treat each row by itself", other.name()),
            }
        }
    }

    pub(super) fn rows_of(&self, places: &Places<'_>, view: View) -> usize {
        match places.program.tensor(view.tensor).rows {
            Rows::Tokens => self.step.tokens.len(),
            Rows::Logits => self.step.logit_rows.len(),
        }
    }
}

/// The arguments of [`Op::GdnConv`].
pub(super) fn conv_args<'a>(places: &Places<'a>, op: &Op) -> GdnConv<'a> {
    let Op::GdnConv { x, weight, state, kernel, out } = *op else { unreachable!("{} convolves nothing", op.name()) };
    GdnConv {
        x: places.rows(x),
        weight: places.floats(weight),
        state: places.state(state),
        slot_stride: x.width * (kernel - 1),
        channels: x.width,
        taps: kernel,
        out: places.rows(out),
    }
}

/// The arguments of [`Op::GdnScan`].
pub(super) fn scan_args(places: &Places<'_>, op: &Op) -> GdnScan {
    let Op::GdnScan { q, k, v, beta, decay, state, shape, out } = *op else {
        unreachable!("{} scans nothing", op.name())
    };
    GdnScan {
        q: places.rows(q),
        k: places.rows(k),
        v: places.rows(v),
        beta: places.rows(beta),
        decay: places.rows(decay),
        state: places.state(state),
        slot_stride: slot_floats(&shape),
        shape,
        out: places.rows(out),
    }
}

/// The memory that products work in.
pub(super) fn workspace(places: &Places<'_>) -> Workspace {
    let layout = places.layout;
    Workspace {
        rounded: Shared(places.at(layout.rounded)),
        scratch: Shared(places.at(layout.scratch)),
        scratch_floats: layout.scratch_floats,
    }
}

/// Elements of a row, by the work that they are.
pub(super) fn row_work(op: &Op) -> usize {
    match *op {
        // Exponentials and logarithms in double precision: an element counts for many.
        Op::GdnGates { b, .. } => b.width * 32,
        _ => op.reads()[0].width,
    }
}

/// Cuts `rows` rows of `width` elements into items that are worth a thread's while; `work` gets the rows and the worker.
pub(super) fn by_rows(pool: &mut Pool, rows: usize, width: usize, work: &(dyn Fn(Range<usize>, usize) + Sync)) {
    // A multiple of the block size, so that aligned prompts write whole KV blocks.
    let block = (ITEM_ELEMENTS / width.max(1)).max(1).next_multiple_of(BLOCK_TOKENS);
    pool.run(rows.div_ceil(block), &|item, worker| work(item * block..rows.min((item + 1) * block), worker));
}
