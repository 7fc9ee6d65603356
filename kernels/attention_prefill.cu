// Causal attention of the sequences that have several rows in the step, for devices without tensor cores and for types
// that these don't take (attention_prefill_mma.cu has the formula, and is the one to use elsewhere).
//
// q: [T, HEADS * HEAD_DIM] X_T; out: the same in OUT_T; cache: kv_cache.h, already with the step's own keys and values.
// A block takes ROWS rows of a piece for one head and goes over the keys KEYS at a time with the running softmax. Keys
// and values come to the same place in shared memory, one after the other. In the products, a thread has four rows: in
// the first, keys COLUMNS apart; in the second, eights of dimensions COLUMNS apart, whose sums stay in registers.
// Everything is f32.
#include "attention_prefill.h"

#define COLUMNS (THREADS / (ROWS / 4))
#define EIGHTS (HEAD_DIM / 8)
#define KEYS_EACH ((KEYS + COLUMNS - 1) / COLUMNS)
#define EIGHTS_EACH ((EIGHTS + COLUMNS - 1) / COLUMNS)
// Threads of a row in the softmax: neighbouring lanes.
#define LANES (THREADS / ROWS)
// Elements between rows in shared memory: 16 bytes more than a row, so that lanes read from different banks.
#define Q_PITCH (HEAD_DIM + 16 / sizeof(X_T))
#define KV_PITCH (HEAD_DIM + 16 / sizeof(KV_T))
#define WEIGHT_PITCH (ROWS + 4)

// The scales of the keys and values of a tile, where they have any.
template <bool SCALED> struct Scales {};
template <> struct Scales<true> {
    KX_ALIGN(16) f32 keys[KEYS];
    f32 values[KEYS];
};

struct Room : Scales<KV_SCALED> {
    KX_ALIGN(16) X_T q[ROWS * Q_PITCH];
    KX_ALIGN(16) KV_T kv[KEYS * KV_PITCH];
    KX_ALIGN(16) f32 weights[KEYS * WEIGHT_PITCH]; // scores, then weights, key by key
    KX_ALIGN(16) f32 factors[ROWS];
};

// Where the block's rows and keys are.
struct Place {
    u32 row;      // first, in the step
    u32 rows;
    u32 position; // of the first
    u32 head;
    const u32* blocks;
};

KX_DEV void load_queries(const AttentionPrefillArgs& args, Room& room, const Place& place) {
    for (u32 item = kx_tid(); item < ROWS * EIGHTS; item += THREADS) {
        const u32 row = item / EIGHTS, column = item % EIGHTS * 8;
        f32 q[8];
        KX_UNROLL
        for (int i = 0; i < 8; i++) q[i] = 0.0f;
        if (row < place.rows) {
            kx_load8(q, args.q + (u64)(place.row + row) * args.q_stride + place.head * HEAD_DIM + column);
        }
        kx_store8(room.q + row * Q_PITCH + column, q);
    }
}

// KEYS keys or values from `start` on; zeros behind the last row, where nobody may have written.
KX_DEV void load_tile(const AttentionPrefillArgs& args, Room& room, const Place& place, u32 start, u32 offset) {
    const u32 end = place.position + place.rows, kv_head = place.head / (HEADS / KV_HEADS);
    for (u32 item = kx_tid(); item < KEYS * EIGHTS; item += THREADS) {
        const u32 key = item / EIGHTS, column = item % EIGHTS * 8, position = start + key;
        KV_T* to = room.kv + key * KV_PITCH + column;
        if (position < end) {
            const u64 at = kv_keys(kv_block(place.blocks, position), kv_head) + offset;
            kv_store(to, args.cache + at + position % KX_BLOCK * HEAD_DIM + column);
        } else {
            f32 zeros[8];
            KX_UNROLL
            for (int i = 0; i < 8; i++) zeros[i] = 0.0f;
            kx_store8(to, zeros);
        }
    }
}

// The scales of the keys and values from `start` on.
template <class R> KX_DEV void load_scales(const AttentionPrefillArgs& args, R& room, const Place& place, u32 start) {
    if constexpr (KV_SCALED) {
        const u32 kv_head = place.head / (HEADS / KV_HEADS);
        for (u32 key = kx_tid(); key < KEYS; key += THREADS) {
            const u32 position = start + key;
            room.keys[key] = room.values[key] = 0.0f;
            if (position >= place.position + place.rows) continue;
            const u8* from = (const u8*)args.cache + kv_scales(kv_block(place.blocks, position), kv_head);
            room.keys[key] = kx_scale_factor(from[position % KX_BLOCK]);
            room.values[key] = kx_scale_factor(from[KV_VALUE_SCALES + position % KX_BLOCK]);
        }
    }
}
// Of keys, the scale of the scores; of values, that of the weights.
template <class R> KX_DEV f32 key_scale(const R& room, u32 key) {
    if constexpr (KV_SCALED) return room.keys[key];
    else return 1.0f;
}
template <class R> KX_DEV f32 value_scale(const R& room, u32 key) {
    if constexpr (KV_SCALED) return room.values[key];
    else return 1.0f;
}

// Scores of rows four * 4 .. four * 4 + 4 and every COLUMNS-th key, to room.weights.
KX_DEV void score(Room& room, u32 four, u32 column) {
    f32 scores[KEYS_EACH][4];
    KX_UNROLL
    for (u32 n = 0; n < KEYS_EACH; n++) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
    for (u32 d = 0; d < HEAD_DIM; d += 8) {
        f32 q[4][8];
        KX_UNROLL
        for (u32 row = 0; row < 4; row++) kx_load8(q[row], room.q + (four * 4 + row) * Q_PITCH + d);
        KX_UNROLL
        for (u32 n = 0; n < KEYS_EACH; n++) {
            const u32 key = column + n * COLUMNS;
            f32 k[8];
            kx_load8(k, room.kv + (key < KEYS ? key : 0) * KV_PITCH + d);
            KX_UNROLL
            for (u32 row = 0; row < 4; row++) {
                KX_UNROLL
                for (int i = 0; i < 8; i++) scores[n][row] = kx_fma(q[row][i], k[i], scores[n][row]);
            }
        }
    }
    KX_UNROLL
    for (u32 n = 0; n < KEYS_EACH; n++) {
        const u32 key = column + n * COLUMNS;
        if (key >= KEYS) continue;
        const f32x4 of_key = {scores[n][0], scores[n][1], scores[n][2], scores[n][3]};
        *(f32x4*)&room.weights[key * WEIGHT_PITCH + four * 4] = of_key;
    }
}

// The running softmax of a row, known to all its lanes; the sum is of the lane's keys.
struct Softmax {
    f32 maximum;
    f32 total;
};

// Makes scores to weights. What was summed before this tile is to be multiplied with room.factors.
KX_DEV void soften(Room& room, Softmax& softmax, const Place& place, u32 start, f32 scale) {
    const u32 row = kx_tid() / LANES, lane = kx_tid() % LANES, position = place.position + row;
    f32 scores[KEYS / LANES], maximum = softmax.maximum;
    KX_UNROLL
    for (u32 n = 0; n < KEYS / LANES; n++) {
        const u32 key = lane + n * LANES;
        const f32 score = room.weights[key * WEIGHT_PITCH + row] * key_scale(room, key);
        scores[n] = start + key > position ? MASKED : score * scale;
        maximum = kx_max(maximum, scores[n]);
    }
    maximum = kx_group_max<LANES>(maximum);
    const f32 factor = kx_exp2(softmax.maximum - maximum);
    f32 total = softmax.total * factor;
    KX_UNROLL
    for (u32 n = 0; n < KEYS / LANES; n++) {
        const f32 weight = kx_exp2(scores[n] - maximum);
        room.weights[(lane + n * LANES) * WEIGHT_PITCH + row] = weight * value_scale(room, lane + n * LANES);
        total += weight;
    }
    if (lane == 0) room.factors[row] = factor;
    softmax.maximum = maximum;
    softmax.total = total;
}

// Adds the weighted values of a tile to rows four * 4 .. four * 4 + 4 and every COLUMNS-th eight of dimensions.
KX_DEV void add_values(const Room& room, f32 out[EIGHTS_EACH][4][8], u32 four, u32 column) {
    const f32x4 factor = *(const f32x4*)&room.factors[four * 4];
    KX_UNROLL
    for (u32 n = 0; n < EIGHTS_EACH; n++) {
        KX_UNROLL
        for (int i = 0; i < 8; i++) {
            out[n][0][i] *= factor.x, out[n][1][i] *= factor.y;
            out[n][2][i] *= factor.z, out[n][3][i] *= factor.w;
        }
    }
    for (u32 key = 0; key < KEYS; key++) {
        const f32x4 weight = *(const f32x4*)&room.weights[key * WEIGHT_PITCH + four * 4];
        KX_UNROLL
        for (u32 n = 0; n < EIGHTS_EACH; n++) {
            const u32 eight = column + n * COLUMNS;
            f32 value[8];
            kx_load8(value, room.kv + key * KV_PITCH + (eight < EIGHTS ? eight : 0) * 8);
            KX_UNROLL
            for (int i = 0; i < 8; i++) {
                out[n][0][i] = kx_fma(weight.x, value[i], out[n][0][i]);
                out[n][1][i] = kx_fma(weight.y, value[i], out[n][1][i]);
                out[n][2][i] = kx_fma(weight.z, value[i], out[n][2][i]);
                out[n][3][i] = kx_fma(weight.w, value[i], out[n][3][i]);
            }
        }
    }
}

KX_KERNEL(attention_prefill, AttentionPrefillArgs, THREADS) {
    KX_DYNAMIC_SHARED(Room, shared);
    Room& room = *shared;
    kx_let_next_start();
    kx_wait_for_previous();
    // The last pieces of a sequence have the most keys: they go first.
    const u32 pieces = args.step.header->prefill_pieces, first = kx_block_z() * ROWS;
    if (kx_block_y() >= pieces) return;
    const Piece piece = args.step.pieces[pieces - 1 - kx_block_y()];
    if (first >= piece.len) return;
    const u32 rows = piece.len - first < ROWS ? piece.len - first : ROWS;
    const u32* blocks = args.step.block_table + args.step.segments[piece.segment].blocks;
    const Place place = {piece.row + first, rows, piece.position + first, kx_block_x(), blocks};

    const u32 four = kx_tid() / COLUMNS, column = kx_tid() % COLUMNS;
    Softmax softmax = {NO_MAXIMUM, 0.0f};
    f32 out[EIGHTS_EACH][4][8];
    KX_UNROLL
    for (u32 n = 0; n < EIGHTS_EACH; n++) {
        KX_UNROLL
        for (int i = 0; i < 8; i++) out[n][0][i] = out[n][1][i] = out[n][2][i] = out[n][3][i] = 0.0f;
    }
    load_queries(args, room, place);
    for (u32 start = 0; start < place.position + rows; start += KEYS) {
        load_tile(args, room, place, start, 0);
        load_scales(args, room, place, start);
        kx_sync();
        score(room, four, column);
        kx_sync();
        load_tile(args, room, place, start, KV_VALUES);
        soften(room, softmax, place, start, args.scale);
        kx_sync();
        add_values(room, out, four, column);
        kx_sync();
    }

    const f32 total = kx_group_sum<LANES>(softmax.total);
    if (kx_tid() % LANES == 0) room.factors[kx_tid() / LANES] = 1.0f / total;
    kx_sync();
    KX_UNROLL
    for (u32 n = 0; n < EIGHTS_EACH; n++) {
        const u32 eight = column + n * COLUMNS;
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) {
            const u32 row = four * 4 + i;
            if (eight >= EIGHTS || row >= rows) continue;
            KX_UNROLL
            for (int d = 0; d < 8; d++) out[n][i][d] *= room.factors[row];
            const u32 to = place.head * HEAD_DIM + eight * 8;
            f32 gate[8];
            load_gate<8>(gate, args, place.row + row, to);
            KX_UNROLL
            for (int d = 0; d < 8; d++) out[n][i][d] *= gate[d];
            kx_store8(args.out + (u64)(place.row + row) * args.out_stride + to, out[n][i]);
        }
    }
}
