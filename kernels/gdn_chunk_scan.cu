// The chunked scan, part two, in f32: through the chunks of each sequence, for any head sizes and without tensor cores.
// gdn_chunk.h has the formulas.
//
// q, k: [T, KEY_HEADS * KEY_DIM], v, out: [T, VALUE_HEADS * VALUE_DIM] X_T with row strides in elements; chunks: [chunks,
// VALUE_HEADS] GdnChunk; state: [slot, VALUE_HEADS, VALUE_DIM, KEY_DIM] f32.
//
// Grid: (slices of VALUE_DIM, value heads, scans). A block keeps SLICE rows of S in shared memory for all chunks of a
// sequence. Keys and queries pass through shared memory SLAB columns at a time, keys twice: for the products with S and
// for its update. A thread has one value column of every GROUPS-th token; the sums of a token are its own.
//
// Defines: X_T, W_T (f32), KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, SLICE (4, 8, 16 or 32), THREADS (256). Dynamic
// shared memory: one Shared, SHARED_BYTES.
#include "gdn_chunk.h"

#define SLAB 32
#define SLAB_PITCH (SLAB + 4)
// Key columns, padded with zeros so that they are whole slabs.
#define KEYS ((KEY_DIM + SLAB - 1) / SLAB * SLAB)
#define STATE_PITCH (KEYS + 4)
#define MATRIX_PITCH (CHUNK + 4)
#define VALUE_PITCH (SLICE + 4)
#define GROUPS (THREADS / SLICE)
#define TOKENS (CHUNK / GROUPS)

static_assert(THREADS == 256 && SLICE % 4 == 0 && SLICE <= 32, "a thread has TOKENS tokens of one value column");

struct GdnScanArgs {
    Step step;
    const X_T* q;
    const X_T* k;
    const X_T* v;
    const GdnChunk* chunks;
    f32* state;
    X_T* out;
    u32 q_stride, k_stride, v_stride, out_stride;
};

struct KX_ALIGN(16) Shared {
    f32 state[SLICE * STATE_PITCH];
    f32 values[CHUNK * VALUE_PITCH]; // V - e^c K S^T, then D, then D with the decay to the end
    // A slab of keys and one of queries, or T, or P.
    f32 tile[CHUNK * 2 * SLAB_PITCH > CHUNK * MATRIX_PITCH ? CHUNK * 2 * SLAB_PITCH : CHUNK * MATRIX_PITCH];
    f32 since_start[CHUNK], to_end[CHUNK];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch gives what the kernel takes");

KX_DEV f32 dot4(f32x4 a, f32x4 b, f32 sum) {
    return kx_fma(a.w, b.w, kx_fma(a.z, b.z, kx_fma(a.y, b.y, kx_fma(a.x, b.x, sum))));
}

// Columns `first` and the next SLAB of `len` rows; zeros for what doesn't exist.
KX_DEV void load_slab(f32* slab, const X_T* from, u32 stride, u32 first, u32 len) {
    for (u32 i = kx_tid(); i < CHUNK * SLAB; i += THREADS) {
        const u32 row = i / SLAB, column = i % SLAB;
        const bool exists = row < len && first + column < KEY_DIM;
        slab[row * SLAB_PITCH + column] = exists ? kx_float(from[(u64)row * stride + first + column]) : 0.0f;
    }
}

// sums[i] += matrix[token(i)] values, for one of the two triangles of the chunk.
KX_DEV void multiply(f32 sums[TOKENS], const W_T* matrix, Shared& shared) {
    for (u32 i = kx_tid() * 4; i < CHUNK * CHUNK; i += THREADS * 4) {
        *(f32x4*)(shared.tile + i / CHUNK * MATRIX_PITCH + i % CHUNK) = kx_load((const f32x4*)(matrix + i));
    }
    kx_sync();
    const u32 column = kx_tid() % SLICE, group = kx_tid() / SLICE;
    for (u32 token = 0; token < CHUNK; token += 4) {
        const f32* const from = shared.values + token * VALUE_PITCH + column;
        const f32x4 values = {from[0], from[VALUE_PITCH], from[2 * VALUE_PITCH], from[3 * VALUE_PITCH]};
        KX_UNROLL
        for (u32 i = 0; i < TOKENS; i++) {
            const f32x4 row = *(const f32x4*)(shared.tile + (group + i * GROUPS) * MATRIX_PITCH + token);
            sums[i] = dot4(row, values, sums[i]);
        }
    }
    kx_sync();
}

KX_KERNEL(gdn_chunk_scan, GdnScanArgs, THREADS) {
    KX_DYNAMIC_SHARED(Shared, memory);
    Shared& shared = *memory;
    kx_let_next_start();
    kx_wait_for_previous();
    if (kx_block_z() >= args.step.header->scans) return;
    const Scan scan = args.step.scans[kx_block_z()];
    const Segment segment = args.step.segments[scan.segment];
    const u32 head = kx_block_y(), key = head / (VALUE_HEADS / KEY_HEADS) * KEY_DIM, value = kx_block_x() * SLICE;
    const u32 column = kx_tid() % SLICE, group = kx_tid() / SLICE;
    const bool has_column = value + column < VALUE_DIM;

    f32* const state = args.state + (((u64)segment.slot * VALUE_HEADS + head) * VALUE_DIM + value) * KEY_DIM;
    for (u32 i = kx_tid(); i < SLICE * KEYS; i += THREADS) {
        const u32 row = i / KEYS, element = i % KEYS;
        const bool exists = segment.position > 0 && value + row < VALUE_DIM && element < KEY_DIM;
        shared.state[row * STATE_PITCH + element] = exists ? state[row * KEY_DIM + element] : 0.0f;
    }

    for (u32 index = scan.first_chunk; index < scan.first_chunk + scan.chunks; index++) {
        const Piece piece = args.step.chunks[index];
        const GdnChunk& chunk = args.chunks[(u64)index * VALUE_HEADS + head];
        const X_T* const q = args.q + (u64)piece.row * args.q_stride + key;
        const X_T* const k = args.k + (u64)piece.row * args.k_stride + key;
        const X_T* const v = args.v + (u64)piece.row * args.v_stride + head * VALUE_DIM + value + column;
        X_T* const out = args.out + (u64)piece.row * args.out_stride + head * VALUE_DIM + value + column;
        if (kx_tid() < CHUNK) {
            shared.since_start[kx_tid()] = chunk.since_start[kx_tid()];
            shared.to_end[kx_tid()] = chunk.to_end[kx_tid()];
        }

        // K S^T and Q S^T.
        f32 keys_state[TOKENS], queries_state[TOKENS];
        KX_UNROLL
        for (u32 i = 0; i < TOKENS; i++) keys_state[i] = queries_state[i] = 0.0f;
        for (u32 first = 0; first < KEYS; first += SLAB) {
            f32* const queries = shared.tile + CHUNK * SLAB_PITCH;
            load_slab(shared.tile, k, args.k_stride, first, piece.len);
            load_slab(queries, q, args.q_stride, first, piece.len);
            kx_sync();
            for (u32 depth = 0; depth < SLAB; depth += 4) {
                const f32x4 row = *(const f32x4*)(shared.state + column * STATE_PITCH + first + depth);
                KX_UNROLL
                for (u32 i = 0; i < TOKENS; i++) {
                    const u32 at = (group + i * GROUPS) * SLAB_PITCH + depth;
                    keys_state[i] = dot4(*(const f32x4*)(shared.tile + at), row, keys_state[i]);
                    queries_state[i] = dot4(*(const f32x4*)(queries + at), row, queries_state[i]);
                }
            }
            kx_sync();
        }

        // D.
        KX_UNROLL
        for (u32 i = 0; i < TOKENS; i++) {
            const u32 token = group + i * GROUPS;
            const f32 x = token < piece.len && has_column ? kx_float(v[(u64)token * args.v_stride]) : 0.0f;
            shared.values[token * VALUE_PITCH + column] = x - shared.since_start[token] * keys_state[i];
        }
        f32 deltas[TOKENS];
        KX_UNROLL
        for (u32 i = 0; i < TOKENS; i++) deltas[i] = 0.0f;
        multiply(deltas, chunk.solve, shared);
        KX_UNROLL
        for (u32 i = 0; i < TOKENS; i++) shared.values[(group + i * GROUPS) * VALUE_PITCH + column] = deltas[i];

        // The output, and D with the decay to the end.
        KX_UNROLL
        for (u32 i = 0; i < TOKENS; i++) queries_state[i] *= shared.since_start[group + i * GROUPS];
        multiply(queries_state, chunk.scores, shared);
        KX_UNROLL
        for (u32 i = 0; i < TOKENS; i++) {
            const u32 token = group + i * GROUPS;
            if (token < piece.len && has_column) kx_store(out + (u64)token * args.out_stride, queries_state[i]);
            shared.values[token * VALUE_PITCH + column] = shared.to_end[token] * deltas[i];
        }

        // S. A thread has four rows of one key column at a time.
        const f32 decay = shared.since_start[CHUNK - 1];
        for (u32 first = 0; first < KEYS; first += SLAB) {
            load_slab(shared.tile, k, args.k_stride, first, piece.len);
            kx_sync();
            for (u32 i = kx_tid(); i < SLICE / 4 * SLAB; i += THREADS) {
                const u32 element = i % SLAB, row = i / SLAB * 4;
                f32* const own = shared.state + row * STATE_PITCH + first + element;
                f32 sums[4];
                KX_UNROLL
                for (u32 j = 0; j < 4; j++) sums[j] = decay * own[j * STATE_PITCH];
                for (u32 token = 0; token < CHUNK; token++) {
                    const f32 x = shared.tile[token * SLAB_PITCH + element];
                    const f32x4 values = *(const f32x4*)(shared.values + token * VALUE_PITCH + row);
                    sums[0] = kx_fma(values.x, x, sums[0]), sums[1] = kx_fma(values.y, x, sums[1]);
                    sums[2] = kx_fma(values.z, x, sums[2]), sums[3] = kx_fma(values.w, x, sums[3]);
                }
                KX_UNROLL
                for (u32 j = 0; j < 4; j++) own[j * STATE_PITCH] = sums[j];
            }
            kx_sync();
        }
    }

    for (u32 i = kx_tid(); i < SLICE * KEYS; i += THREADS) {
        const u32 row = i / KEYS, element = i % KEYS;
        if (value + row < VALUE_DIM && element < KEY_DIM) {
            state[row * KEY_DIM + element] = shared.state[row * STATE_PITCH + element];
        }
    }
}
