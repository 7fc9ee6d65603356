// The norms of Gated DeltaNet, head by head:
//   l2_norm         out = x * rsqrt(sum(x^2) + eps), times scale for the first `scaled` heads
//   gated_rms_norm  out = weight * x * rsqrt(mean(x^2) + eps) * silu(gate)
//
// x: [T, heads * HEAD_DIM] X_T, gate the same in GATE_T and out in OUT_T (X_T of l2_norm), with row strides in elements;
// weight: [HEAD_DIM] f32. Arithmetic is f32. `out` may be `x` or `gate` where it has that type.
//
// Grid: (row blocks, head blocks). LANES neighbouring lanes take one head of ROWS rows; each holds ITEMS times VECTOR
// elements of each row in registers, all loaded before the first sum, so that memory is read once with many loads in
// flight. VECTOR is 8 where all heads begin at multiples of 16 bytes, else 1. The least time is that of the bytes: at
// 8192 tokens of 32 heads of 128, bf16, 201 MB for the gated norm.
//
// Defines: X_T, GATE_T and OUT_T (gated_rms_norm), HEAD_DIM, LANES (a power of two, at most 32), VECTOR, ROWS, THREADS.
#include "kx.h"

#define ITEMS ((HEAD_DIM + LANES * VECTOR - 1) / (LANES * VECTOR))

// Where a lane works: a head of rows `row` and the next, elements `element` and LANES * VECTOR further each.
struct Place {
    u32 row, head, element;
};
KX_DEV Place place() {
    return Place{kx_block_x() * ROWS, kx_block_y() * (THREADS / LANES) + kx_tid() / LANES, kx_tid() % LANES * VECTOR};
}

// Zeros where there is no such row, head or element.
template <class T> KX_DEV void load_head(f32 out[ITEMS][VECTOR], const T* from, const Place& at, bool exists) {
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        const u32 element = at.element + item * LANES * VECTOR;
        if (exists && element < HEAD_DIM) {
            kx_load_vector(out[item], from + at.head * HEAD_DIM + element);
        } else {
            KX_UNROLL
            for (u32 i = 0; i < VECTOR; i++) out[item][i] = 0.0f;
        }
    }
}

KX_DEV f32 sum_of_squares(const f32 x[ITEMS][VECTOR]) {
    f32 sum = 0.0f;
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        KX_UNROLL
        for (u32 i = 0; i < VECTOR; i++) sum = kx_fma(x[item][i], x[item][i], sum);
    }
    return kx_group_sum<LANES>(sum);
}

#ifdef GATE_T
struct GatedRmsNormArgs {
    const u32* rows; // one number: how many rows there are
    const X_T* x;
    const GATE_T* gate;
    const f32* weight; // [HEAD_DIM]
    OUT_T* out;
    u32 x_stride, gate_stride, out_stride, heads;
    f32 eps;
    u32 padding;
};

KX_KERNEL(gated_rms_norm, GatedRmsNormArgs, THREADS) {
    kx_let_next_start();
    const Place at = place();
    f32 weight[ITEMS][VECTOR];
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        const u32 element = at.element + item * LANES * VECTOR;
        if (element < HEAD_DIM) kx_load_vector(weight[item], args.weight + element);
    }

    const u32 rows = *args.rows;
    kx_wait_for_previous();
    f32 x[ROWS][ITEMS][VECTOR], gate[ROWS][ITEMS][VECTOR];
    KX_UNROLL
    for (u32 i = 0; i < ROWS; i++) {
        const bool exists = at.head < args.heads && at.row + i < rows;
        load_head(x[i], args.x + (u64)(at.row + i) * args.x_stride, at, exists);
        load_head(gate[i], args.gate + (u64)(at.row + i) * args.gate_stride, at, exists);
    }
    KX_UNROLL
    for (u32 i = 0; i < ROWS; i++) {
        const f32 factor = kx_rsqrt(sum_of_squares(x[i]) * (1.0f / HEAD_DIM) + args.eps);
        if (at.head < args.heads && at.row + i < rows) {
            OUT_T* const out = args.out + (u64)(at.row + i) * args.out_stride + at.head * HEAD_DIM;
            KX_UNROLL
            for (u32 item = 0; item < ITEMS; item++) {
                const u32 element = at.element + item * LANES * VECTOR;
                KX_UNROLL
                for (u32 c = 0; c < VECTOR; c++) {
                    x[i][item][c] = weight[item][c] * (x[i][item][c] * factor) * kx_silu(gate[i][item][c]);
                }
                if (element < HEAD_DIM) kx_store_vector(out + element, x[i][item]);
            }
        }
    }
}
#else
struct L2NormArgs {
    const u32* rows; // one number: how many rows there are
    const X_T* x;
    X_T* out;
    u32 x_stride, out_stride, heads;
    f32 scale, eps;
    u32 scaled;
};

KX_KERNEL(l2_norm, L2NormArgs, THREADS) {
    kx_let_next_start();
    const u32 rows = *args.rows;
    kx_wait_for_previous();
    const Place at = place();
    f32 x[ROWS][ITEMS][VECTOR];
    KX_UNROLL
    for (u32 i = 0; i < ROWS; i++) {
        const bool exists = at.head < args.heads && at.row + i < rows;
        load_head(x[i], args.x + (u64)(at.row + i) * args.x_stride, at, exists);
    }
    KX_UNROLL
    for (u32 i = 0; i < ROWS; i++) {
        const f32 factor = kx_rsqrt(sum_of_squares(x[i]) + args.eps) * (at.head < args.scaled ? args.scale : 1.0f);
        if (at.head < args.heads && at.row + i < rows) {
            X_T* const out = args.out + (u64)(at.row + i) * args.out_stride + at.head * HEAD_DIM;
            KX_UNROLL
            for (u32 item = 0; item < ITEMS; item++) {
                const u32 element = at.element + item * LANES * VECTOR;
                KX_UNROLL
                for (u32 c = 0; c < VECTOR; c++) x[i][item][c] *= factor;
                if (element < HEAD_DIM) kx_store_vector(out + element, x[i][item]);
            }
        }
    }
}
#endif
