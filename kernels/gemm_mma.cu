// The product of many rows with a matrix on tensor cores: out[m, n] = sum_k x[m, k] weight[n, k].
//
// x: [rows, INPUTS] T and out: [rows, outputs] OUT_T with row strides in elements; weight: [outputs, INPUTS] T without
// gaps; T is bf16 or f16. Sums are f32, in the order of k whatever the tile. Rows of x and of the matrix begin at
// multiples of 16 bytes, INPUTS is a multiple of 8. Grid: (rows / TILE_M, outputs / TILE_N, 1).
//
// A block computes a tile of TILE_M by TILE_N, its WAVES_M by WAVES_N waves a part each. 32 columns of x and of the
// matrix at a time come to shared memory by asynchronous copies, STAGES - 1 steps ahead; what lies outside is zero there.
// The first stages of the matrix are on their way before the previous kernel has ended.
//
// A row of a stage is 64 bytes, four chunks of 16; chunk c of row r lies at c ^ (r / 2 % 4), so that the eight rows which
// ldmatrix reads at once lie in different banks.
//
// Defines: T, MMA (kx_mma_bf16 or kx_mma_f16), OUT_T, INPUTS, TILE_M, TILE_N, WAVES_M, WAVES_N, STAGES, PAIRED (1: out
// is stored two elements at a time; its rows begin at multiples of two elements), THREADS = 32 WAVES_M WAVES_N. Dynamic
// shared memory: STAGES * (TILE_M + TILE_N) * 32 T.
#include "kx.h"

#define TILE_K 32
#define CHUNKS (TILE_K / 8)
#define STEPS ((INPUTS + TILE_K - 1) / TILE_K)
#define STAGE ((TILE_M + TILE_N) * TILE_K)
#define PART_M (TILE_M / WAVES_M)
#define PART_N (TILE_N / WAVES_N)
#define BLOCKS_M (PART_M / 16)
#define BLOCKS_N (PART_N / 8)

static_assert(PART_M % 16 == 0 && PART_N % 16 == 0, "a wave computes blocks of 16 by 16");

struct GemmArgs {
    const u32* rows; // one number: how many rows x has
    const T* x;
    const T* weight;
    OUT_T* out;
    u32 x_stride, out_stride, outputs, padding;
};

KX_DEV u32 place(u32 row, u32 chunk) { return row * TILE_K + (chunk ^ (row / 2 % 4)) * 8; }

// Starts the copy of TILE rows by TILE_K columns from `first` and `k` on; `end` rows exist.
template <u32 TILE> KX_DEV void copy_tile(T* to, const T* from, u64 stride, u32 first, u32 end, u32 k) {
    KX_UNROLL
    for (u32 i = 0; i < (TILE * CHUNKS + THREADS - 1) / THREADS; i++) {
        const u32 at = i * THREADS + kx_tid(), row = at / CHUNKS, chunk = at % CHUNKS;
        if (TILE * CHUNKS % THREADS == 0 || row < TILE) {
            const bool exists = first + row < end && k + chunk * 8 < INPUTS;
            kx_copy_async16(to + place(row, chunk), from + (first + row) * stride + k + chunk * 8, exists);
        }
    }
}

KX_DEV void store_pair(OUT_T* to, f32 first, f32 second, bool both) {
#if PAIRED
    union {
        OUT_T values[2];
        u32 words[sizeof(OUT_T) / 2];
    } pair;
    kx_store(&pair.values[0], first);
    kx_store(&pair.values[1], second);
    if (both) {
        if constexpr (sizeof(OUT_T) == 2) {
            *(u32*)to = pair.words[0];
        } else {
            *(u32x2*)to = u32x2{pair.words[0], pair.words[1]};
        }
        return;
    }
#endif
    kx_store(to, first);
    if (both) kx_store(to + 1, second);
}

KX_KERNEL(gemm_mma, GemmArgs, THREADS) {
    KX_DYNAMIC_SHARED(T, shared);
    kx_let_next_start();
    const u32 first_m = kx_block_x() * TILE_M, first_n = kx_block_y() * TILE_N;
    KX_UNROLL
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        T* const to = shared + stage * STAGE + TILE_M * TILE_K;
        copy_tile<TILE_N>(to, args.weight, INPUTS, first_n, args.outputs, stage * TILE_K);
    }
    const u32 rows = *args.rows;
    kx_wait_for_previous();
    KX_UNROLL
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        copy_tile<TILE_M>(shared + stage * STAGE, args.x, args.x_stride, first_m, rows, stage * TILE_K);
        kx_copy_commit();
    }

    const u32 lane = kx_tid() % KX_WAVE, wave = kx_tid() / KX_WAVE;
    const u32 part_m = wave / WAVES_N * PART_M, part_n = wave % WAVES_N * PART_N;
    // Where a lane points ldmatrix: x in the order rows 0-7, rows 8-15, then the same 8 columns further; the matrix in
    // the order columns 0-7, columns 8-15, then the same 8 rows further.
    const u32 x_row = part_m + lane / 8 % 2 * 8 + lane % 8, x_chunk = lane / 16;
    const u32 weight_row = part_n + lane / 16 * 8 + lane % 8, weight_chunk = lane / 8 % 2;

    f32 sums[BLOCKS_M][BLOCKS_N][4];
    KX_UNROLL
    for (u32 i = 0; i < BLOCKS_M; i++) {
        KX_UNROLL
        for (u32 j = 0; j < BLOCKS_N; j++) {
            KX_UNROLL
            for (u32 e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
        }
    }
    for (u32 step = 0; step < STEPS; step++) {
        kx_copy_wait<STAGES - 2>();
        kx_sync();
        // Everyone has passed the barrier, so nobody reads the stage of the last step any more.
        const u32 ahead = step + STAGES - 1;
        if (ahead < STEPS) {
            T* const to = shared + ahead % STAGES * STAGE;
            copy_tile<TILE_M>(to, args.x, args.x_stride, first_m, rows, ahead * TILE_K);
            copy_tile<TILE_N>(to + TILE_M * TILE_K, args.weight, INPUTS, first_n, args.outputs, ahead * TILE_K);
        }
        kx_copy_commit();

        const T* const x = shared + step % STAGES * STAGE;
        const T* const weight = x + TILE_M * TILE_K;
        KX_UNROLL
        for (u32 k = 0; k < TILE_K / 16; k++) {
            u32 a[BLOCKS_M][4], b[BLOCKS_N / 2][4];
            KX_UNROLL
            for (u32 i = 0; i < BLOCKS_M; i++) kx_ldmatrix4(a[i], x + place(x_row + i * 16, k * 2 + x_chunk));
            KX_UNROLL
            for (u32 j = 0; j < BLOCKS_N / 2; j++) {
                kx_ldmatrix4(b[j], weight + place(weight_row + j * 16, k * 2 + weight_chunk));
            }
            KX_UNROLL
            for (u32 i = 0; i < BLOCKS_M; i++) {
                KX_UNROLL
                for (u32 j = 0; j < BLOCKS_N; j++) MMA(sums[i][j], a[i], b[j / 2] + j % 2 * 2);
            }
        }
    }
    // Nothing may still be on its way to shared memory when the block ends.
    kx_copy_wait<0>();

    const u32 m = first_m + part_m + lane / 4, n = first_n + part_n + lane % 4 * 2;
    KX_UNROLL
    for (u32 i = 0; i < BLOCKS_M; i++) {
        KX_UNROLL
        for (u32 half = 0; half < 2; half++) {
            const u32 row = m + i * 16 + half * 8;
            if (row < rows) {
                OUT_T* const out = args.out + (u64)row * args.out_stride;
                KX_UNROLL
                for (u32 j = 0; j < BLOCKS_N; j++) {
                    const u32 column = n + j * 8;
                    const f32* const pair = sums[i][j] + half * 2;
                    if (column < args.outputs) store_pair(out + column, pair[0], pair[1], column + 1 < args.outputs);
                }
            }
        }
    }
}
