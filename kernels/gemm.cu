// The product of many rows with a matrix by fused multiply-adds, for any types, sizes and alignments:
// out[m, n] = sum_k x[m, k] weight[n, k].
//
// x: [rows, INPUTS] X_T and out: [rows, outputs] OUT_T with row strides in elements; weight: [outputs, INPUTS] W_T without
// gaps. Sums are f32, in the order of k. Grid: (rows / 64, outputs / 64, 1).
//
// A block of 256 threads computes a tile of 64 by 64, a thread 4 by 4 of it. 16 columns at a time lie in shared memory as
// f32, transposed, in two areas by turns: while one is used, the next columns are on their way to registers. WIDE is 1
// where four neighbours can be loaded at once: rows of x and of the matrix begin at multiples of 16 bytes and INPUTS is a
// multiple of 8.
//
// Defines: X_T, W_T, OUT_T, INPUTS, WIDE, THREADS = 256.
#include "kx.h"

#define TILE 64
#define TILE_K 16
#define STEPS ((INPUTS + TILE_K - 1) / TILE_K)
// Keeps rows at multiples of 16 bytes and spreads the transposed stores over the banks.
#define TILE_STRIDE (TILE + 4)

static_assert(THREADS == 256, "a thread has 4 by 4 of 64 by 64");

struct GemmArgs {
    const u32* rows; // one number: how many rows x has
    const X_T* x;
    const W_T* weight;
    OUT_T* out;
    u32 x_stride, out_stride, outputs, padding;
};

// Four neighbours in a row from `k` on, zeros behind its end.
template <class T> KX_DEV void load4(f32 out[4], const T* row, u32 k) {
#if WIDE
    if (k >= INPUTS) {
        out[0] = out[1] = out[2] = out[3] = 0.0f;
    } else if constexpr (sizeof(T) == 4) {
        const f32x4 values = kx_load((const f32x4*)(row + k));
        out[0] = values.x, out[1] = values.y, out[2] = values.z, out[3] = values.w;
    } else {
        const u32x2 words = kx_load((const u32x2*)(row + k));
        out[0] = kx_float(T{(u16)words.x}), out[1] = kx_float(T{(u16)(words.x >> 16)});
        out[2] = kx_float(T{(u16)words.y}), out[3] = kx_float(T{(u16)(words.y >> 16)});
    }
#else
    KX_UNROLL
    for (u32 i = 0; i < 4; i++) out[i] = k + i < INPUTS ? kx_float(row[k + i]) : 0.0f;
#endif
}

KX_KERNEL(gemm, GemmArgs, THREADS) {
    KX_SHARED KX_ALIGN(16) f32 x_tile[2][TILE_K][TILE_STRIDE];
    KX_SHARED KX_ALIGN(16) f32 weight_tile[2][TILE_K][TILE_STRIDE];
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 rows = *args.rows, first_m = kx_block_x() * TILE, first_n = kx_block_y() * TILE;
    if (first_m >= rows) return;

    // What a thread loads: four columns of one row. Rows outside are read as the last one; what they give isn't stored.
    const u32 loaded = kx_tid() / 4, column = kx_tid() % 4 * 4;
    const u32 m = first_m + loaded < rows ? first_m + loaded : rows - 1;
    const u32 n = first_n + loaded < args.outputs ? first_n + loaded : args.outputs - 1;
    const X_T* const x_row = args.x + (u64)m * args.x_stride;
    const W_T* const weight_row = args.weight + (u64)n * INPUTS;
    // What it computes: rows 4 `down` and columns 4 `right` of the tile.
    const u32 down = kx_tid() / 16, right = kx_tid() % 16;

    f32 next_x[4], next_weight[4];
    load4(next_x, x_row, column);
    load4(next_weight, weight_row, column);
    f32 sums[4][4];
    KX_UNROLL
    for (u32 i = 0; i < 4; i++) {
        KX_UNROLL
        for (u32 j = 0; j < 4; j++) sums[i][j] = 0.0f;
    }
    for (u32 step = 0; step < STEPS; step++) {
        const u32 turn = step % 2;
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) {
            x_tile[turn][column + i][loaded] = next_x[i];
            weight_tile[turn][column + i][loaded] = next_weight[i];
        }
        kx_sync();
        if (step + 1 < STEPS) {
            load4(next_x, x_row, (step + 1) * TILE_K + column);
            load4(next_weight, weight_row, (step + 1) * TILE_K + column);
        }
        KX_UNROLL
        for (u32 k = 0; k < TILE_K; k++) {
            const f32x4 a = *(const f32x4*)&x_tile[turn][k][down * 4];
            const f32x4 b = *(const f32x4*)&weight_tile[turn][k][right * 4];
            const f32 x[4] = {a.x, a.y, a.z, a.w}, weight[4] = {b.x, b.y, b.z, b.w};
            KX_UNROLL
            for (u32 i = 0; i < 4; i++) {
                KX_UNROLL
                for (u32 j = 0; j < 4; j++) sums[i][j] = kx_fma(x[i], weight[j], sums[i][j]);
            }
        }
    }
    KX_UNROLL
    for (u32 i = 0; i < 4; i++) {
        const u32 row = first_m + down * 4 + i;
        KX_UNROLL
        for (u32 j = 0; j < 4; j++) {
            const u32 at = first_n + right * 4 + j;
            if (row < rows && at < args.outputs) kx_store(args.out + (u64)row * args.out_stride + at, sums[i][j]);
        }
    }
}
