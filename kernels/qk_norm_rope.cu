// The zero-centred RMS norm of every head, then rotary embedding of its first ROTARY_DIM dimensions:
//
//   y = x rsqrt(mean(x^2) + eps) (1 + weight),   a_i = position frequency_i,   h = ROTARY_DIM / 2
//   out_i     = y_i cos a_i - y_{i+h} sin a_i     i < h
//   out_{i+h} = y_{i+h} cos a_i + y_i sin a_i
//   out_j     = y_j                               j >= 2 h
//
// x: [T, HEADS * HEAD_DIM] X_T, out: the same in OUT_T, possibly x; weight: [HEAD_DIM] f32; frequencies: [h] f32.
// GROUP lanes take a head, eight neighbouring dimensions each; a block takes up to PER_GROUP * THREADS / GROUP heads of
// one row, whose sines it computes once. Everything is read before the barrier and written behind it, so that the
// halves of a pair see each other also in place.
#include "rope.h"

#define GROUPS (THREADS / GROUP)

struct QkNormRopeArgs {
    Step step;
    const X_T* x;
    OUT_T* out;
    const f32* weight;
    const f32* frequencies;
    u32 x_stride;
    u32 out_stride;
    f32 eps;
    u32 reserved;
};

KX_KERNEL(qk_norm_rope, QkNormRopeArgs, THREADS) {
    KX_SHARED f32 cosines[HALF + 1], sines[HALF + 1];
    kx_let_next_start();
    const u32 row = kx_block_x(), lane = kx_tid() % GROUP, group = kx_tid() / GROUP;
    const u32 first = lane * 8;
    const bool inside = first < HEAD_DIM;
    f32 weight[8], partner_weight[8];
    if (inside) {
        kx_load8(weight, args.weight + first);
        load_partners(partner_weight, args.weight, first);
    }
    const bool exists = row < args.step.header->tokens;
    const f32 position = exists ? (f32)args.step.row_position[row] : 0.0f;
    for (u32 i = kx_tid(); i < HALF; i += THREADS) sine_cosine(position * args.frequencies[i], &sines[i], &cosines[i]);
    kx_wait_for_previous();
    if (!exists) return;

    const u32 first_head = kx_block_y() * (GROUPS * PER_GROUP) + group;
    f32 x[PER_GROUP][8], partner[PER_GROUP][8];
    KX_UNROLL
    for (u32 n = 0; n < PER_GROUP; n++) {
        const u32 head = first_head + n * GROUPS;
        const X_T* from = args.x + (u64)row * args.x_stride + head * HEAD_DIM;
        if (inside && head < HEADS) {
            kx_load8(x[n], from + first);
            load_partners(partner[n], from, first);
        } else {
            KX_UNROLL
            for (int i = 0; i < 8; i++) x[n][i] = partner[n][i] = 0.0f;
        }
    }
    kx_sync();

    f32 own[8], other[8];
    if (inside) factors(own, other, weight, partner_weight, first, sines, cosines);
    KX_UNROLL
    for (u32 n = 0; n < PER_GROUP; n++) {
        const u32 head = first_head + n * GROUPS;
        f32 sum = 0.0f;
        KX_UNROLL
        for (int i = 0; i < 8; i++) sum = kx_fma(x[n][i], x[n][i], sum);
        const f32 factor = kx_rsqrt(kx_group_sum<GROUP>(sum) / HEAD_DIM + args.eps);
        if (!inside || head >= HEADS) continue;
        f32 out[8];
        KX_UNROLL
        for (int i = 0; i < 8; i++) out[i] = factor * kx_fma(x[n][i], own[i], partner[n][i] * other[i]);
        kx_store8(args.out + (u64)row * args.out_stride + head * HEAD_DIM + first, out);
    }
}
