//! The products of the chunked scan, tile by tile in registers.

use super::chunk::{CHUNK, Chunk, PANEL, Panel};
use crate::kernels::tile::{Left, multiply};
use crate::kernels::{load_up_to, store_up_to};
use crate::simd::{LANES, Simd};

/// `K K^T` and `Q K^T`, as far as they reach to the diagonal.
#[inline(always)]
pub(super) unsafe fn products_tile<S: Simd, const M: usize, const N: usize>(
    chunk: &Chunk<'_>,
    tokens: usize,
    row: usize,
    column: usize,
) {
    let first = tokens * PANEL + column;
    // SAFETY: the caller's promise.
    unsafe {
        if first + (N - 1) * LANES < row + M {
            products::<S, M, N>(chunk, tokens, row, column);
        } else if first < row + M {
            products::<S, M, 1>(chunk, tokens, row, column);
        }
    }
}

#[inline(always)]
unsafe fn products<S: Simd, const M: usize, const N: usize>(
    chunk: &Chunk<'_>,
    tokens: usize,
    row: usize,
    column: usize,
) {
    let scratch = chunk.scratch;
    let panel_floats = scratch.key_rows * PANEL;
    // SAFETY: rows and columns are inside the chunk's matrices.
    unsafe {
        let right = registers::<N>(scratch.keys.add(tokens * panel_floats + column));
        let depth = chunk.item.args.shape.key_head_dim;
        let k = Left { data: scratch.keys.add(row / PANEL * panel_floats + row % PANEL), row: 1, step: PANEL };
        let q = Left { data: scratch.queries.add(row * scratch.key_rows), row: scratch.key_rows, step: 1 };
        for (left, out) in [(k, scratch.rule), (q, scratch.scores)] {
            let sums = multiply::<S, f32, M, N>([[S::splat(0.0); N]; M], left, right, PANEL, depth);
            for (m, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    S::store(out.add((row + m) * CHUNK + tokens * PANEL + column + n * LANES), *sum);
                }
            }
        }
    }
}

/// `N` registers next to each other.
#[inline(always)]
unsafe fn registers<const N: usize>(data: *mut f32) -> [*const f32; N] {
    let mut all = [data.cast_const(); N];
    for (n, register) in all.iter_mut().enumerate() {
        // SAFETY: the caller has them all.
        *register = unsafe { register.add(n * LANES) };
    }
    all
}

/// Some rows of `D`, given all rows before them.
#[inline(always)]
pub(super) unsafe fn delta_tile<S: Simd, const M: usize, const N: usize>(
    chunk: &Chunk<'_>,
    panel: &Panel,
    row: usize,
    column: usize,
) {
    let (scratch, shape) = (chunk.scratch, &chunk.item.args.shape);
    // SAFETY: rows and columns are inside the chunk's buffers; values are only touched where they exist.
    unsafe {
        let panel_floats = scratch.key_rows * PANEL;
        let k = Left { data: scratch.keys.add(row / PANEL * panel_floats + row % PANEL), row: 1, step: PANEL };
        let state = registers::<N>(panel.state.add(column));
        let mut sums = multiply::<S, f32, M, N>([[S::splat(0.0); N]; M], k, state, PANEL, shape.key_head_dim);
        for (m, sums) in sums.iter_mut().enumerate() {
            let since_start = S::splat(*scratch.since_start.add(row + m));
            let beta = S::splat(*scratch.beta.add(row + m));
            for (n, sum) in sums.iter_mut().enumerate() {
                let at = panel.column + column + n * LANES;
                let mut value = S::splat(0.0);
                if row + m < chunk.len && at < shape.value_head_dim {
                    let token = chunk.item.token(chunk.first + row + m);
                    value = load_up_to::<S>(token.v.add(at), shape.value_head_dim - at);
                }
                *sum = S::mul(beta, S::sub(value, S::mul(since_start, *sum)));
            }
        }
        let rule = scratch.rule.add(row * CHUNK);
        let above = registers::<N>(scratch.deltas.add(column));
        let left = Left { data: rule, row: CHUNK, step: 1 };
        let mut sums = multiply::<S, f32, M, N>(sums, left, above, PANEL, row);
        for solved in 0..M {
            let above = sums[solved];
            for (m, sums) in sums.iter_mut().enumerate().skip(solved + 1) {
                let factor = S::splat(*rule.add(m * CHUNK + row + solved));
                for (sum, above) in sums.iter_mut().zip(&above) {
                    *sum = S::fma(factor, *above, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                S::store(scratch.deltas.add((row + m) * PANEL + column + n * LANES), *sum);
            }
        }
    }
}

/// Some rows of the output.
#[inline(always)]
pub(super) unsafe fn output_tile<S: Simd, const M: usize, const N: usize>(
    chunk: &Chunk<'_>,
    panel: &Panel,
    row: usize,
    column: usize,
) {
    let (scratch, shape) = (chunk.scratch, &chunk.item.args.shape);
    // SAFETY: as in `delta_tile`.
    unsafe {
        let q = Left { data: scratch.queries.add(row * scratch.key_rows), row: scratch.key_rows, step: 1 };
        let state = registers::<N>(panel.state.add(column));
        let mut sums = multiply::<S, f32, M, N>([[S::splat(0.0); N]; M], q, state, PANEL, shape.key_head_dim);
        for (m, sums) in sums.iter_mut().enumerate() {
            let since_start = S::splat(*scratch.since_start.add(row + m));
            for sum in sums {
                *sum = S::mul(since_start, *sum);
            }
        }
        let scores = scratch.scores.add(row * CHUNK);
        let deltas = registers::<N>(scratch.deltas.add(column));
        let left = Left { data: scores, row: CHUNK, step: 1 };
        let mut sums = multiply::<S, f32, M, N>(sums, left, deltas, PANEL, row);
        for source in 0..M {
            for (m, sums) in sums.iter_mut().enumerate().skip(source) {
                let factor = S::splat(*scores.add(m * CHUNK + row + source));
                for (sum, delta) in sums.iter_mut().zip(&deltas) {
                    *sum = S::fma(factor, S::load(delta.add((row + source) * PANEL)), *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let at = panel.column + column + n * LANES;
                if row + m < chunk.len && at < shape.value_head_dim {
                    let token = chunk.item.token(chunk.first + row + m);
                    store_up_to::<S>(token.out.add(at), *sum, shape.value_head_dim - at);
                }
            }
        }
    }
}

/// Some rows of the new state.
#[inline(always)]
pub(super) unsafe fn state_tile<S: Simd, const M: usize, const N: usize>(
    chunk: &Chunk<'_>,
    panel: &Panel,
    row: usize,
    column: usize,
) {
    let scratch = chunk.scratch;
    // SAFETY: rows and columns are inside the chunk's buffers.
    unsafe {
        let factor = S::splat(*scratch.since_start.add(CHUNK - 1));
        let mut sums = [[factor; N]; M];
        for (m, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::mul(factor, S::load(panel.state.add((row + m) * PANEL + column + n * LANES)));
            }
        }
        let mut first = 0;
        while first < chunk.rows {
            let keys = scratch.keys.add(first * scratch.key_rows + row * PANEL);
            let left = Left { data: keys, row: PANEL, step: 1 };
            let deltas = registers::<N>(scratch.deltas.add(first * PANEL + column));
            sums = multiply::<S, f32, M, N>(sums, left, deltas, PANEL, PANEL.min(chunk.rows - first));
            first += PANEL;
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                S::store(panel.state.add((row + m) * PANEL + column + n * LANES), *sum);
            }
        }
    }
}
