//! The chunked form of the gated delta rule (Yang et al., arXiv 2412.06464). For `n` tokens with keys `K`, queries `Q`,
//! values `V`, write strengths `b`, and `c` the running sum of the log-decays inside the chunk:
//!
//! ```text
//! L[i][j] = e^(c_i - c_j), j <= i
//! D       = (I + tril(diag(b) K K^T .* L, -1))^-1 diag(b) (V - diag(e^c) K S)
//! out     = diag(e^c) Q S + (tril(Q K^T) .* L) D
//! S'      = e^c_n S + (diag(e^(c_n - c)) K)^T D
//! ```
//!
//! `D` comes from forward substitution, eight rows at a time in registers. Only differences of `c` that are at most 0
//! are ever exponentiated, so strong decay underflows to 0 and nothing overflows. Columns of the values are independent
//! once the two `n x n` matrices are there: they are done in panels of 32, whose states stay packed for all chunks.

use super::Item;
use super::tiles::{delta_tile, output_tile, products_tile, state_tile};
use crate::kernels::tile::Tile;
use crate::kernels::{load_up_to, padded};
use crate::simd::{LANES, Simd};
use refrain_device::SCAN_CHUNK;
use refrain_program::GdnShape;

/// Tokens of a whole chunk.
pub(super) const CHUNK: usize = SCAN_CHUNK;
/// Columns of a panel: two registers.
pub(super) const PANEL: usize = 2 * LANES;
/// Rows are padded to this, the tallest tile.
const ROWS: usize = 8;
/// Every decay below this is 0 in f32, even alone; with it sums of decays stay finite.
const LOWEST_DECAY: f32 = -1000.0;

/// The scratch memory of one item.
pub(super) struct Scratch {
    /// Keys, `[CHUNK / PANEL][key rows][PANEL]`: transposed, in panels of tokens.
    pub keys: *mut f32,
    /// Queries, `[CHUNK][key rows]`.
    pub queries: *mut f32,
    /// State, `[value panels][key rows][PANEL]`.
    pub state: *mut f32,
    /// `-b_i L_ij k_i . k_j` for `j < i`, `[CHUNK][CHUNK]`; anything elsewhere.
    pub rule: *mut f32,
    /// `L_ij q_i . k_j` for `j <= i`, `[CHUNK][CHUNK]`; anything elsewhere.
    pub scores: *mut f32,
    /// `D` of one panel, `[CHUNK][PANEL]`.
    pub deltas: *mut f32,
    /// `c`, and what rounding it to f32 left, `[CHUNK]` each.
    pub decay: *mut f32,
    pub decay_rest: *mut f32,
    /// `e^c` and `e^(c_n - c)`, `[CHUNK]` each.
    pub since_start: *mut f32,
    pub to_end: *mut f32,
    /// `b`, `[CHUNK]`.
    pub beta: *mut f32,
    pub key_rows: usize,
    pub panels: usize,
}

fn key_rows(shape: &GdnShape) -> usize {
    padded(shape.key_head_dim)
}

fn panels(shape: &GdnShape) -> usize {
    shape.value_head_dim.div_ceil(PANEL)
}

impl Scratch {
    pub fn floats(shape: &GdnShape) -> usize {
        key_rows(shape) * (2 * CHUNK + panels(shape) * PANEL) + CHUNK * (2 * CHUNK + PANEL + 5)
    }

    /// # Safety
    /// `memory` has [`Scratch::floats`] floats.
    pub unsafe fn new(shape: &GdnShape, memory: *mut f32) -> Self {
        let (key_rows, panels) = (key_rows(shape), panels(shape));
        let mut next = memory;
        let mut take = |floats: usize| {
            let start = next;
            // SAFETY: the sizes add up to `floats(shape)`.
            next = unsafe { next.add(floats) };
            start
        };
        Self {
            keys: take(key_rows * CHUNK),
            queries: take(key_rows * CHUNK),
            state: take(key_rows * panels * PANEL),
            rule: take(CHUNK * CHUNK),
            scores: take(CHUNK * CHUNK),
            deltas: take(CHUNK * PANEL),
            decay: take(CHUNK),
            decay_rest: take(CHUNK),
            since_start: take(CHUNK),
            to_end: take(CHUNK),
            beta: take(CHUNK),
            key_rows,
            panels,
        }
    }
}

/// A chunk: tokens `first..first + len` of the segment, `rows` of them with padding.
pub(super) struct Chunk<'a> {
    pub item: &'a Item<'a>,
    pub scratch: &'a Scratch,
    pub first: usize,
    pub len: usize,
    pub rows: usize,
}

/// Calls a tile function for every tile of `rows` (whole multiples of [`ROWS`]) by [`PANEL`].
macro_rules! for_tiles {
    ($S:ident, $rows:expr, $tile:ident($($arg:expr),*)) => {
        if $S::SUMS >= 16 {
            for row in (0..$rows).step_by(8) {
                $tile::<$S, 8, 2>($($arg,)* row, 0);
            }
        } else if $S::SUMS >= 4 {
            for (row, column) in (0..$rows).step_by(4).flat_map(|row| [(row, 0), (row, LANES)]) {
                $tile::<$S, 4, 1>($($arg,)* row, column);
            }
        } else {
            for (row, column) in (0..$rows).step_by(2).flat_map(|row| [(row, 0), (row, LANES)]) {
                $tile::<$S, 2, 1>($($arg,)* row, column);
            }
        }
    };
}

/// Runs the first `scan` tokens of the item's segment. Chunks end at positions that are multiples of [`CHUNK`], so they
/// are the same however a prompt is cut at such positions.
#[inline(always)]
pub(super) unsafe fn scan_chunks<S: Tile>(item: &Item<'_>, fresh: bool, scan: usize, scratch: &Scratch) {
    // SAFETY: the caller's item and scratch are sound; `scan` is at most the segment's length.
    unsafe {
        load_state::<S>(item, fresh, scratch);
        let mut first = 0;
        while first < scan {
            let position = item.segment.position as usize + first;
            let len = (CHUNK - position % CHUNK).min(scan - first);
            let chunk = Chunk { item, scratch, first, len, rows: len.next_multiple_of(ROWS) };
            prepare::<S>(&chunk);
            for panel in 0..scratch.panels {
                let panel = Panel::new(&chunk, panel);
                for_tiles!(S, chunk.rows, delta_tile(&chunk, &panel));
                for_tiles!(S, chunk.rows, output_tile(&chunk, &panel));
                decay_deltas::<S>(&chunk);
                for_tiles!(S, scratch.key_rows, state_tile(&chunk, &panel));
            }
            first += len;
        }
        store_state::<S>(item, scratch);
    }
}

/// Copies the state of the slot, or zeros, into panels.
#[inline(always)]
unsafe fn load_state<S: Simd>(item: &Item<'_>, fresh: bool, scratch: &Scratch) {
    let shape = &item.args.shape;
    let width = padded(shape.value_head_dim);
    // SAFETY: the state has `key_head_dim` rows of `width` floats.
    unsafe {
        scratch.state.write_bytes(0, scratch.panels * scratch.key_rows * PANEL);
        if fresh {
            return;
        }
        for (row, column) in state_registers(shape) {
            let to = scratch.state.add((column / PANEL * scratch.key_rows + row) * PANEL + column % PANEL);
            S::store(to, S::load(item.state.add(row * width + column)));
        }
    }
}

/// Copies the panels back into the slot.
#[inline(always)]
unsafe fn store_state<S: Simd>(item: &Item<'_>, scratch: &Scratch) {
    let shape = &item.args.shape;
    let width = padded(shape.value_head_dim);
    for (row, column) in state_registers(shape) {
        // SAFETY: as in `load_state`.
        unsafe {
            let from = scratch.state.add((column / PANEL * scratch.key_rows + row) * PANEL + column % PANEL);
            S::store(item.state.add(row * width + column), S::load(from));
        }
    }
}

/// Row and column of every register's worth of state.
#[inline(always)]
fn state_registers(shape: &GdnShape) -> impl Iterator<Item = (usize, usize)> {
    let width = padded(shape.value_head_dim);
    (0..shape.key_head_dim).flat_map(move |row| (0..width).step_by(LANES).map(move |column| (row, column)))
}

/// Packs keys and queries, and fills the gates and the two `n x n` matrices.
#[inline(always)]
unsafe fn prepare<S: Tile>(chunk: &Chunk<'_>) {
    let (item, scratch) = (chunk.item, chunk.scratch);
    let key_dim = item.args.shape.key_head_dim;
    let mut sum = 0.0f64;
    // SAFETY: tokens of the chunk are tokens of the segment; the rest is scratch memory of known size.
    unsafe {
        for index in 0..CHUNK {
            let queries = scratch.queries.add(index * scratch.key_rows);
            // Tokens of padding change nothing: they have no key, no strength, and the last decay.
            let mut beta = 0.0;
            if index < chunk.len {
                let token = item.token(chunk.first + index);
                for i in (0..key_dim).step_by(LANES) {
                    S::store(queries.add(i), load_up_to::<S>(token.q.add(i), key_dim - i));
                }
                beta = token.beta;
                sum += f64::from(token.decay.max(LOWEST_DECAY));
            } else {
                queries.write_bytes(0, scratch.key_rows);
            }
            *scratch.beta.add(index) = beta;
            *scratch.decay.add(index) = sum as f32;
            *scratch.decay_rest.add(index) = (sum - f64::from(sum as f32)) as f32;
        }
        pack_keys::<S>(chunk);
        for index in (0..CHUNK).step_by(LANES) {
            let decay = S::load(scratch.decay.add(index));
            let rest = S::load(scratch.decay_rest.add(index));
            S::store(scratch.since_start.add(index), S::exp(decay));
            let end = S::splat(*scratch.decay.add(CHUNK - 1));
            let end_rest = S::splat(*scratch.decay_rest.add(CHUNK - 1));
            let difference = S::add(S::sub(end, decay), S::sub(end_rest, rest));
            S::store(scratch.to_end.add(index), S::exp(difference));
        }
        for tokens in 0..chunk.rows.div_ceil(PANEL) {
            for_tiles!(S, chunk.rows, products_tile(chunk, tokens));
        }
        apply_gates::<S>(chunk);
    }
}

/// Transposes the keys into panels of tokens, with zeros for what doesn't exist.
#[inline(always)]
unsafe fn pack_keys<S: Tile>(chunk: &Chunk<'_>) {
    let (item, scratch) = (chunk.item, chunk.scratch);
    let key_dim = item.args.shape.key_head_dim;
    for first in (0..CHUNK).step_by(LANES) {
        for i in (0..scratch.key_rows).step_by(LANES) {
            // SAFETY: as in `prepare`.
            unsafe {
                let mut square = [S::splat(0.0); LANES];
                let tokens = chunk.len.saturating_sub(first);
                for (index, row) in square.iter_mut().enumerate().take(tokens) {
                    *row = load_up_to::<S>(item.token(chunk.first + first + index).k.add(i), key_dim - i);
                }
                let panel = scratch.keys.add(first / PANEL * scratch.key_rows * PANEL + first % PANEL);
                for (index, column) in S::transpose(square).iter().enumerate() {
                    S::store(panel.add((i + index) * PANEL), *column);
                }
            }
        }
    }
}

/// Multiplies the two matrices by their gates. Above the diagonal it leaves anything: nobody reads that.
#[inline(always)]
unsafe fn apply_gates<S: Simd>(chunk: &Chunk<'_>) {
    let scratch = chunk.scratch;
    // SAFETY: rows and columns are inside the chunk's matrices.
    unsafe {
        for row in 0..chunk.rows {
            let (decay, rest) = (S::splat(*scratch.decay.add(row)), S::splat(*scratch.decay_rest.add(row)));
            let strength = S::splat(-*scratch.beta.add(row));
            for column in (0..=row).step_by(LANES) {
                // The f32 sums are far apart where decay is strong; the rest keeps their difference exact.
                let difference = S::add(
                    S::sub(decay, S::load(scratch.decay.add(column))),
                    S::sub(rest, S::load(scratch.decay_rest.add(column))),
                );
                let gate = S::exp(difference);
                let rule = scratch.rule.add(row * CHUNK + column);
                S::store(rule, S::mul(S::mul(S::load(rule), gate), strength));
                let scores = scratch.scores.add(row * CHUNK + column);
                S::store(scores, S::mul(S::load(scores), gate));
            }
        }
    }
}

/// `D <- diag(e^(c_n - c)) D`, which is how it goes into the state.
#[inline(always)]
unsafe fn decay_deltas<S: Simd>(chunk: &Chunk<'_>) {
    let scratch = chunk.scratch;
    for row in 0..chunk.rows {
        // SAFETY: rows of the chunk.
        unsafe {
            let factor = S::splat(*scratch.to_end.add(row));
            for column in (0..PANEL).step_by(LANES) {
                let delta = scratch.deltas.add(row * PANEL + column);
                S::store(delta, S::mul(S::load(delta), factor));
            }
        }
    }
}

/// One panel of value columns.
pub(super) struct Panel {
    /// Its first column.
    pub column: usize,
    /// Its part of the state, `[key rows][PANEL]`.
    pub state: *mut f32,
}

impl Panel {
    /// # Safety
    /// `index` is below the number of panels.
    #[inline(always)]
    unsafe fn new(chunk: &Chunk<'_>, index: usize) -> Self {
        // SAFETY: by contract.
        let state = unsafe { chunk.scratch.state.add(index * chunk.scratch.key_rows * PANEL) };
        Self { column: index * PANEL, state }
    }
}
