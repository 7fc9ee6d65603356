// Queries and keys normed and rotated as in qk_norm_rope.cu, the keys written with the values into the cache as in
// kv_append.cu, in one pass over a row.
//
// q, q_out: [T, HEADS * HEAD_DIM] X_T and OUT_T, possibly the same; k, v: [T, KV_HEADS * HEAD_DIM] X_T; weights: [HEAD_DIM]
// f32; frequencies: [ROTARY_DIM / 2] f32; the cache is laid out as kv_cache.h says. Keys are rounded to KV_T, nothing else.
// GROUP lanes take a head of a row, eight neighbouring dimensions each: first those of queries, then of keys, then of
// values. Everything is read before the barrier and written behind it.
//
// Defines: X_T, OUT_T, KV_T, HEADS, KV_HEADS, HEAD_DIM, ROTARY_DIM, GROUP, THREADS.
#include "kv_cache.h"
#include "rope.h"

#define GROUPS (THREADS / GROUP)

struct QkNormRopeAppendArgs {
    Step step;
    const X_T* q;
    const X_T* k;
    const X_T* v;
    OUT_T* q_out;
    KV_T* cache;
    const f32* q_weight;
    const f32* k_weight;
    const f32* frequencies;
    u32 q_stride, k_stride, v_stride, q_out_stride;
    f32 eps;
    u32 reserved;
};

KX_KERNEL(qk_norm_rope_append, QkNormRopeAppendArgs, THREADS) {
    KX_SHARED f32 cosines[HALF + 1], sines[HALF + 1];
    kx_let_next_start();
    const u32 row = kx_block_x(), first = kx_tid() % GROUP * 8;
    const u32 head = kx_block_y() * GROUPS + kx_tid() / GROUP;
    const bool of_query = head < HEADS, of_key = !of_query && head < HEADS + KV_HEADS;
    const bool inside = first < HEAD_DIM && head < HEADS + 2 * KV_HEADS;
    const f32* const weights = of_query ? args.q_weight : args.k_weight;
    f32 weight[8], partner_weight[8];
    if (inside) {
        kx_load8(weight, weights + first);
        load_partners(partner_weight, weights, first);
    }
    const bool exists = row < args.step.header->tokens;
    const u32 position = exists ? args.step.row_position[row] : 0;
    const u32 kv_head = of_query ? 0 : (head - HEADS) % KV_HEADS;
    KvPlace place = {0, of_key ? kv_head : KV_HEADS + kv_head, position % KX_BLOCK};
    if (exists && !of_query) {
        const Segment* const segment = args.step.segments + args.step.row_segment[row];
        place.block = kv_block(args.step.block_table + segment->blocks, position);
    }
    for (u32 i = kx_tid(); i < HALF; i += THREADS) {
        sine_cosine((f32)position * args.frequencies[i], &sines[i], &cosines[i]);
    }
    kx_wait_for_previous();
    if (!exists) return;

    const X_T* const from = of_query ? args.q + (u64)row * args.q_stride + head * HEAD_DIM
        : of_key                     ? args.k + (u64)row * args.k_stride + kv_head * HEAD_DIM
                                     : args.v + (u64)row * args.v_stride + kv_head * HEAD_DIM;
    f32 x[8], partner[8];
    KX_UNROLL
    for (u32 i = 0; i < 8; i++) x[i] = partner[i] = 0.0f;
    if (inside) {
        kx_load8(x, from + first);
        load_partners(partner, from, first);
    }
    f32 sum = 0.0f;
    KX_UNROLL
    for (u32 i = 0; i < 8; i++) sum = kx_fma(x[i], x[i], sum);
    const f32 factor = kx_rsqrt(kx_group_sum<GROUP>(sum) / HEAD_DIM + args.eps);
    kx_sync();
    if (inside && (of_query || of_key)) {
        f32 own[8], other[8];
        factors(own, other, weight, partner_weight, first, sines, cosines);
        KX_UNROLL
        for (u32 i = 0; i < 8; i++) x[i] = factor * kx_fma(x[i], own[i], partner[i] * other[i]);
    }
    if (inside && of_query) kx_store8(args.q_out + (u64)row * args.q_out_stride + head * HEAD_DIM + first, x);
    kv_put<GROUP>(args.cache, place, first, x, inside && !of_query);
}
