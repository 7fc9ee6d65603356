// What the kernels of decode attention on tensor cores share. A warp works on the 16 keys of a block, with queries 2 t and
// 2 t + 1 in lane (g, t) = (lane / 4, lane % 4).
#pragma once
#define GROUPS (THREADS / KX_WAVE)
#define RUN KX_BLOCK
#include "attention_decode.h"

// Over the lanes that have the same t.
KX_DEV f32 max_over_keys(f32 v) {
    v = kx_max(v, kx_shuffle_xor<4>(v));
    v = kx_max(v, kx_shuffle_xor<8>(v));
    return kx_max(v, kx_shuffle_xor<16>(v));
}
KX_DEV f32 sum_over_keys(f32 v) {
    v += kx_shuffle_xor<4>(v);
    v += kx_shuffle_xor<8>(v);
    return v + kx_shuffle_xor<16>(v);
}

// Leaves the maximum and the sum of each query of the warp in the room; behind it all warps have.
KX_DEV void gather_totals(Room& room, const f32 maximum[2], const f32 total[2]) {
    const u32 warp = kx_tid() / 32, g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    KX_UNROLL
    for (u32 n = 0; n < 2; n++) {
        const f32 of_query = sum_over_keys(total[n]);
        if (g > 0 || 2 * t + n >= QUERIES) continue;
        room.maxima[warp][2 * t + n] = maximum[n];
        room.totals[warp][2 * t + n] = of_query;
    }
    kx_sync();
}
