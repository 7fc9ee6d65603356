//! Fused ops: the arithmetic of their parts, row by row or head by head while the data is in the cache. Sums have the
//! order that they have in the parts, so a compiled program gives the very bits of the eager one.

use super::Piece;
use super::places::Places;
use super::run::{Run, by_rows, conv_args, row_work, scan_args, workspace};
use crate::kernels::Rows;
use crate::kernels::elementwise::{GdnGates, gdn_gates};
use crate::kernels::gdn_conv::gdn_conv;
use crate::kernels::gdn_scan::gdn_scan;
use crate::kernels::norm::{L2Norm, l2_norm};
use crate::linear::{self, Around, Epilogue, Product, halves_are_panels};
use crate::pool::Pool;
use refrain_device::BLOCK_TOKENS;
use refrain_program::{self as program, GdnPrepare, Op, Prologue, View};
use std::ops::Range;

/// Tokens that a worker convolves, norms and gates before it takes the next ones.
const PREPARED_TOKENS: usize = 16;

impl Run<'_> {
    /// Runs a fused op on all rows of the step.
    ///
    /// # Safety
    /// As for [`Run::op`].
    pub(super) unsafe fn fused(&self, pool: &mut Pool, places: &Places<'_>, op: &Op) {
        // SAFETY: by contract, for all of them.
        unsafe {
            match *op {
                Op::FusedLinear { .. } => self.fused_linear(pool, places, op),
                Op::AddRmsNorm { .. } | Op::Elementwise(_) => self.row_by_row(pool, places, op, 1),
                // As many as a block of the cache has: keys are written in squares.
                Op::QkNormRopeAppend(_) => self.row_by_row(pool, places, op, BLOCK_TOKENS),
                Op::GdnPrepare(ref prepare) => self.prepare(pool, places, prepare),
                Op::GdnStep { ref prepare, .. } => {
                    let parts = op.parts();
                    let scan = parts.last().expect("a step ends with its scan");
                    if self.step.segments.iter().all(|segment| segment.scan == 0) {
                        self.head_by_head(pool, places, prepare, scan);
                    } else {
                        self.prepare(pool, places, prepare);
                        self.op(pool, places, scan);
                    }
                }
                ref other => unreachable!("{} is not fused", other.name()),
            }
        }
    }

    /// All parts on a few rows, then on the next ones. With one row at a time, what is staged lies in scratch memory.
    ///
    /// # Safety
    /// As for [`Run::op`]; all parts treat each row by itself.
    unsafe fn row_by_row(&self, pool: &mut Pool, places: &Places<'_>, op: &Op, at_once: usize) {
        let (parts, staged) = (op.parts(), op.staged());
        let rows = self.rows_of(places, op.reads()[0]);
        let width = parts.iter().map(row_work).sum();
        by_rows(pool, rows, width, &|range: Range<usize>, worker| {
            let place = |view: View| match staged.iter().position(|staged| *staged == view) {
                Some(index) if at_once == 1 => {
                    let before: usize = staged[..index].iter().map(|view| view.width).sum();
                    Rows { data: places.scratch(worker).wrapping_add(before), stride: 0 }
                }
                _ => places.rows(view),
            };
            for first in range.clone().step_by(at_once) {
                let some = first..range.end.min(first + at_once);
                // SAFETY: by contract; rows are this item's.
                parts.iter().for_each(|part| unsafe { self.on_rows(places, part, &place, some.clone()) });
            }
        });
    }

    /// # Safety
    /// As for [`Run::op`].
    unsafe fn fused_linear(&self, pool: &mut Pool, places: &Places<'_>, op: &Op) {
        let Op::FusedLinear { prologue, weight, epilogue, out } = *op else { unreachable!("a product") };
        let parts = op.parts();
        let staged = prologue.product_input();
        let make = |range: Range<usize>, to: Rows| {
            let place = |view: View| if view == staged { to } else { places.rows(view) };
            // SAFETY: by contract; the rows are the caller's alone.
            unsafe { self.on_rows(places, &parts[0], &place, range) };
        };
        let prologue: Option<linear::Prologue<'_>> = match prologue {
            Prologue::None { .. } => None,
            Prologue::RmsNorm { .. } | Prologue::GatedRmsNorm { .. } => Some(&make),
        };
        let matrix = places.matrix(weight);
        let product_out = epilogue.product(out);
        let (epilogue, out, last) = match epilogue {
            program::Epilogue::None => (Epilogue::None, out, None),
            program::Epilogue::Add { residual, .. } => (Epilogue::Add { residual: places.rows(residual) }, out, None),
            program::Epilogue::SiluMul { .. } if halves_are_panels(&matrix) => (Epilogue::SiluMul, out, None),
            program::Epilogue::SiluMul { .. } => (Epilogue::None, product_out, parts.last()),
        };
        let rows = self.rows_of(places, out);
        let product = Product { x: places.rows(staged), matrix, out: places.rows(out), rows };
        let around = Around { prologue, epilogue };
        // SAFETY: by contract.
        unsafe {
            linear::run(pool, self.isa, self.precision, &product, &around, &workspace(places));
            if let Some(last) = last {
                self.op(pool, places, last);
            }
        }
    }

    /// # Safety
    /// As for [`Run::op`].
    unsafe fn prepare(&self, pool: &mut Pool, places: &Places<'_>, prepare: &GdnPrepare) {
        let parts = Op::GdnPrepare(*prepare).parts();
        let [conv, norms @ ..] = parts.as_slice() else { unreachable!("it begins with a convolution") };
        let args = conv_args(places, conv);
        // An item may not begin between the first inputs of the convolution and their end.
        let at_once = PREPARED_TOKENS.max(args.taps);
        pool.run(self.pieces.len(), &|item, _| {
            let Piece { segment, first, len } = self.pieces[item];
            let segment = &self.step.segments[segment];
            for token in (first..first + len).step_by(at_once) {
                let end = (token + at_once).min(first + len);
                let rows = segment.row as usize + token..segment.row as usize + end;
                // SAFETY: by contract; pieces don't overlap.
                unsafe {
                    gdn_conv(self.level, &args, segment, token..end, 0..args.channels);
                    let place = |view: View| places.rows(view);
                    norms.iter().for_each(|norm| self.on_rows(places, norm, &place, rows.clone()));
                }
            }
        });
    }

    /// Everything between the projection and the result of a GDN layer, for one key head of one sequence at a time.
    ///
    /// # Safety
    /// As for [`Run::op`]; no sequence has tokens for the chunked scan.
    unsafe fn head_by_head(&self, pool: &mut Pool, places: &Places<'_>, prepare: &GdnPrepare, scan: &Op) {
        let parts = Op::GdnPrepare(*prepare).parts();
        let (conv, scan) = (conv_args(places, &parts[0]), scan_args(places, scan));
        let (level, shape, segments) = (self.level, prepare.shape, &self.step.segments);
        let [q, k, v] = prepare.qkv();
        let (dim, group) = (shape.key_head_dim, shape.num_value_heads / shape.num_key_heads);
        let (a_log, dt_bias) = (places.floats(prepare.a_log), places.floats(prepare.dt_bias));
        pool.run(segments.len() * shape.num_key_heads, &|item, worker| {
            let (segment, head) = (&segments[item / shape.num_key_heads], item % shape.num_key_heads);
            let (row, len) = (segment.row as usize, segment.len as usize);
            let values = head * group..(head + 1) * group;
            let width = group * shape.value_head_dim;
            let columns = [(q, head * dim, dim), (k, head * dim, dim), (v, head * width, width)];
            // SAFETY: by contract; channels and heads are this item's.
            unsafe {
                for (view, column, width) in columns {
                    let first = view.column - prepare.out.column + column;
                    gdn_conv(level, &conv, segment, 0..len, first..first + width);
                }
                for (view, scaled) in [(q, 1), (k, 0)] {
                    let x = places.rows(view).at_column(head * dim);
                    let &GdnPrepare { scale, eps, .. } = prepare;
                    let args = L2Norm { x, heads: 1, head_dim: dim, scaled, scale, eps, out: x };
                    l2_norm(level, &args, row..row + len);
                }
                let of_heads = |view: View| places.rows(view).at_column(values.start);
                let gates = GdnGates {
                    b: of_heads(prepare.b),
                    a: of_heads(prepare.a),
                    a_log: &a_log[values.clone()],
                    dt_bias: &dt_bias[values.clone()],
                    beta: of_heads(prepare.beta),
                    decay: of_heads(prepare.decay),
                };
                gdn_gates(&gates, row..row + len);
                values.clone().for_each(|value| gdn_scan(level, &scan, segment, value, places.scratch(worker)));
            }
        });
    }
}
