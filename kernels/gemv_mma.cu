// The product of few rows with a matrix, out[m, n] = sum_k x[m, k] weight[n, k], m < ROWS <= 8, on tensor cores.
//
// x: [rows, INPUTS] T and out: [rows, outputs] OUT_T with row strides in elements; weight: [outputs, INPUTS] T without
// gaps; T is bf16 or f16. Sums are f32. Rows of x and of the matrix begin at multiples of 16 bytes, INPUTS is a multiple
// of 8, outputs is at least UNIT. Grid: (any, 1, rows / ROWS).
//
// The time is that of reading the weights, each once, so everything serves to keep loads in flight. A block takes a unit
// of UNIT = 4 GROUPS rows of the matrix, then the one a grid further. Its waves share the columns: a wave has a slice of
// SLICE times 64 of them, and the partial sums of the waves are added through shared memory, always in the same order.
// A load is 16 bytes of each lane: 4 rows of 64 columns, which are whole cache lines. A wave holds DEPTH loads in
// registers and puts the next where it has just used one, across the end of a unit; the first DEPTH are on their way
// before the previous kernel has ended.
//
// mma.m16n8k16 takes what was loaded as its columns, where lane (g, t) = (lane / 4, lane % 4) must hold a part of column
// g. The lane has loaded part t of half g % 2 of row g / 2 of the matrix: so column g is that half of that row. Rows 0 to
// 7 of the other operand are the first halves of x, rows 8 to 15 the second ones; of the products, those of first with
// first and of second with second halves are wanted, and the lane has both: d[0] + d[3] belong to row g of x and row t of
// the matrix. Which k the instruction thinks a value has doesn't matter as both operands agree: the first four of a
// lane's eight values go through one instruction, the others through the next.
//
// Sums depend on INPUTS, SLICE and THREADS, not on ROWS, GROUPS, DEPTH or the grid: a row's result is the same whatever
// else is in the step.
//
// The ops before and behind the product can be part of it (gemv_around.h). With SILU_MUL two of the four rows of a load are
// of the first half of the matrix, the others the same rows of its second half.
//
// Defines: T, MMA (kx_mma_bf16 or kx_mma_f16), OUT_T, INPUTS, ROWS, SLICE, GROUPS, DEPTH (divides SLICE * GROUPS),
// THREADS, KX_RESIDENT, those of gemv_around.h. Dynamic shared memory: WAVES * ROWS * SLICE_STRIDE T, then
// 2 * WAVES * ROWS * UNIT f32, then what a prologue needs.
#include "gemv_around.h"

#define WAVES (THREADS / KX_WAVE)
#define UNIT (4 * GROUPS)
#define LOADS (SLICE * GROUPS)
// 64 bytes more than a multiple of 128, so that neighbouring rows lie in different halves of the banks.
#define SLICE_STRIDE (SLICE * 64 + (ROWS > 1 ? 32 : 0))

static_assert(LOADS % DEPTH == 0, "the ring must be whole at the end of a unit");
static_assert(SLICE * 64 * WAVES >= INPUTS && INPUTS % 8 == 0, "the slices must cover the columns");
static_assert(ROWS <= 8, "the instruction has eight rows for either half of x");

#ifndef X_T
#define X_T T
#endif

// Outputs of a unit.
#if EPILOGUE == SILU_MUL
#define OUT_UNIT (UNIT / 2)
#else
#define OUT_UNIT UNIT
#endif
static_assert(EPILOGUE == 0 || ROWS * OUT_UNIT <= THREADS, "a thread has one output at most");

struct GemvArgs {
    const u32* rows; // one number: how many rows x has
    const X_T* x;
    const T* weight;
    OUT_T* out;
    u32 x_stride, out_stride, outputs, padding;
#if PROLOGUE || EPILOGUE
    Around around;
#endif
};

#if PROLOGUE
#define OPERAND_T T
#define KEPT_COLUMNS (WAVES * SLICE * 64)
#define KEPT(m, k) ((k) / (SLICE * 64) * (ROWS * SLICE_STRIDE) + (m) * SLICE_STRIDE + (k) % (SLICE * 64))
#include "gemv_prologue.h"
#endif

KX_DEV u32 least(u32 a, u32 b) { return a < b ? a : b; }

// Load `index` of a unit whose first row, at this lane's place, is `from`; zeros behind the end of the row.
KX_DEV u32x4 fetch(const T* from, u32 index, u32 column) {
    const u32 offset = index / GROUPS * 64;
    if (SLICE * 64 * WAVES != INPUTS && column + offset >= INPUTS) return u32x4{0, 0, 0, 0};
    return kx_load_stream((const u32x4*)(from + index % GROUPS * ((u32)OUT_UNIT / GROUPS * INPUTS) + offset));
}

KX_KERNEL(gemv_mma, GemvArgs, THREADS) {
    KX_DYNAMIC_SHARED(T, shared);
    f32* const partial = (f32*)(shared + WAVES * ROWS * SLICE_STRIDE);
    kx_let_next_start();
    const u32 lane = kx_tid() % KX_WAVE, wave = kx_tid() / KX_WAVE, g = lane / 4, t = lane % 4;
    const u32 begin = wave * (SLICE * 64), column = begin + lane % 8 * 8;
    const u32 units = (args.outputs + OUT_UNIT - 1) / OUT_UNIT;
    // The last unit begins earlier where it would have less than UNIT rows.
    const u32 last_row = args.outputs - OUT_UNIT;
#if EPILOGUE == SILU_MUL
    const T* const own_half = args.weight + lane / 16 * ((u64)args.outputs * INPUTS);
    const T* const lane_weight = own_half + lane / 8 % 2 * INPUTS + column;
#else
    const T* const lane_weight = args.weight + lane / 8 * INPUTS + column;
#endif

    u32 unit = kx_block_x();
    u32 row = least(unit * OUT_UNIT, last_row);
    const T* weight = lane_weight + (u64)row * INPUTS;
    u32x4 ring[DEPTH];
    if (unit < units) {
        KX_UNROLL
        for (u32 i = 0; i < DEPTH; i++) ring[i] = fetch(weight, i, column);
    }

#if PROLOGUE
    Prologue prologue;
    prepare(prologue, args.around, partial + 2 * WAVES * ROWS * UNIT);
#endif

    const u32 rows = *args.rows, first = kx_block_z() * ROWS;
    kx_wait_for_previous();
    T* const slice = shared + wave * (ROWS * SLICE_STRIDE);
#if PROLOGUE
    const X_T* const x = args.x + (u64)first * args.x_stride;
    const GATE_T* const gate = args.around.gate + (u64)first * args.around.gate_stride;
    const u32 here = rows > first ? rows - first : 0;
    make(prologue, shared, Source{x, gate, args.x_stride, args.around.gate_stride, here, args.around.eps});
    kx_sync();
#else
    KX_UNROLL
    for (u32 m = 0; m < ROWS; m++) {
        const bool exists = first + m < rows;
        for (u32 i = lane; i < SLICE * 8; i += KX_WAVE) {
            const u32 k = begin + i * 8;
            const T* from = args.x + (u64)(first + m) * args.x_stride + k;
            kx_copy_async16(slice + m * SLICE_STRIDE + i * 8, from, exists && k < INPUTS);
        }
    }
    kx_copy_commit();
    kx_copy_wait<0>();
    kx_sync_wave();
#endif

    const T* const lane_x = slice + g * SLICE_STRIDE + t * 8;
    for (u32 turn = 0; unit < units; turn ^= 1) {
        const u32 next_unit = unit + kx_blocks_x();
        const bool more = next_unit < units;
        const u32 next_row = least(next_unit * OUT_UNIT, last_row);
        const T* const next_weight = lane_weight + (u64)next_row * INPUTS;

#if EPILOGUE == ADD
        // On its way while the products are summed.
        f32 residual = 0.0f;
        const u32 residual_m = first + kx_tid() / OUT_UNIT, residual_n = row + kx_tid() % OUT_UNIT;
        if (kx_tid() < ROWS * OUT_UNIT && residual_m < rows && residual_n >= unit * OUT_UNIT) {
            residual = kx_float(args.around.residual[(u64)residual_m * args.around.residual_stride + residual_n]);
        }
#endif
        f32 sums[GROUPS][4];
        KX_UNROLL
        for (u32 group = 0; group < GROUPS; group++) {
            KX_UNROLL
            for (u32 i = 0; i < 4; i++) sums[group][i] = 0.0f;
        }
        u32x4 x0 = {0, 0, 0, 0}, x1 = {0, 0, 0, 0};
        KX_UNROLL
        for (u32 index = 0; index < LOADS; index++) {
            const u32 group = index % GROUPS, slot = index % DEPTH, after = index + DEPTH;
            if (group == 0 && g < ROWS) {
                x0 = kx_load((const u32x4*)(lane_x + index / GROUPS * 64));
                x1 = kx_load((const u32x4*)(lane_x + index / GROUPS * 64 + 32));
            }
            const u32x4 w = ring[slot];
            const u32 a0[4] = {x0.x, x1.x, x0.y, x1.y}, b0[2] = {w.x, w.y};
            MMA(sums[group], a0, b0);
            const u32 a1[4] = {x0.z, x1.z, x0.w, x1.w}, b1[2] = {w.z, w.w};
            MMA(sums[group], a1, b1);
            if (after < LOADS) {
                ring[slot] = fetch(weight, after, column);
            } else if (more) {
                ring[slot] = fetch(next_weight, after - LOADS, column);
            }
        }

        // Two areas by turns: those who read one have passed the barrier before it is written again.
        f32* const area = partial + turn * (WAVES * ROWS * UNIT);
        KX_UNROLL
        for (u32 group = 0; group < GROUPS; group++) {
            if (g < ROWS) area[(wave * ROWS + g) * UNIT + group * 4 + t] = sums[group][0] + sums[group][3];
        }
        kx_sync();
        for (u32 i = kx_tid(); i < ROWS * OUT_UNIT; i += THREADS) {
            const u32 m = i / OUT_UNIT, n = row + i % OUT_UNIT;
#if EPILOGUE == SILU_MUL
            const u32 at = m * UNIT + i % OUT_UNIT / 2 * 4 + i % 2;
#else
            const u32 at = i;
#endif
            f32 sum = 0.0f;
            KX_UNROLL
            for (u32 other = 0; other < WAVES; other++) sum += area[other * (ROWS * UNIT) + at];
#if EPILOGUE == ADD
            sum += residual;
#elif EPILOGUE == SILU_MUL
            f32 up = 0.0f;
            KX_UNROLL
            for (u32 other = 0; other < WAVES; other++) up += area[other * (ROWS * UNIT) + at + 2];
            sum = kx_silu(sum) * up;
#endif
            // Rows that the last unit shares with the one before it are left to that one.
            if (first + m < rows && n >= unit * OUT_UNIT) {
                kx_store(args.out + (u64)(first + m) * args.out_stride + n, sum);
            }
        }
        unit = next_unit, row = next_row, weight = next_weight;
    }
}
