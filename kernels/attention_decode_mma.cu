// Decode attention (attention_decode.h, attention_decode_mma.h) on tensor cores. X_T and KV_T are bf16 or f16, and the
// same; MMA is its product. HEAD_DIM is a multiple of 64, QUERIES at most 8.
//
// A warp reads the 16 keys and values of a block straight into the fragments of m16n8k16, with no way through shared
// memory, since a sum over dimensions may go in any order, and the result may have its dimensions in any order too:
//
//   scores^T [16 keys, 8 queries] = K Q^T     dimensions 32 j + 8 t .. of keys g and g + 8, and of query g
//   out^T [dimensions, 8 queries] = V^T P^T   dimensions 64 j + 8 g .. of values 2 t, 2 t + 1, 2 t + 8 and 2 t + 9
//
// are what lane (g, t) has (g = lane / 4, t = lane % 4): 16 bytes of a row at a time. Only the weights P, 16 x 8,
// change hands.
#include "attention_decode_mma.h"

// Of a warp: one half is read while the next run writes the other. [query, key]
struct Weights {
    KX_ALIGN(16) X_T weights[GROUPS][2][8][KX_BLOCK];
};

// The running softmax of a warp over its blocks, for queries 2 t and 2 t + 1.
struct Sums {
    f32 maximum[2];
    f32 total[2];                   // of the lane's keys
    f32 values[HEAD_DIM / 64][4][4]; // [j, i]: dimensions 64 j + 8 g + 2 i of both queries, then the next of both
};

struct Keys {
    u32x4 rows[HEAD_DIM / 32][2];
};
struct Values {
    u32x4 rows[HEAD_DIM / 64][4];
};

// Rows of a block up to `last`; behind it that one again.
KX_DEV void load_keys(Keys& keys, const KV_T* of_block, u32 last) {
    const u32 g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    KX_UNROLL
    for (u32 n = 0; n < 2; n++) {
        const u32 key = g + 8 * n;
        const KV_T* from = of_block + (key < last ? key : last) * HEAD_DIM + t * 8;
        KX_UNROLL
        for (u32 j = 0; j < HEAD_DIM / 32; j++) keys.rows[j][n] = kx_load_once((const u32x4*)(from + j * 32));
    }
}
KX_DEV void load_values(Values& values, const KV_T* of_block, u32 last) {
    const u32 g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    KX_UNROLL
    for (u32 n = 0; n < 4; n++) {
        const u32 key = 2 * t + n % 2 + n / 2 * 8;
        const KV_T* from = of_block + (key < last ? key : last) * HEAD_DIM + g * 8;
        KX_UNROLL
        for (u32 j = 0; j < HEAD_DIM / 64; j++) values.rows[j][n] = kx_load_once((const u32x4*)(from + j * 64));
    }
}

// Elements of one dimension of two keys side by side, from words that have two dimensions of a key each.
KX_DEV u32 low_halves(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
KX_DEV u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }

KX_DEV void add_word(f32 out[4], u32 a, u32 b, u32 c, u32 d, const u32 weights[2]) {
    const u32 left[4] = {low_halves(a, b), high_halves(a, b), low_halves(c, d), high_halves(c, d)};
    MMA(out, left, weights);
}

// scores: [2 keys, 2 queries] of the lane.
KX_DEV void score(f32 scores[4], const Keys& keys, const u32x4 q[HEAD_DIM / 32]) {
    // Two sums, so that a product needs not wait for the one before.
    f32 even[4] = {0.0f, 0.0f, 0.0f, 0.0f}, odd[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    KX_UNROLL
    for (u32 j = 0; j < HEAD_DIM / 32; j++) {
        const u32x4 low = keys.rows[j][0], high = keys.rows[j][1];
        const u32 left[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
        const u32 right[2][2] = {{q[j].x, q[j].y}, {q[j].z, q[j].w}};
        MMA(even, left[0], right[0]);
        MMA(odd, left[1], right[1]);
    }
    KX_UNROLL
    for (int i = 0; i < 4; i++) scores[i] = even[i] + odd[i];
}

KX_DEV void add_values(Sums& sums, const Values& values, const u32 weights[2]) {
    KX_UNROLL
    for (u32 j = 0; j < HEAD_DIM / 64; j++) {
        const u32x4 a = values.rows[j][0], b = values.rows[j][1], c = values.rows[j][2], d = values.rows[j][3];
        add_word(sums.values[j][0], a.x, b.x, c.x, d.x, weights);
        add_word(sums.values[j][1], a.y, b.y, c.y, d.y, weights);
        add_word(sums.values[j][2], a.z, b.z, c.z, d.z, weights);
        add_word(sums.values[j][3], a.w, b.w, c.w, d.w, weights);
    }
}

KX_DEV void attend(const AttentionDecodeArgs& args, Weights& shared, const Part& part, Sums& sums) {
    const u32 warp = kx_tid() / 32, g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    const u32 kv_head = part.unit * QUERIES / (HEADS / KV_HEADS);

    u32x4 q[HEAD_DIM / 32];
    const X_T* from = args.q + (u64)part.row * args.q_stride + (part.unit * QUERIES + (g < QUERIES ? g : 0)) * HEAD_DIM;
    KX_UNROLL
    for (u32 j = 0; j < HEAD_DIM / 32; j++) {
        q[j] = kx_load((const u32x4*)(from + j * 32 + t * 8));
        if (g >= QUERIES) q[j] = u32x4{0, 0, 0, 0};
    }
    KX_UNROLL
    for (int n = 0; n < 2; n++) sums.maximum[n] = NO_MAXIMUM, sums.total[n] = 0.0f;
    KX_UNROLL
    for (u32 j = 0; j < HEAD_DIM / 64; j++) {
        KX_UNROLL
        for (int i = 0; i < 16; i++) sums.values[j][i / 4][i % 4] = 0.0f;
    }

    u32 start = part.begin + warp * KX_BLOCK;
    if (start >= part.end) return;
    Keys keys;
    Values values;
    const u64 at = kv_keys(kv_block(part.blocks, start), kv_head);
    load_keys(keys, args.cache + at, part.end - 1 - start);
    load_values(values, args.cache + at + KV_VALUES, part.end - 1 - start);
    for (u32 half = 0;; half ^= 1) {
        const u32 next = start + GROUPS * KX_BLOCK;
        const bool more = next < part.end;
        u32 next_block = 0;
        if (more) next_block = kv_block(part.blocks, next);

        f32 scores[4];
        score(scores, keys, q);
        const u64 next_at = kv_keys(next_block, kv_head);
        if (more) load_keys(keys, args.cache + next_at, part.end - 1 - next);

        f32 factor[2];
        KX_UNROLL
        for (u32 n = 0; n < 2; n++) {
            const f32 low = start + g < part.end ? scores[n] * args.scale : MASKED;
            const f32 high = start + g + 8 < part.end ? scores[n + 2] * args.scale : MASKED;
            const f32 maximum = kx_max(sums.maximum[n], max_over_keys(kx_max(low, high)));
            const f32 low_weight = kx_exp2(low - maximum), high_weight = kx_exp2(high - maximum);
            factor[n] = kx_exp2(sums.maximum[n] - maximum);
            sums.total[n] = kx_fma(sums.total[n], factor[n], low_weight + high_weight);
            sums.maximum[n] = maximum;
            kx_store(&shared.weights[warp][half][2 * t + n][g], low_weight);
            kx_store(&shared.weights[warp][half][2 * t + n][g + 8], high_weight);
        }
        kx_sync_wave();
        KX_UNROLL
        for (u32 j = 0; j < HEAD_DIM / 64; j++) {
            KX_UNROLL
            for (int i = 0; i < 4; i++) {
                sums.values[j][i][0] *= factor[0], sums.values[j][i][1] *= factor[1];
                sums.values[j][i][2] *= factor[0], sums.values[j][i][3] *= factor[1];
            }
        }
        const u32* of_query = (const u32*)shared.weights[warp][half][g];
        const u32 weights[2] = {of_query[t], of_query[t + 4]};
        add_values(sums, values, weights);
        if (!more) break;
        load_values(values, args.cache + next_at + KV_VALUES, part.end - 1 - next);
        start = next;
    }
}

// Leaves the sums of all warps in the room.
KX_DEV void gather(Room& room, const Sums& sums) {
    const u32 warp = kx_tid() / 32, g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    gather_totals(room, sums.maximum, sums.total);
    KX_UNROLL
    for (u32 n = 0; n < 2; n++) {
        const u32 query = 2 * t + n;
        if (query >= QUERIES) continue;
        const f32 factor = kx_exp2(sums.maximum[n] - maximum_of(room, query));
        KX_UNROLL
        for (u32 j = 0; j < HEAD_DIM / 64; j++) {
            f32 values[8];
            KX_UNROLL
            for (int i = 0; i < 4; i++) {
                values[2 * i] = sums.values[j][i][n] * factor;
                values[2 * i + 1] = sums.values[j][i][n + 2] * factor;
            }
            kx_store8(&room.values[warp][query][j * 64 + g * 8], values);
        }
    }
    kx_sync();
}

KX_KERNEL(attention_decode_mma, AttentionDecodeArgs, THREADS) {
    KX_SHARED Room room;
    KX_SHARED Weights shared;
    attend_to_parts<Sums>(args, room, shared);
}
