// Causal attention of the sequences that have several rows in the step, on tensor cores:
//
//   out_i = sum_{t <= i} p_it v_t / sum_{t <= i} p_it,   p_it = exp(scale q_i . k_t)
//
// q: [T, HEADS * HEAD_DIM] X_T; out: the same in OUT_T, X_T or f32; cache: kv_cache.h, with KV_T = X_T or of eight bits,
// and already with the step's own keys and values. A block takes a piece (at most 64 rows that don't cross a multiple of 64) for
// QUERIES query heads of one key and value head, and goes over the keys in tiles with the running softmax
// (FlashAttention-2, arXiv 2307.08691). A warp has 16 rows of one head: scores in fragments of m16n8, which are rounded
// to X_T and used as they are as the left operand of the product with the values; the result in HEAD_DIM / 2 registers
// a thread. While a tile is worked on, the next comes to shared memory. MMA and PAIR are the functions of X_T, which is
// bf16 or f16.
//
// Of eight bits, codes and scales come to shared memory, and all threads together make one tile of X_T out of them, in
// which e4m3 and e5m2 times a power of two are exact (of f16, as far as its range goes).
//
// One block a multiprocessor at HEAD_DIM 256: 64 rows x 2 heads and two stages of 64 keys are 198 KiB. Rows in shared
// memory are HEAD_DIM + 8 elements apart, an odd number of 16 bytes, so that the eight rows of a matrix lie in
// different banks.
#include "attention_prefill.h"

#define ROWS (KX_PIECE * QUERIES)
#define PITCH (HEAD_DIM + 8)
#define KEY_TILE (KEY_BLOCKS * KX_BLOCK)
// Elements of the keys of a stage; its values follow.
#define TILE (KEY_TILE * PITCH)
// Copies of 16 bytes for one block of keys or of values.
#define COPIES (KX_BLOCK * HEAD_DIM / 8)

// Block ids of a tile; behind the last block that one again.
KX_DEV void load_ids(u32 ids[KEY_BLOCKS], const u32* blocks, u32 tile, u32 last_block) {
    KX_UNROLL
    for (u32 n = 0; n < KEY_BLOCKS; n++) {
        const u32 block = tile * KEY_BLOCKS + n;
        ids[n] = blocks[block < last_block ? block : last_block];
    }
}

// The id of one of the blocks, without an index into registers.
KX_DEV u32 block_of(const u32 ids[KEY_BLOCKS], u32 which) {
    u32 id = ids[0];
    KX_UNROLL
    for (u32 n = 1; n < KEY_BLOCKS; n++) id = which == n ? ids[n] : id;
    return id;
}

// Sends keys and values of a tile to a stage; zeros for positions from `end` on, which nobody has written.
KX_DEV void send_tile(X_T* stage, const X_T* cache, const u32 ids[KEY_BLOCKS], u32 kv_head, u32 tile, u32 end) {
    KX_UNROLL
    for (u32 n = 0; n < KEY_BLOCKS; n++) {
        const X_T* from = cache + kv_keys(ids[n], kv_head);
        const u32 position = (tile * KEY_BLOCKS + n) * KX_BLOCK;
        KX_UNROLL
        for (u32 first = 0; first < 2 * COPIES; first += THREADS) {
            const u32 copy = first + kx_tid(), within = copy % COPIES, value = copy / COPIES;
            if (2 * COPIES % THREADS != 0 && copy >= 2 * COPIES) continue;
            const u32 token = within / (HEAD_DIM / 8), column = within % (HEAD_DIM / 8) * 8;
            X_T* to = stage + value * TILE + (n * KX_BLOCK + token) * PITCH + column;
            kx_copy_async16(to, from + value * KV_VALUES + within * 8, position + token < end);
        }
    }
}

// Codes and scales of a tile of eight bits, as they lie in the cache.
struct Codes {
    KX_ALIGN(16) u8 codes[2][KEY_TILE * HEAD_DIM]; // keys, values
    u8 scales[2][KEY_TILE];
};

// Sends the codes of a tile; of positions that nobody has written, whatever lies there.
KX_DEV void send_codes(Codes& codes, const KV_T* cache, const u32 ids[KEY_BLOCKS], u32 kv_head) {
    constexpr u32 copies = KX_BLOCK * HEAD_DIM / 16;
    KX_UNROLL
    for (u32 n = 0; n < KEY_BLOCKS; n++) {
        const u8* from = (const u8*)cache + kv_keys(ids[n], kv_head);
        KX_UNROLL
        for (u32 first = 0; first < 2 * copies; first += THREADS) {
            const u32 copy = first + kx_tid(), within = copy % copies, value = copy / copies;
            if (2 * copies % THREADS != 0 && copy >= 2 * copies) continue;
            u8* to = codes.codes[value] + n * KX_BLOCK * HEAD_DIM + within * 16;
            kx_copy_async16(to, from + value * KV_VALUES + within * 16, true);
        }
    }
    if (kx_tid() < 2 * KEY_BLOCKS) {
        const u32 n = kx_tid() % KEY_BLOCKS, value = kx_tid() / KEY_BLOCKS;
        const u8* from = (const u8*)cache + kv_scales(block_of(ids, n), kv_head) + value * KV_VALUE_SCALES;
        kx_copy_async16(codes.scales[value] + n * KX_BLOCK, from, true);
    }
}

// Makes a stage of the codes of a tile; zeros for positions from `end` on.
KX_DEV void widen(X_T* stage, const Codes& codes, u32 tile, u32 end) {
    KX_UNROLL_BY(4)
    for (u32 item = kx_tid(); item < 2 * KEY_TILE * HEAD_DIM / 8; item += THREADS) {
        const u32 value = item / (KEY_TILE * HEAD_DIM / 8), key = item / (HEAD_DIM / 8) % KEY_TILE;
        const u32 column = item % (HEAD_DIM / 8) * 8;
        const bool valid = tile * KEY_TILE + key < end;
        const f32 factor = valid ? kx_scale_factor(codes.scales[value][key]) : 0.0f;
        f32 numbers[8];
        kx_load8(numbers, (const KV_T*)codes.codes[value] + key * HEAD_DIM + column);
        KX_UNROLL
        for (int i = 0; i < 8; i++) numbers[i] = valid ? kx_saturated(numbers[i] * factor, X_T()) : 0.0f;
        kx_store8(stage + value * TILE + key * PITCH + column, numbers);
    }
}

// Sends the rows of the piece to shared memory, one head after the other; zeros for rows that it doesn't have.
KX_DEV void send_queries(const AttentionPrefillArgs& args, X_T* to, const Piece& piece, u32 head) {
    KX_UNROLL
    for (u32 first = 0; first < ROWS * HEAD_DIM / 8; first += THREADS) {
        const u32 copy = first + kx_tid(), row = copy / (HEAD_DIM / 8), column = copy % (HEAD_DIM / 8) * 8;
        const u32 token = row % KX_PIECE;
        const bool valid = token < piece.len;
        const u64 from = (u64)(piece.row + (valid ? token : 0)) * args.q_stride + (head + row / KX_PIECE) * HEAD_DIM;
        kx_copy_async16(to + row * PITCH + column, args.q + from + column, valid);
    }
}

// Of rows lane / 4 and lane / 4 + 8 of the warp.
struct Rows {
    f32 maximum[2]; // before the scale
    f32 total[2];   // of this lane's keys
    f32 out[HEAD_DIM / 8][4];
};

// Scores of 16 rows and a tile of keys. `q` and `keys` point to the rows that this lane gives to ldmatrix.
KX_DEV void score(f32 scores[KEY_TILE / 8][4], const X_T* q, const X_T* keys) {
    KX_UNROLL
    for (u32 n = 0; n < KEY_TILE / 8; n++) {
        KX_UNROLL
        for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
    }
    KX_UNROLL
    for (u32 step = 0; step < HEAD_DIM / 16; step++) {
        u32 a[4];
        kx_ldmatrix4(a, q + step * 16);
        KX_UNROLL
        for (u32 n = 0; n < KEY_BLOCKS; n++) {
            u32 b[4];
            kx_ldmatrix4(b, keys + n * 16 * PITCH + step * 16);
            MMA(scores[2 * n], a, b);
            MMA(scores[2 * n + 1], a, b + 2);
        }
    }
}

// One step of the running softmax: scores become weights.
KX_DEV void soften(Rows& rows, f32 scores[KEY_TILE / 8][4], f32 scale) {
    KX_UNROLL
    for (int half = 0; half < 2; half++) {
        f32 maximum = rows.maximum[half];
        KX_UNROLL
        for (u32 n = 0; n < KEY_TILE / 8; n++) {
            maximum = kx_max(maximum, kx_max(scores[n][2 * half], scores[n][2 * half + 1]));
        }
        maximum = kx_group_max<4>(maximum);
        const f32 factor = kx_exp2((rows.maximum[half] - maximum) * scale), offset = maximum * scale;
        f32 total = rows.total[half] * factor;
        KX_UNROLL
        for (u32 n = 0; n < KEY_TILE / 8; n++) {
            KX_UNROLL
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = kx_exp2(kx_fma(scores[n][i], scale, -offset));
                total += scores[n][i];
            }
        }
        KX_UNROLL
        for (u32 n = 0; n < HEAD_DIM / 8; n++) {
            rows.out[n][2 * half] *= factor;
            rows.out[n][2 * half + 1] *= factor;
        }
        rows.maximum[half] = maximum;
        rows.total[half] = total;
    }
}

// Adds the weighted values of a tile.
KX_DEV void add_values(Rows& rows, const f32 weights[KEY_TILE / 8][4], const X_T* values) {
    KX_UNROLL
    for (u32 step = 0; step < KEY_BLOCKS; step++) {
        const f32* low = weights[2 * step];
        const f32* high = weights[2 * step + 1];
        const u32 a[4] = {PAIR(low[0], low[1]), PAIR(low[2], low[3]), PAIR(high[0], high[1]), PAIR(high[2], high[3])};
        KX_UNROLL
        for (u32 n = 0; n < HEAD_DIM / 16; n++) {
            u32 b[4];
            kx_ldmatrix4_trans(b, values + step * 16 * PITCH + n * 16);
            MMA(rows.out[2 * n], a, b);
            MMA(rows.out[2 * n + 1], a, b + 2);
        }
    }
}

KX_DEV void store_pair(f32* to, f32 a, f32 b) { *(f32x2*)to = f32x2{a, b}; }
KX_DEV void store_pair(bf16* to, f32 a, f32 b) { *(u32*)to = kx_bf16_pair(a, b); }
KX_DEV void store_pair(f16* to, f32 a, f32 b) { *(u32*)to = kx_f16_pair(a, b); }

KX_KERNEL(attention_prefill_mma, AttentionPrefillArgs, THREADS) {
    KX_DYNAMIC_SHARED(X_T, queries);
    X_T* stages = queries + ROWS * PITCH;
    kx_let_next_start();
    kx_wait_for_previous();
    // The last pieces of a sequence have the most keys: they go first.
    const u32 pieces = args.step.header->prefill_pieces;
    if (kx_block_y() >= pieces) return;
    const Piece piece = args.step.pieces[pieces - 1 - kx_block_y()];
    const u32* blocks = args.step.block_table + args.step.segments[piece.segment].blocks;
    const u32 head = kx_block_x() * QUERIES, kv_head = head / (HEADS / KV_HEADS);
    const u32 end = piece.position + piece.len, last_block = (end - 1) / KX_BLOCK;
    const u32 tiles = (end + KEY_TILE - 1) / KEY_TILE;

    const u32 warp = kx_tid() / 32, lane = kx_tid() % 32;
    const u32 first_token = warp % 4 * 16;
    const X_T* own = queries + warp * 16 * PITCH;
    // The rows that this lane gives to ldmatrix: of queries and values 16 rows by 16 columns, of keys 8 by 32 twice.
    const X_T* own_row = own + lane % 16 * PITCH + lane / 16 * 8;
    const u32 key_row = (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
    const u32 value_row = lane % 16 * PITCH + lane / 16 * 8;

    Rows rows;
    KX_UNROLL
    for (int half = 0; half < 2; half++) rows.maximum[half] = NO_MAXIMUM, rows.total[half] = 0.0f;
    KX_UNROLL
    for (u32 n = 0; n < HEAD_DIM / 8; n++) {
        KX_UNROLL
        for (int i = 0; i < 4; i++) rows.out[n][i] = 0.0f;
    }

    u32 ids[KEY_BLOCKS];
    load_ids(ids, blocks, 0, last_block);
    send_queries(args, queries, piece, head);
    Codes& codes = *(Codes*)(stages + 2 * TILE);
    if constexpr (KV_SCALED) send_codes(codes, args.cache, ids, kv_head);
    else send_tile(stages, (const X_T*)args.cache, ids, kv_head, 0, end);
    kx_copy_commit();
    load_ids(ids, blocks, 1, last_block);
    for (u32 tile = 0; tile < tiles; tile++) {
        // Behind this barrier the tile is there, and nobody reads the other stage any more.
        kx_copy_wait<0>();
        kx_sync();
        const X_T* stage = stages;
        if constexpr (KV_SCALED) {
            widen(stages, codes, tile, end);
            kx_sync();
        } else {
            stage += tile % 2 * (2 * TILE);
        }
        if (tile + 1 < tiles) {
            if constexpr (KV_SCALED) send_codes(codes, args.cache, ids, kv_head);
            else send_tile(stages + (tile + 1) % 2 * (2 * TILE), (const X_T*)args.cache, ids, kv_head, tile + 1, end);
            kx_copy_commit();
            load_ids(ids, blocks, tile + 2, last_block);
        }
        if (first_token >= piece.len || tile * KEY_TILE > piece.position + first_token + 15) continue;
        f32 scores[KEY_TILE / 8][4];
        score(scores, own_row, stage + key_row);
        if ((tile + 1) * KEY_TILE > piece.position + first_token) {
            const u32 key = tile * KEY_TILE + lane % 4 * 2, position = piece.position + first_token + lane / 4;
            KX_UNROLL
            for (u32 n = 0; n < KEY_TILE / 8; n++) {
                KX_UNROLL
                for (u32 i = 0; i < 4; i++) {
                    if (key + n * 8 + i % 2 > position + i / 2 * 8) scores[n][i] = MASKED;
                }
            }
        }
        soften(rows, scores, args.scale);
        add_values(rows, scores, stage + TILE + value_row);
    }

    // The four lanes of a row fill whole sectors of memory.
    KX_UNROLL
    for (int half = 0; half < 2; half++) {
        const f32 factor = 1.0f / kx_group_sum<4>(rows.total[half]);
        const u32 token = first_token + lane / 4 + half * 8;
        if (token < piece.len) {
            const u32 column = (head + warp / 4) * HEAD_DIM + lane % 4 * 2;
            OUT_T* to = args.out + (u64)(piece.row + token) * args.out_stride + column;
            KX_UNROLL
            for (u32 n = 0; n < HEAD_DIM / 8; n++) {
                f32 gate[2];
                load_gate<2>(gate, args, piece.row + token, column + n * 8);
                const f32 first = rows.out[n][2 * half] * factor, second = rows.out[n][2 * half + 1] * factor;
                store_pair(to + n * 8, first * gate[0], second * gate[1]);
            }
        }
    }
}
