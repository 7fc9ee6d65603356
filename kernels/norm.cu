// The zero-centred RMS norm of rows: out = x * rsqrt(mean(x^2) + eps) * (1 + weight). With B_T it is that of a sum, which
// is kept too: x is sum = x + b, as it is stored.
//
// x: [rows, WIDTH] X_T and out: [rows, WIDTH] OUT_T with row strides in elements; weight: [WIDTH] f32. Arithmetic is
// f32. `out` may be `x` where it has that type.
//
// A block takes ROWS rows at once: each thread holds ITEMS times VECTOR elements of each of them in registers, so that
// memory is read once, with all loads in flight before the first sum, and one barrier serves all rows. The weight is
// loaded before the previous kernel has ended. VECTOR is 8 where every row begins at a multiple of 16 bytes and WIDTH is
// a multiple of 8, else 1. Each row's sum has an order of its own that depends on WIDTH and THREADS only. Rows that don't
// fit into registers have a kernel that reads them twice, one to a block.
//
// The least it can take is the time to read and write each element once.
//
// Defines: X_T, OUT_T, WIDTH, VECTOR, ROWS, THREADS; of a sum B_T and SUM_T. `sum` may be `x` or `b` where it has that type.
#include "kx.h"

#define VECTORS ((WIDTH + VECTOR - 1) / VECTOR)
#define ITEMS ((VECTORS + THREADS - 1) / THREADS)
#define WAVES (THREADS / KX_WAVE)
#define MOST_ITEMS 4

struct RmsNormArgs {
    const u32* rows;   // one number: how many rows there are
    const X_T* x;      // [rows, WIDTH]
    const f32* weight; // [WIDTH]
    OUT_T* out;        // [rows, WIDTH]
    u32 x_stride, out_stride;
    f32 eps;
    u32 padding;
#ifdef B_T
    const B_T* b; // [rows, WIDTH]
    SUM_T* sum;   // [rows, WIDTH]
    u32 b_stride, sum_stride;
#endif
};

// Elements of a row that the norm is of; a sum is stored.
KX_DEV void load_row(f32 (&out)[VECTOR], const RmsNormArgs& args, u64 row, u32 at) {
    kx_load_vector(out, args.x + row * args.x_stride + at);
#ifdef B_T
    f32 b[VECTOR];
    kx_load_vector(b, args.b + row * args.b_stride + at);
    KX_UNROLL
    for (u32 j = 0; j < VECTOR; j++) out[j] = kx_rounded(out[j] + b[j], SUM_T());
#endif
}
KX_DEV void store_sum(const RmsNormArgs& args, u64 row, u32 at, const f32 (&sum)[VECTOR]) {
#ifdef B_T
    kx_store_vector(args.sum + row * args.sum_stride + at, sum);
#endif
}
#ifdef B_T
#define SHORT add_rms_norm
#define LONG add_rms_norm_long
#else
#define SHORT rms_norm
#define LONG rms_norm_long
#endif

#if ITEMS <= MOST_ITEMS
KX_KERNEL(SHORT, RmsNormArgs, THREADS) {
    KX_SHARED f32 sums[WAVES][ROWS];
    kx_let_next_start();

    f32 weight[ITEMS][VECTOR];
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        const u32 at = (item * THREADS + kx_tid()) * VECTOR;
        if (at < WIDTH) kx_load_vector(weight[item], args.weight + at);
    }

    const u32 rows = *args.rows, first = kx_block_x() * ROWS;
    kx_wait_for_previous();
    f32 x[ROWS][ITEMS][VECTOR];
    KX_UNROLL
    for (u32 i = 0; i < ROWS; i++) {
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) {
            const u32 at = (item * THREADS + kx_tid()) * VECTOR;
            if (at < WIDTH && first + i < rows) {
                load_row(x[i][item], args, first + i, at);
            } else {
                KX_UNROLL
                for (u32 j = 0; j < VECTOR; j++) x[i][item][j] = 0.0f;
            }
        }
    }

    KX_UNROLL
    for (u32 i = 0; i < ROWS; i++) {
        f32 sum = 0.0f;
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) {
            KX_UNROLL
            for (u32 j = 0; j < VECTOR; j++) sum = kx_fma(x[i][item][j], x[i][item][j], sum);
        }
        sum = kx_wave_sum(sum);
        if (kx_tid() % KX_WAVE == 0) sums[kx_tid() / KX_WAVE][i] = sum;
    }
    kx_sync();

    KX_UNROLL
    for (u32 i = 0; i < ROWS; i++) {
        f32 sum = 0.0f;
        KX_UNROLL
        for (u32 wave = 0; wave < WAVES; wave++) sum += sums[wave][i];
        const f32 scale = kx_rsqrt(sum * (1.0f / WIDTH) + args.eps);
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) {
            const u32 at = (item * THREADS + kx_tid()) * VECTOR;
            if (at < WIDTH && first + i < rows) {
                f32 out[VECTOR];
                KX_UNROLL
                for (u32 j = 0; j < VECTOR; j++) out[j] = x[i][item][j] * scale * (1.0f + weight[item][j]);
                store_sum(args, first + i, at, x[i][item]);
                kx_store_vector(args.out + (u64)(first + i) * args.out_stride + at, out);
            }
        }
    }
}
#else
KX_KERNEL(LONG, RmsNormArgs, THREADS) {
    KX_SHARED f32 sums[WAVES];
    kx_let_next_start();
    const u64 row = kx_block_x();
    const u32 rows = *args.rows;
    kx_wait_for_previous();
    if (row >= rows) return;
#ifdef B_T
    const SUM_T* const x = args.sum + row * args.sum_stride;
#else
    const X_T* const x = args.x + row * args.x_stride;
#endif
    OUT_T* const out = args.out + row * args.out_stride;

    f32 sum = 0.0f, values[VECTOR], weight[VECTOR];
    for (u32 at = kx_tid() * VECTOR; at < WIDTH; at += THREADS * VECTOR) {
        load_row(values, args, row, at);
        store_sum(args, row, at, values);
        KX_UNROLL
        for (u32 j = 0; j < VECTOR; j++) sum = kx_fma(values[j], values[j], sum);
    }
    const f32 scale = kx_rsqrt(kx_block_sum<THREADS>(sum, sums) * (1.0f / WIDTH) + args.eps);
    // A thread takes the elements that it has stored.
    for (u32 at = kx_tid() * VECTOR; at < WIDTH; at += THREADS * VECTOR) {
        kx_load_vector(values, x + at);
        kx_load_vector(weight, args.weight + at);
        KX_UNROLL
        for (u32 j = 0; j < VECTOR; j++) values[j] = values[j] * scale * (1.0f + weight[j]);
        kx_store_vector(out + at, values);
    }
}
#endif
