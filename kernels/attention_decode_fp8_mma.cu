// Decode attention (attention_decode.h, attention_decode_mma.h) on tensor cores over a cache of eight bits: KV_T is e4m3
// or e5m2. X_T is bf16 or f16; products are of f16, which has all codes. HEAD_DIM is a multiple of 64, QUERIES at most 8.
//
// As in attention_decode_mma.cu, a warp reads the 16 keys and values of a block straight into the fragments of m16n8k16,
// 16 codes of a row at a time (8 of values where HEAD_DIM is not a multiple of 128):
//
//   scores^T [16 keys, 8 queries] = K Q^T     dimensions 64 j + 16 t .. of keys g and g + 8, and of query g
//   out^T [dimensions, 8 queries] = V^T P^T   dimensions 32 WORDS j + 4 WORDS g .. of values 2 t, 2 t + 1, 2 t + 8 and
//                                             2 t + 9
//
// are what lane (g, t) has (g = lane / 4, t = lane % 4). The scales of keys go onto the scores. Those of values belong to
// the weights, which must stay within f16: so the running maximum is that of scores with the exponents of values added,
// with which no weight is above 1, and the sum is of the weights over the scales.
#include "attention_decode_mma.h"

// Words of four codes of a value that a lane reads at once, and how often.
#define WORDS (HEAD_DIM % 128 == 0 ? 4 : 2)
#define VALUE_LOADS (HEAD_DIM / (32 * WORDS))

// Of a warp: one half is read while the next run writes the other. [query, key]
struct Weights {
    KX_ALIGN(16) f16 weights[GROUPS][2][8][KX_BLOCK];
};

// The running softmax of a warp over its blocks, for queries 2 t and 2 t + 1.
struct Sums {
    f32 maximum[2];
    f32 total[2]; // of the lane's keys
    f32 values[VALUE_LOADS][WORDS][2][4]; // [j, w, i]: dimensions 4 w + 2 i of the lane's for both queries, then the next
};

struct Keys {
    u32x4 codes[HEAD_DIM / 64][2];
    u32 scales[2];
};
struct Values {
    u32 codes[VALUE_LOADS][4][WORDS];
    u32 scales[2]; // of values g and g + 8
};

// Rows of a block up to `last`; behind it that one again.
KX_DEV void load_keys(Keys& keys, const KV_T* of_block, const u8* scales, u32 last) {
    const u32 g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    KX_UNROLL
    for (u32 n = 0; n < 2; n++) {
        const u32 key = g + 8 * n < last ? g + 8 * n : last;
        const KV_T* from = of_block + key * HEAD_DIM + t * 16;
        keys.scales[n] = scales[key];
        KX_UNROLL
        for (u32 j = 0; j < HEAD_DIM / 64; j++) keys.codes[j][n] = kx_load_once((const u32x4*)(from + j * 64));
    }
}
KX_DEV void load_values(Values& values, const KV_T* of_block, const u8* scales, u32 last) {
    const u32 g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    KX_UNROLL
    for (u32 n = 0; n < 2; n++) values.scales[n] = scales[g + 8 * n < last ? g + 8 * n : last];
    KX_UNROLL
    for (u32 n = 0; n < 4; n++) {
        const u32 key = 2 * t + n % 2 + n / 2 * 8;
        const KV_T* from = of_block + (key < last ? key : last) * HEAD_DIM + g * (4 * WORDS);
        KX_UNROLL
        for (u32 j = 0; j < VALUE_LOADS; j++) {
            if constexpr (WORDS == 4) {
                const u32x4 codes = kx_load_once((const u32x4*)(from + j * 128));
                values.codes[j][n][0] = codes.x, values.codes[j][n][1] = codes.y;
                values.codes[j][n][2] = codes.z, values.codes[j][n][3] = codes.w;
            } else {
                const u32x2 codes = kx_load((const u32x2*)(from + j * 64));
                values.codes[j][n][0] = codes.x, values.codes[j][n][1] = codes.y;
            }
        }
    }
}

// Four codes as two pairs of f16.
struct Pairs {
    u32 low, high;
};
KX_DEV Pairs pairs_of(u32 codes) {
    return Pairs{kx_fp8_halves(codes & 0xffffu, KV_T()), kx_fp8_halves(codes >> 16, KV_T())};
}

// scores: [2 keys, 2 queries] of the lane, without scales. q: the pairs of each word of four dimensions.
KX_DEV void score(f32 scores[4], const Keys& keys, const Pairs q[HEAD_DIM / 64][4]) {
    // Two sums, so that a product needs not wait for the one before.
    f32 sums[2][4];
    KX_UNROLL
    for (int i = 0; i < 4; i++) sums[0][i] = sums[1][i] = 0.0f;
    KX_UNROLL
    for (u32 j = 0; j < HEAD_DIM / 64; j++) {
        const u32x4 low = keys.codes[j][0], high = keys.codes[j][1];
        const u32 words[4][2] = {{low.x, high.x}, {low.y, high.y}, {low.z, high.z}, {low.w, high.w}};
        KX_UNROLL
        for (u32 w = 0; w < 4; w++) {
            const Pairs a = pairs_of(words[w][0]), b = pairs_of(words[w][1]);
            const u32 left[4] = {a.low, b.low, a.high, b.high}, right[2] = {q[j][w].low, q[j][w].high};
            kx_mma_f16(sums[w % 2], left, right);
        }
    }
    KX_UNROLL
    for (int i = 0; i < 4; i++) scores[i] = sums[0][i] + sums[1][i];
}

// The codes of dimensions 0 and 1 of two values, or of 2 and 3: each dimension's side by side.
KX_DEV u32 lower_codes(u32 a, u32 b) { return kx_bytes<0, 4, 1, 5>(a, b); }
KX_DEV u32 upper_codes(u32 a, u32 b) { return kx_bytes<2, 6, 3, 7>(a, b); }

KX_DEV void add_values(Sums& sums, const Values& values, const u32 weights[2]) {
    KX_UNROLL
    for (u32 j = 0; j < VALUE_LOADS; j++) {
        KX_UNROLL
        for (u32 w = 0; w < WORDS; w++) {
            const u32 a = values.codes[j][0][w], b = values.codes[j][1][w];
            const u32 c = values.codes[j][2][w], d = values.codes[j][3][w];
            const Pairs first[2] = {pairs_of(lower_codes(a, b)), pairs_of(upper_codes(a, b))};
            const Pairs second[2] = {pairs_of(lower_codes(c, d)), pairs_of(upper_codes(c, d))};
            KX_UNROLL
            for (u32 i = 0; i < 2; i++) {
                const u32 left[4] = {first[i].low, first[i].high, second[i].low, second[i].high};
                kx_mma_f16(sums.values[j][w][i], left, weights);
            }
        }
    }
}

// Scores become weights in shared memory, factor what was summed before is to be multiplied with. `left`: keys from the
// lane's first to the end of the part, at most.
KX_DEV void soften(
    Weights& shared, Sums& sums, f32 factor[2], const f32 scores[4], const f32 key_scales[2], const u32 value_scales[2],
    u32 left, u32 half
) {
    const u32 warp = kx_tid() / 32, g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    f32 exponents[2], inverses[2];
    KX_UNROLL
    for (int k = 0; k < 2; k++) {
        exponents[k] = (f32)value_scales[k] - 127.0f;
        inverses[k] = kx_scale_inverse(value_scales[k]);
    }
    KX_UNROLL
    for (u32 n = 0; n < 2; n++) {
        const f32 low = left > 0 ? kx_fma(scores[n], key_scales[0], exponents[0]) : MASKED;
        const f32 high = left > 8 ? kx_fma(scores[n + 2], key_scales[1], exponents[1]) : MASKED;
        const f32 maximum = kx_max(sums.maximum[n], max_over_keys(kx_max(low, high)));
        const f32 low_weight = kx_exp2(low - maximum), high_weight = kx_exp2(high - maximum);
        factor[n] = kx_exp2(sums.maximum[n] - maximum);
        sums.total[n] = kx_fma(sums.total[n], factor[n], low_weight * inverses[0] + high_weight * inverses[1]);
        sums.maximum[n] = maximum;
        kx_store(&shared.weights[warp][half][2 * t + n][g], low_weight);
        kx_store(&shared.weights[warp][half][2 * t + n][g + 8], high_weight);
    }
    kx_sync_wave();
}

KX_DEV void attend(const AttentionDecodeArgs& args, Weights& shared, const Part& part, Sums& sums) {
    const u32 warp = kx_tid() / 32, g = kx_tid() % 32 / 4, t = kx_tid() % 4;
    const u32 kv_head = part.unit * QUERIES / (HEADS / KV_HEADS);

    Pairs q[HEAD_DIM / 64][4];
    const X_T* from = args.q + (u64)part.row * args.q_stride + (part.unit * QUERIES + (g < QUERIES ? g : 0)) * HEAD_DIM;
    KX_UNROLL
    for (u32 j = 0; j < HEAD_DIM / 64; j++) {
        KX_UNROLL
        for (u32 half = 0; half < 2; half++) {
            f32 numbers[8];
            kx_load8(numbers, from + j * 64 + t * 16 + half * 8);
            KX_UNROLL
            for (int i = 0; i < 8; i++) numbers[i] = g < QUERIES ? numbers[i] : 0.0f;
            KX_UNROLL
            for (int w = 0; w < 2; w++) {
                q[j][2 * half + w].low = kx_f16_pair_finite(numbers[4 * w], numbers[4 * w + 1]);
                q[j][2 * half + w].high = kx_f16_pair_finite(numbers[4 * w + 2], numbers[4 * w + 3]);
            }
        }
    }
    KX_UNROLL
    for (int n = 0; n < 2; n++) sums.maximum[n] = NO_MAXIMUM, sums.total[n] = 0.0f;
    f32* all = &sums.values[0][0][0][0];
    KX_UNROLL
    for (u32 i = 0; i < HEAD_DIM / 4; i++) all[i] = 0.0f;

    u32 start = part.begin + warp * KX_BLOCK;
    if (start >= part.end) return;
    Keys keys;
    Values values;
    const u8* scales_of = (const u8*)args.cache;
    const u32 block = kv_block(part.blocks, start);
    load_keys(keys, args.cache + kv_keys(block, kv_head), scales_of + kv_scales(block, kv_head), part.end - 1 - start);
    load_values(
        values, args.cache + kv_keys(block, kv_head) + KV_VALUES, scales_of + kv_scales(block, kv_head) + KV_VALUE_SCALES,
        part.end - 1 - start
    );
    for (u32 half = 0;; half ^= 1) {
        const u32 next = start + GROUPS * KX_BLOCK;
        const bool more = next < part.end;
        u32 next_block = 0;
        if (more) next_block = kv_block(part.blocks, next);

        f32 scores[4], factor[2];
        score(scores, keys, q);
        const u64 next_at = kv_keys(next_block, kv_head), next_scales = kv_scales(next_block, kv_head);
        f32 key_scales[2];
        KX_UNROLL
        for (int k = 0; k < 2; k++) key_scales[k] = kx_scale_factor(keys.scales[k]) * args.scale;
        if (more) load_keys(keys, args.cache + next_at, scales_of + next_scales, part.end - 1 - next);

        const u32 left = start + g < part.end ? part.end - start - g : 0;
        soften(shared, sums, factor, scores, key_scales, values.scales, left, half);
        const u32* of_query = (const u32*)shared.weights[warp][half][g];
        const u32 weights[2] = {of_query[t], of_query[t + 4]};
        KX_UNROLL
        for (u32 j = 0; j < VALUE_LOADS; j++) {
            KX_UNROLL
            for (u32 w = 0; w < WORDS; w++) {
                KX_UNROLL
                for (int i = 0; i < 2; i++) {
                    sums.values[j][w][i][0] *= factor[0], sums.values[j][w][i][1] *= factor[1];
                    sums.values[j][w][i][2] *= factor[0], sums.values[j][w][i][3] *= factor[1];
                }
            }
        }
        add_values(sums, values, weights);
        if (!more) break;
        load_values(
            values, args.cache + next_at + KV_VALUES, scales_of + next_scales + KV_VALUE_SCALES, part.end - 1 - next
        );
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
        for (u32 j = 0; j < VALUE_LOADS; j++) {
            KX_UNROLL
            for (u32 w = 0; w < WORDS; w++) {
                f32x4 values;
                values.x = sums.values[j][w][0][n] * factor, values.y = sums.values[j][w][0][n + 2] * factor;
                values.z = sums.values[j][w][1][n] * factor, values.w = sums.values[j][w][1][n + 2] * factor;
                *(f32x4*)&room.values[warp][query][j * (32 * WORDS) + g * (4 * WORDS) + w * 4] = values;
            }
        }
    }
    kx_sync();
}

KX_KERNEL(attention_decode_fp8_mma, AttentionDecodeArgs, THREADS) {
    KX_SHARED Room room;
    KX_SHARED Weights shared;
    attend_to_parts<Sums>(args, room, shared);
}
