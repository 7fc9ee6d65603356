// Decode attention (attention_decode.h) in f32 arithmetic, for devices without tensor cores and for types and widths
// that these don't take; attention_decode_mma.cu is the one to use elsewhere.
//
// GROUP lanes read a key or a value, eight dimensions each, KEYS of them at a time, which lie in one block; every group
// keeps sums of its own, in registers. The next keys are on their way while the values of the last are added up.
#define GROUPS (THREADS / GROUP)
#define RUN KEYS
#include "attention_decode.h"

// Scores of a run of a group. They are dealt out to its lanes: each gets DEALT of them, or SAME lanes get the same.
#define SCORES (KEYS * PADDED)
#define DEALT (SCORES > GROUP ? SCORES / GROUP : 1)
#define SAME (SCORES < GROUP ? GROUP / SCORES : 1)
// Lanes of a group whose scores are of the same key; they lie side by side.
#define KEY_LANES (GROUP / KEYS)

// For the lanes of a group to see each other's weights: one half is read while the next run writes the other.
struct Weights {
    KX_ALIGN(16) f32 weights[GROUPS][2][SCORES];
    f32 rescale[GROUPS][2][PADDED];
};

// Sums N values over the 2 M lanes of a group and deals the sums out: the upper half of the lanes goes on with the
// upper half of the values.
template <int N, int M> struct Deal {
    static KX_DEV_MEMBER void sum(f32* v, u32 lane) {
        if constexpr (M > 0 && N > 1) {
            const bool upper = lane & M;
            KX_UNROLL
            for (int i = 0; i < N / 2; i++) {
                const f32 mine = upper ? v[i + N / 2] : v[i], theirs = upper ? v[i] : v[i + N / 2];
                v[i] = mine + kx_shuffle_xor<M>(theirs);
            }
            Deal<N / 2, M / 2>::sum(v, lane);
        } else if constexpr (M > 0) {
            v[0] = KxWave<M>::sum(v[0]);
        }
    }
};

// Over the lanes of a group that have scores of the same query.
template <int M> KX_DEV f32 max_over_keys(f32 v) {
    if constexpr (M >= KEY_LANES && M > 0) return max_over_keys<M / 2>(kx_max(v, kx_shuffle_xor<M>(v)));
    return v;
}
template <int M> KX_DEV f32 sum_over_keys(f32 v) {
    if constexpr (M >= KEY_LANES && M > 0) return sum_over_keys<M / 2>(v + kx_shuffle_xor<M>(v));
    return v;
}
// Over the groups of a wave.
template <int M> KX_DEV f32 sum_over_groups(f32 v) {
    if constexpr (M < KX_WAVE) return sum_over_groups<2 * M>(v + kx_shuffle_xor<M>(v));
    return v;
}

// KEYS keys or values from `start` on, which lie in one block; behind `last` those of `last`.
KX_DEV void load_run(KvEight<KV_T> out[KEYS], const KV_T* of_block, u32 start, u32 last) {
    KX_UNROLL
    for (u32 k = 0; k < KEYS; k++) {
        const u32 position = start + k < last ? start + k : last;
        out[k] = kv_load(of_block + position % KX_BLOCK * HEAD_DIM);
    }
}

// The scales of the key and the value whose scores a lane gets; without scales, ones.
struct Scales {
    f32 key;
    f32 value;
};
KX_DEV Scales load_scales(const AttentionDecodeArgs& args, u32 block, u32 kv_head, u32 position) {
    if constexpr (KV_SCALED) {
        const u8* from = (const u8*)args.cache + kv_scales(block, kv_head) + position % KX_BLOCK;
        return Scales{kx_scale_factor(from[0]), kx_scale_factor(from[KV_VALUE_SCALES])};
    } else {
        return Scales{1.0f, 1.0f};
    }
}

// The running softmax of a group over its runs of the part.
struct Sums {
    f32 maximum[DEALT]; // of the queries whose scores the lane gets
    f32 total[DEALT];   // of the lane's keys
    f32 values[QUERIES][8];
};

KX_DEV void attend(const AttentionDecodeArgs& args, Weights& shared, const Part& part, Sums& sums) {
    const u32 lane = kx_tid() % GROUP, group = kx_tid() / GROUP;
    const bool inside = lane * 8 < HEAD_DIM;
    const u32 first = inside ? lane * 8 : 0;
    const u32 kv_head = part.unit * QUERIES / (HEADS / KV_HEADS);
    const KV_T* keys_of = args.cache + first;
    const KV_T* values_of = keys_of + KV_VALUES;

    f32 q[QUERIES][8];
    KX_UNROLL
    for (u32 g = 0; g < QUERIES; g++) {
        kx_load8(q[g], args.q + (u64)part.row * args.q_stride + (part.unit * QUERIES + g) * HEAD_DIM + first);
        KX_UNROLL
        for (int i = 0; i < 8; i++) {
            if (!inside) q[g][i] = 0.0f;
            sums.values[g][i] = 0.0f;
        }
    }
    KX_UNROLL
    for (int j = 0; j < DEALT; j++) sums.maximum[j] = NO_MAXIMUM, sums.total[j] = 0.0f;

    // Rounds are counted by wave, since all its lanes exchange values; groups without keys in the last see masked ones.
    const u32 last = part.end - 1, stride = GROUPS * KEYS;
    const u32 wave_start = part.begin + kx_tid() / KX_WAVE * (KX_WAVE / GROUP) * KEYS;
    const u32 rounds = wave_start < part.end ? (part.end - wave_start + stride - 1) / stride : 0;
    u32 start = part.begin + group * KEYS;
    KvEight<KV_T> keys[KEYS], values[KEYS];
    Scales scales = {1.0f, 1.0f};
    const u32 own_key = lane / KEY_LANES;
    if (rounds > 0) {
        const u32 block = kv_block(part.blocks, start < last ? start : last);
        const u64 at = kv_keys(block, kv_head);
        scales = load_scales(args, block, kv_head, start + own_key < last ? start + own_key : last);
        load_run(keys, keys_of + at, start, last);
        load_run(values, values_of + at, start, last);
    }
    for (u32 round = 0; round < rounds; round++) {
        const bool more = round + 1 < rounds;
        const u32 next = start + stride;
        u32 next_block = 0;
        if (more) next_block = kv_block(part.blocks, next < last ? next : last);

        f32 scores[SCORES];
        KX_UNROLL
        for (u32 k = 0; k < KEYS; k++) {
            f32 key[8];
            kv_unpack(key, keys[k]);
            KX_UNROLL
            for (u32 g = 0; g < PADDED; g++) {
                f32 score = 0.0f;
                KX_UNROLL
                for (int i = 0; i < 8; i++) score = kx_fma(q[g < QUERIES ? g : 0][i], key[i], score);
                scores[k * PADDED + g] = g < QUERIES ? score : 0.0f;
            }
        }
        const u64 next_at = kv_keys(next_block, kv_head);
        if (more) load_run(keys, keys_of + next_at, next, last);

        Deal<SCORES, GROUP / 2>::sum(scores, lane);
        f32* weights = shared.weights[group][round % 2];
        f32* rescale = shared.rescale[group][round % 2];
        const bool masked = start + own_key > last;
        KX_UNROLL
        for (u32 j = 0; j < DEALT; j++) {
            const f32 score = masked ? MASKED : scores[j] * scales.key * args.scale;
            const f32 maximum = kx_max(sums.maximum[j], max_over_keys<GROUP / 2>(score));
            const f32 factor = kx_exp2(sums.maximum[j] - maximum), weight = kx_exp2(score - maximum);
            sums.total[j] = kx_fma(sums.total[j], factor, weight);
            sums.maximum[j] = maximum;
            if (lane % SAME == 0) weights[lane / SAME * DEALT + j] = weight * scales.value;
            if (lane < KEY_LANES && lane % SAME == 0) rescale[lane / SAME * DEALT + j] = factor;
        }
        kx_sync_wave();
        KX_UNROLL
        for (u32 g = 0; g < QUERIES; g++) {
            const f32 factor = rescale[g];
            KX_UNROLL
            for (int i = 0; i < 8; i++) sums.values[g][i] *= factor;
        }
        KX_UNROLL
        for (u32 k = 0; k < KEYS; k++) {
            f32 value[8];
            kv_unpack(value, values[k]);
            KX_UNROLL
            for (u32 g = 0; g < QUERIES; g++) {
                const f32 weight = weights[k * PADDED + g];
                KX_UNROLL
                for (int i = 0; i < 8; i++) sums.values[g][i] = kx_fma(weight, value[i], sums.values[g][i]);
            }
        }
        if (more) {
            load_run(values, values_of + next_at, next, last);
            scales = load_scales(args, next_block, kv_head, next + own_key < last ? next + own_key : last);
        }
        start = next;
    }
}

// The sums of all groups as one: the weighted values of each wave in room.values, against the maximum over the block.
KX_DEV void gather(Room& room, Sums& sums) {
    const u32 lane = kx_tid() % GROUP, group = kx_tid() / GROUP;
    KX_UNROLL
    for (u32 j = 0; j < DEALT; j++) {
        const f32 total = sum_over_keys<GROUP / 2>(sums.total[j]);
        if (lane >= KEY_LANES || lane % SAME != 0) continue;
        room.maxima[group][lane / SAME * DEALT + j] = sums.maximum[j];
        room.totals[group][lane / SAME * DEALT + j] = total;
    }
    kx_sync();
    KX_UNROLL
    for (u32 g = 0; g < QUERIES; g++) {
        const f32 factor = kx_exp2(room.maxima[group][g] - maximum_of(room, g));
        f32 values[8];
        KX_UNROLL
        for (int i = 0; i < 8; i++) values[i] = sum_over_groups<GROUP>(sums.values[g][i] * factor);
        if (kx_tid() % KX_WAVE < GROUP && lane * 8 < HEAD_DIM) {
            kx_store8(room.values[kx_tid() / KX_WAVE][g] + lane * 8, values);
        }
    }
    kx_sync();
}

KX_KERNEL(attention_decode, AttentionDecodeArgs, THREADS) {
    KX_SHARED Room room;
    KX_SHARED Weights shared;
    attend_to_parts<Sums>(args, room, shared);
}
