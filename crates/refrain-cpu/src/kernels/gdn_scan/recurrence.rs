//! One token of the gated delta rule in one pass over the state. With `sk = S^T k` and `sq = S^T q` of the old state,
//! `d = beta (v - e^g sk)`, `out = e^g sq + d (k . q)` and `S' = e^g S + k d^T`: each column panel of `S` is read,
//! and written while it is still in the first cache.

use super::{Item, Token};
use crate::kernels::tile::Tile;
use crate::kernels::{load_up_to, padded, store_up_to};
use crate::simd::{LANES, Simd};

/// One token, all columns.
#[inline(always)]
pub(super) unsafe fn step<S: Tile>(item: &Item<'_>, token: &Token) {
    let shape = &item.args.shape;
    let width = padded(shape.value_head_dim);
    // SAFETY: the token's rows have the head, the state has `key_head_dim` rows of `width` floats.
    unsafe {
        let gates =
            Gates { beta: token.beta, decay: token.decay.exp(), kq: dot::<S>(token.k, token.q, shape.key_head_dim) };
        let mut column = 0;
        while S::SUMS >= 16 && column + 8 * LANES <= width {
            columns::<S, 8>(item, token, &gates, column);
            column += 8 * LANES;
        }
        while column + 2 * LANES <= width {
            columns::<S, 2>(item, token, &gates, column);
            column += 2 * LANES;
        }
        while column < width {
            columns::<S, 1>(item, token, &gates, column);
            column += LANES;
        }
    }
}

struct Gates {
    beta: f32,
    decay: f32,
    kq: f32,
}

#[inline(always)]
unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, width: usize) -> f32 {
    // SAFETY: both have `width` floats.
    unsafe {
        let mut sum = S::splat(0.0);
        let mut column = 0;
        while column < width {
            let count = width - column;
            sum = S::fma(load_up_to::<S>(a.add(column), count), load_up_to::<S>(b.add(column), count), sum);
            column += LANES;
        }
        S::sum(sum)
    }
}

/// The columns of `N` registers.
#[inline(always)]
unsafe fn columns<S: Simd, const N: usize>(item: &Item<'_>, token: &Token, gates: &Gates, column: usize) {
    let shape = &item.args.shape;
    let width = padded(shape.value_head_dim);
    // SAFETY: as in `step`; of the value and output rows only `value_head_dim` floats are touched.
    unsafe {
        let state = item.state.add(column);
        let mut sk = [S::splat(0.0); N];
        let mut sq = [S::splat(0.0); N];
        for i in 0..shape.key_head_dim {
            let (k, q) = (S::splat(*token.k.add(i)), S::splat(*token.q.add(i)));
            for n in 0..N {
                let s = S::load(state.add(i * width + n * LANES));
                sk[n] = S::fma(k, s, sk[n]);
                sq[n] = S::fma(q, s, sq[n]);
            }
        }
        let (beta, decay, kq) = (S::splat(gates.beta), S::splat(gates.decay), S::splat(gates.kq));
        let mut delta = [S::splat(0.0); N];
        for n in 0..N {
            let at = column + n * LANES;
            let count = shape.value_head_dim - at;
            let v = load_up_to::<S>(token.v.add(at), count);
            delta[n] = S::mul(beta, S::sub(v, S::mul(decay, sk[n])));
            store_up_to::<S>(token.out.add(at), S::fma(delta[n], kq, S::mul(decay, sq[n])), count);
        }
        for i in 0..shape.key_head_dim {
            let k = S::splat(*token.k.add(i));
            for (n, delta) in delta.iter().enumerate() {
                let at = state.add(i * width + n * LANES);
                S::store(at, S::fma(k, *delta, S::mul(decay, S::load(at))));
            }
        }
    }
}
