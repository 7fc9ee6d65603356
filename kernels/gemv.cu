// The product of few rows with a matrix: out[m, n] = sum_k x[m, k] weight[n, k], m < ROWS, by fused multiply-adds.
//
// x: [rows, INPUTS] X_T and out: [rows, outputs] OUT_T with row strides in elements; weight: [outputs, INPUTS] W_T without
// gaps. Sums are f32. Grid: (any, 1, rows / ROWS); the blocks of an x axis share the outputs among them, and each z axis
// takes ROWS rows.
//
// The time is that of reading the weights, each once, so everything serves to keep loads in flight: a wave takes a unit of
// OUTPUTS rows of the matrix and then the one a grid further; it holds DEPTH steps of them in registers, a step being the
// 16 bytes that each lane reads, and puts the next load where it has just used one, across the end of a row. The first
// DEPTH steps are on their way before the previous kernel has ended. STAGED copies x to shared memory, else it is read
// from the caches. The order of each sum depends on INPUTS only, not on ROWS, OUTPUTS or DEPTH.
//
// WIDE is 1 where all rows of x and of the matrix begin at multiples of 16 bytes and INPUTS is a multiple of 8; with 0 a
// lane reads single elements, and anything goes.
//
// The ops before and behind the product can be part of it (gemv_around.h). What a prologue makes is OPERAND_T and always
// staged. With SILU_MUL the first half of the OUTPUTS of a unit are rows of the first half of the matrix, the others the
// same rows of its second half, and OUTPUTS is even.
//
// Defines: X_T, W_T, OUT_T, INPUTS, ROWS, OUTPUTS (at most `outputs`), DEPTH, STAGED, WIDE, THREADS, KX_RESIDENT, those of
// gemv_around.h and OPERAND_T.
// Dynamic shared memory: ROWS * INPUTS X_T where STAGED (OPERAND_T of a prologue), then what a prologue needs, from a
// multiple of 16 bytes on.
#include "gemv_around.h"

struct GemvArgs {
    const u32* rows; // one number: how many rows x has
    const X_T* x;
    const W_T* weight;
    OUT_T* out;
    u32 x_stride, out_stride, outputs, padding;
#if PROLOGUE || EPILOGUE
    Around around;
#endif
};

#define WAVES (THREADS / KX_WAVE)

// Outputs of a unit.
#if EPILOGUE == SILU_MUL
#define OUT_UNIT (OUTPUTS / 2)
static_assert(OUTPUTS % 2 == 0, "as many rows of either half of the matrix");
#else
#define OUT_UNIT OUTPUTS
#endif

#if PROLOGUE
#define KEPT_COLUMNS INPUTS
#define KEPT(m, k) ((m) * INPUTS + (k))
#include "gemv_prologue.h"
static_assert(STAGED, "what a prologue makes is kept in shared memory");
#else
#define OPERAND_T X_T
#endif

#if WIDE
#define VECTOR (16 / (u32)sizeof(W_T))
typedef u32x4 Vector;
KX_DEV Vector fetch(const W_T* from) { return kx_load_stream((const u32x4*)from); }
KX_DEV Vector nothing() { return u32x4{0, 0, 0, 0}; }
template <class T> KX_DEV void unpack(f32* out, u32x4 words) {
    if constexpr (sizeof(T) == 4) {
        out[0] = kx_from_bits(words.x), out[1] = kx_from_bits(words.y);
        out[2] = kx_from_bits(words.z), out[3] = kx_from_bits(words.w);
    } else {
        kx_unpack8(out, words, T());
    }
}
template <class T> KX_DEV void load_x(f32* out, const T* from) {
    if constexpr (VECTOR == 8) {
        kx_load8(out, from);
    } else if constexpr (sizeof(T) == 4) {
        unpack<T>(out, kx_load((const u32x4*)from));
    } else {
        KX_UNROLL
        for (u32 i = 0; i < VECTOR; i++) out[i] = kx_float(from[i]);
    }
}
#else
#define VECTOR 1u
typedef W_T Vector;
KX_DEV Vector fetch(const W_T* from) { return *from; }
KX_DEV Vector nothing() { return W_T(); }
template <class T> KX_DEV void unpack(f32* out, T value) { *out = kx_float(value); }
template <class T> KX_DEV void load_x(f32* out, const T* from) { *out = kx_float(*from); }
#endif

#define STEP (KX_WAVE * VECTOR)
// Rounded up to whole rings; what lies behind the end of a row is not loaded.
#define STEPS ((INPUTS + STEP * DEPTH - 1) / (STEP * DEPTH) * DEPTH)

KX_DEV bool exists(u32 k) { return INPUTS == STEPS * STEP || k < INPUTS; }
KX_DEV u32 least(u32 a, u32 b) { return a < b ? a : b; }

// One step of a unit, whose first row has column `k` at `from`; `half` is how far the second half of the matrix is.
KX_DEV void fetch_step(Vector out[OUTPUTS], const W_T* from, u32 k, u64 half) {
    KX_UNROLL
    for (u32 o = 0; o < OUTPUTS; o++) {
        const W_T* row = from + o % OUT_UNIT * INPUTS;
        if (o >= OUT_UNIT) row += half;
        out[o] = exists(k) ? fetch(row) : nothing();
    }
}

KX_KERNEL(gemv, GemvArgs, THREADS) {
    kx_let_next_start();
    const u32 begin = kx_tid() % KX_WAVE * VECTOR;
    const u32 units = (args.outputs + OUT_UNIT - 1) / OUT_UNIT, stride = kx_blocks_x() * WAVES;
    // The last unit begins earlier where it would have less rows than the others.
    const u32 last_row = args.outputs - OUT_UNIT;
    const u64 half = (u64)args.outputs * INPUTS;
    const W_T* const lane_weight = args.weight + begin;

    u32 unit = kx_block_x() * WAVES + kx_tid() / KX_WAVE;
    u32 row = least(unit * OUT_UNIT, last_row);
    // What the ring holds begins here.
    const W_T* weight = lane_weight + (u64)row * INPUTS;
    Vector ring[DEPTH][OUTPUTS];
    if (unit < units) {
        KX_UNROLL
        for (u32 i = 0; i < DEPTH; i++) fetch_step(ring[i], weight + i * STEP, begin + i * STEP, half);
    }

#if STAGED
    KX_DYNAMIC_SHARED(OPERAND_T, staged);
#endif
#if PROLOGUE
    Prologue prologue;
    prepare(prologue, args.around, (f32*)((u8*)staged + (ROWS * INPUTS * sizeof(OPERAND_T) + 15) / 16 * 16));
#endif

    const u32 rows = *args.rows, first = kx_block_z() * ROWS;
    kx_wait_for_previous();
    const X_T* x = args.x + (u64)first * args.x_stride;
    const u32 here = rows > first ? least(rows - first, ROWS) : 0;
#if PROLOGUE
    const GATE_T* const gate = args.around.gate + (u64)first * args.around.gate_stride;
    make(prologue, staged, Source{x, gate, args.x_stride, args.around.gate_stride, here, args.around.eps});
    kx_sync();
#elif STAGED
    for (u32 m = 0; m < here; m++) {
        const X_T* const from = x + (u64)m * args.x_stride;
#if WIDE
        const u32 vector = 16 / sizeof(X_T);
        for (u32 k = kx_tid() * vector; k < INPUTS; k += THREADS * vector) {
            kx_copy_async16(staged + m * INPUTS + k, from + k, true);
        }
#else
        for (u32 k = kx_tid(); k < INPUTS; k += THREADS) staged[m * INPUTS + k] = from[k];
#endif
    }
    kx_copy_commit();
    kx_copy_wait<0>();
    kx_sync();
#endif
#if STAGED
    const OPERAND_T* const operand = staged;
    const u32 operand_stride = INPUTS;
#else
    const X_T* const operand = x;
    const u32 operand_stride = args.x_stride;
#endif

    while (unit < units) {
        const u32 next_unit = unit + stride, next_row = least(next_unit * OUT_UNIT, last_row);
#if EPILOGUE == ADD
        // On its way while the products are summed: a lane has that of one output.
        f32 residual = 0.0f;
        const u32 residual_m = kx_tid() % KX_WAVE / OUT_UNIT, residual_n = row + kx_tid() % KX_WAVE % OUT_UNIT;
        if (residual_m < here && residual_n >= unit * OUT_UNIT) {
            residual = kx_float(args.around.residual[(u64)(first + residual_m) * args.around.residual_stride + residual_n]);
        }
#endif
        f32 sums[ROWS][OUTPUTS];
        KX_UNROLL
        for (u32 m = 0; m < ROWS; m++) {
            KX_UNROLL
            for (u32 o = 0; o < OUTPUTS; o++) sums[m][o] = 0.0f;
        }
        for (u32 k = begin; k < STEPS * STEP; k += DEPTH * STEP) {
            // Where the next steps are.
            const bool ends = k + DEPTH * STEP >= STEPS * STEP, more = !ends || next_unit < units;
            const u32 ahead = ends ? begin : k + DEPTH * STEP;
            weight = ends ? lane_weight + (u64)next_row * INPUTS : weight + DEPTH * STEP;
            KX_UNROLL
            for (u32 i = 0; i < DEPTH; i++) {
                if (exists(k + i * STEP)) {
                    f32 w[OUTPUTS][VECTOR];
                    KX_UNROLL
                    for (u32 o = 0; o < OUTPUTS; o++) unpack<W_T>(w[o], ring[i][o]);
                    KX_UNROLL
                    for (u32 m = 0; m < ROWS; m++) {
                        if (m < here) {
                            f32 v[VECTOR];
                            load_x(v, operand + (u64)m * operand_stride + k + i * STEP);
                            KX_UNROLL
                            for (u32 o = 0; o < OUTPUTS; o++) {
                                KX_UNROLL
                                for (u32 j = 0; j < VECTOR; j++) sums[m][o] = kx_fma(w[o][j], v[j], sums[m][o]);
                            }
                        }
                    }
                }
                if (more) fetch_step(ring[i], weight + i * STEP, ahead + i * STEP, half);
            }
        }
        KX_UNROLL
        for (u32 m = 0; m < ROWS; m++) {
            KX_UNROLL
            for (u32 o = 0; o < OUT_UNIT; o++) {
                f32 sum = kx_wave_sum(sums[m][o]);
#if EPILOGUE == ADD
                sum += kx_shuffle(residual, m * OUT_UNIT + o);
#elif EPILOGUE == SILU_MUL
                sum = kx_silu(sum) * kx_wave_sum(sums[m][o + OUT_UNIT]);
#endif
                // Rows that the last unit shares with the one before it are left to that one.
                if (begin == 0 && m < here && row + o >= unit * OUT_UNIT) {
                    kx_store(args.out + (u64)(first + m) * args.out_stride + row + o, sum);
                }
            }
        }
        unit = next_unit, row = next_row;
    }
}
