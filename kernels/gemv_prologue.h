// The prologues of products of few rows (gemv_around.h). A kernel that has one defines, before it includes this file,
// OPERAND_T, KEPT_COLUMNS (at least INPUTS; zeros behind them) and KEPT(m, k), where element k of row m is kept, k a
// multiple of PROLOGUE_VECTOR. Before it waits for the previous kernel it calls prepare, then make; a barrier must follow.
#pragma once
#include "gemv_around.h"

// The rows of x that a block takes: `here` of them, none where all of its rows are padding.
struct Source {
    const X_T* x;
    const GATE_T* gate;
    u32 x_stride, gate_stride, here;
    f32 eps;
};
KX_DEV bool has_row(const Source& source, u32 m) { return m < source.here; }

// Zeros where a row of the operand has ended.
KX_DEV void fill_up(OPERAND_T* kept) {
    if constexpr (KEPT_COLUMNS > INPUTS) {
        f32 zeros[PROLOGUE_VECTOR] = {};
        for (u32 m = 0; m < ROWS; m++) {
            for (u32 k = INPUTS + kx_tid() * PROLOGUE_VECTOR; k < KEPT_COLUMNS; k += THREADS * PROLOGUE_VECTOR) {
                kx_store_vector(kept + KEPT(m, k), zeros);
            }
        }
    }
}

#if PROLOGUE == RMS_NORM
struct Prologue {
    const f32* norm;
};

// The weights of the norm: copied to shared memory, since there are no registers to hold them in.
KX_DEV void prepare(Prologue& prologue, const Around& around, f32* room) {
#if PROLOGUE_VECTOR == 8
    for (u32 k = kx_tid() * 4; k < INPUTS; k += THREADS * 4) kx_copy_async16(room + k, around.norm + k, true);
    kx_copy_commit();
    prologue.norm = room;
#else
    prologue.norm = around.norm;
#endif
}

// Rows are read twice, the second time from the nearest cache.
KX_DEV void make(const Prologue& prologue, OPERAND_T* kept, const Source& source) {
    KX_SHARED f32 squares[ROWS][THREADS / KX_WAVE];
    KX_UNROLL
    for (u32 m = 0; m < ROWS; m++) {
        f32 sum = 0.0f;
        if (has_row(source, m)) {
            KX_UNROLL_BY(4)
            for (u32 k = kx_tid() * PROLOGUE_VECTOR; k < INPUTS; k += THREADS * PROLOGUE_VECTOR) {
                f32 x[PROLOGUE_VECTOR];
                kx_load_vector(x, source.x + (u64)m * source.x_stride + k);
                KX_UNROLL
                for (u32 i = 0; i < PROLOGUE_VECTOR; i++) sum = kx_fma(x[i], x[i], sum);
            }
        }
        sum = kx_wave_sum(sum);
        if (kx_tid() % KX_WAVE == 0) squares[m][kx_tid() / KX_WAVE] = sum;
    }
    kx_copy_wait<0>();
    kx_sync();
    fill_up(kept);
    KX_UNROLL
    for (u32 m = 0; m < ROWS; m++) {
        f32 sum = 0.0f;
        KX_UNROLL
        for (u32 wave = 0; wave < THREADS / KX_WAVE; wave++) sum += squares[m][wave];
        const f32 scale = kx_rsqrt(sum * (1.0f / INPUTS) + source.eps);
        KX_UNROLL_BY(2)
        for (u32 k = kx_tid() * PROLOGUE_VECTOR; k < INPUTS; k += THREADS * PROLOGUE_VECTOR) {
            f32 x[PROLOGUE_VECTOR], norm[PROLOGUE_VECTOR];
            kx_load_vector(norm, prologue.norm + k);
            KX_UNROLL
            for (u32 i = 0; i < PROLOGUE_VECTOR; i++) x[i] = 0.0f;
            if (has_row(source, m)) kx_load_vector(x, source.x + (u64)m * source.x_stride + k);
            KX_UNROLL
            for (u32 i = 0; i < PROLOGUE_VECTOR; i++) x[i] = x[i] * scale * (1.0f + norm[i]);
            kx_store_vector(kept + KEPT(m, k), x);
        }
    }
}

#elif PROLOGUE == GATED_RMS_NORM
#define HEAD_DIM (INPUTS / HEADS)
#define HEAD_PARTS ((HEAD_DIM + PROLOGUE_VECTOR - 1) / PROLOGUE_VECTOR)
// Lanes that take a head of a row: a power of two up to 32.
#define HEAD_LANES \
    (HEAD_PARTS > 16 ? 32 : HEAD_PARTS > 8 ? 16 : HEAD_PARTS > 4 ? 8 : HEAD_PARTS > 2 ? 4 : HEAD_PARTS > 1 ? 2 : 1)
#define HEAD_ITEMS ((HEAD_PARTS + HEAD_LANES - 1) / HEAD_LANES)
#define HEAD_GROUPS (THREADS / HEAD_LANES)
#define TURNS ((ROWS * HEADS + HEAD_GROUPS - 1) / HEAD_GROUPS)

// The weights of what this lane has of every head.
struct Prologue {
    f32 norm[HEAD_ITEMS][PROLOGUE_VECTOR];
};

KX_DEV void prepare(Prologue& prologue, const Around& around, f32*) {
    KX_UNROLL
    for (u32 item = 0; item < HEAD_ITEMS; item++) {
        const u32 element = (item * HEAD_LANES + kx_tid() % HEAD_LANES) * PROLOGUE_VECTOR;
        if (element < HEAD_DIM) kx_load_vector(prologue.norm[item], around.norm + element);
    }
}

KX_DEV void make(const Prologue& prologue, OPERAND_T* kept, const Source& source) {
    fill_up(kept);
    KX_UNROLL_BY(2)
    for (u32 turn = 0; turn < TURNS; turn++) {
        const u32 unit = turn * HEAD_GROUPS + kx_tid() / HEAD_LANES, m = unit / HEADS;
        const u32 first = unit % HEADS * HEAD_DIM + kx_tid() % HEAD_LANES * PROLOGUE_VECTOR;
        const u32 end = (unit % HEADS + 1) * HEAD_DIM;
        const bool exists = m < ROWS && has_row(source, m);
        f32 x[HEAD_ITEMS][PROLOGUE_VECTOR], gate[HEAD_ITEMS][PROLOGUE_VECTOR], sum = 0.0f;
        KX_UNROLL
        for (u32 item = 0; item < HEAD_ITEMS; item++) {
            const u32 k = first + item * HEAD_LANES * PROLOGUE_VECTOR;
            if (exists && k < end) {
                kx_load_vector(x[item], source.x + (u64)m * source.x_stride + k);
                kx_load_vector(gate[item], source.gate + (u64)m * source.gate_stride + k);
            } else {
                KX_UNROLL
                for (u32 i = 0; i < PROLOGUE_VECTOR; i++) x[item][i] = gate[item][i] = 0.0f;
            }
            KX_UNROLL
            for (u32 i = 0; i < PROLOGUE_VECTOR; i++) sum = kx_fma(x[item][i], x[item][i], sum);
        }
        const f32 factor = kx_rsqrt(kx_group_sum<HEAD_LANES>(sum) * (1.0f / HEAD_DIM) + source.eps);
        KX_UNROLL
        for (u32 item = 0; item < HEAD_ITEMS; item++) {
            const u32 k = first + item * HEAD_LANES * PROLOGUE_VECTOR;
            if (m >= ROWS || k >= end) continue;
            KX_UNROLL
            for (u32 i = 0; i < PROLOGUE_VECTOR; i++) {
                x[item][i] = prologue.norm[item][i] * (x[item][i] * factor) * kx_silu(gate[item][i]);
            }
            kx_store_vector(kept + KEPT(m, k), x[item]);
        }
    }
}

#endif
