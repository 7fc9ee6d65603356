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
#include "step.h"

#define HALF (ROTARY_DIM / 2)
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

// Sine and cosine of an angle in 0 .. 2^22, to 1e-7. Whole quarter turns are taken off with pi / 2 in three parts (Cody
// and Waite), which is exact as long as their number has 22 bits; the rest goes through the polynomials of Cephes'
// sinf. The library's functions take angles above 1e5 through local memory.
KX_DEV void sine_cosine(f32 angle, f32* sine, f32* cosine) {
    const u32 quarters = (u32)kx_fma(angle, 0.636619772367581f, 0.5f);
    const f32 n = (f32)quarters;
    f32 r = kx_fma(-n, 1.5703125f, angle);
    r = kx_fma(-n, 4.837512969970703125e-4f, r);
    r = kx_fma(-n, 7.549789948768648e-8f, r);
    const f32 z = r * r;
    const f32 s = kx_fma(kx_fma(kx_fma(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f) * z, r, r);
    const f32 tail = kx_fma(kx_fma(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
    const f32 c = kx_fma(tail, z * z, kx_fma(-0.5f, z, 1.0f));
    const bool swap = quarters & 1;
    *sine = swap ? c : s;
    *cosine = swap ? s : c;
    if (quarters & 2) *sine = -*sine;
    if ((quarters + 1) & 2) *cosine = -*cosine;
}

// The other halves of the pairs that dimensions first .. first + 8 belong to; zeros for those that are not rotated.
template <class T> KX_DEV void load_partners(f32 out[8], const T* head, u32 first) {
    KX_UNROLL
    for (int i = 0; i < 8; i++) out[i] = 0.0f;
    if constexpr (HALF % 8 == 0) {
        if (first < ROTARY_DIM) kx_load8(out, head + (first < HALF ? first + HALF : first - HALF));
    } else {
        KX_UNROLL
        for (u32 i = 0; i < 8; i++) {
            const u32 j = first + i;
            if (j < ROTARY_DIM) out[i] = kx_float(head[j < HALF ? j + HALF : j - HALF]);
        }
    }
}

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

    // Of every dimension: what it and its partner are multiplied with.
    f32 own[8], other[8];
    if (inside) {
        KX_UNROLL
        for (u32 i = 0; i < 8; i++) {
            const u32 j = first + i, angle = j < HALF ? j : j - HALF;
            const bool rotated = j < ROTARY_DIM;
            own[i] = (1.0f + weight[i]) * (rotated ? cosines[angle] : 1.0f);
            other[i] = rotated ? (1.0f + partner_weight[i]) * (j < HALF ? -sines[angle] : sines[angle]) : 0.0f;
        }
    }
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
