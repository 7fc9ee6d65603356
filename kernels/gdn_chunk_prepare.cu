// The chunked scan, part one: T, P and the exponentials of every chunk and value head (gdn_chunk.h has the formulas).
//
// q, k: [T, KEY_HEADS * KEY_DIM] X_T, beta, decay: [T, VALUE_HEADS] f32, with row strides in elements;
// chunks: [chunks, VALUE_HEADS] GdnChunk.
//
// Grid: (key heads, chunks). A block makes K K^T and Q K^T once, by tensor cores where TENSOR_CORES is 1, else in f32, and
// keeps them in registers; then, for each value head of its key head, it puts on the gates, and inverts the triangle in
// f32: blocks of 8 by substitution, merged three times by the rule for blocks, [A 0; C B]^-1 = [A' 0; -B' C A' B'].
//
// The running sums of the log-decays are kept as a whole number and a rest, so that their differences are exact to 1e-7
// even where some decays are strong. The least time at 8192 tokens of 16 key heads and 32 value heads of 128, bf16, is
// that of reading 67 MB and writing 42 MB.
//
// Defines: X_T, W_T (f16 with tensor cores, else f32), TENSOR_CORES, KEY_HEADS, VALUE_HEADS, KEY_DIM (with tensor cores a
// multiple of 16 up to 128, and q and k begin at multiples of 16 bytes), THREADS (256).
// The steps of a block are short and end with barriers: several blocks keep a processor busy.
#if TENSOR_CORES
#define KX_RESIDENT 3
#endif
#include "gdn_chunk.h"

#define RATIO (VALUE_HEADS / KEY_HEADS)
// So many value heads have their gates in shared memory at once.
#define GATED (RATIO < 8 ? RATIO : 8)
#define WAVES (THREADS / KX_WAVE)
// Row stride of the 64 x 64 matrices in shared memory.
#define PITCH (CHUNK + 4)

static_assert(THREADS == 256, "a thread has 32 of the elements of two 64 x 64 matrices");

struct GdnPrepareArgs {
    Step step;
    const X_T* q;
    const X_T* k;
    const f32* beta;
    const f32* decay;
    GdnChunk* chunks;
    u32 q_stride, k_stride, beta_stride, decay_stride;
};

// K K^T and Q K^T of the chunk: the elements that a thread has. Element e is at row row(e) and column column(e) of the
// second if scores(e), else of the first; the thread has it if exists(e).
struct Products {
    f32 values[32];
    KX_DEV_MEMBER static u32 row(u32 e);
    KX_DEV_MEMBER static u32 column(u32 e);
    KX_DEV_MEMBER static bool scores(u32 e);
    KX_DEV_MEMBER static bool exists(u32 e);
};

#if TENSOR_CORES
// Four waves have K K^T, four Q K^T; wave w of them has rows 16 w .. 16 w + 16 and the columns up to the diagonal, in
// accumulators of m16n8k16.
#define ROOM (2 * CHUNK * (KEY_DIM + 8) * 2)
KX_DEV_MEMBER u32 Products::row(u32 e) { return kx_tid() / 32 % 4 * 16 + kx_tid() % 32 / 4 + e % 4 / 2 * 8; }
KX_DEV_MEMBER u32 Products::column(u32 e) { return e / 4 * 8 + kx_tid() % 4 * 2 + e % 2; }
KX_DEV_MEMBER bool Products::scores(u32) { return kx_tid() >= THREADS / 2; }
KX_DEV_MEMBER bool Products::exists(u32 e) { return e / 8 <= kx_tid() / 32 % 4; }

// Starts to load keys and queries. room: [2][CHUNK][KEY_DIM + 8] X_T; the padding keeps the rows of a matrix load in
// different banks.
KX_DEV void load(const X_T* q, const X_T* k, const GdnPrepareArgs& args, u32 len, u8* room) {
    X_T* const keys = (X_T*)room;
    X_T* const queries = keys + CHUNK * (KEY_DIM + 8);
    for (u32 i = kx_tid(); i < CHUNK * (KEY_DIM / 8); i += THREADS) {
        const u32 row = i / (KEY_DIM / 8), column = i % (KEY_DIM / 8) * 8, to = row * (KEY_DIM + 8) + column;
        kx_copy_async16(keys + to, k + (u64)row * args.k_stride + column, row < len);
        kx_copy_async16(queries + to, q + (u64)row * args.q_stride + column, row < len);
    }
    kx_copy_commit();
}

KX_DEV void multiply(Products& products, const X_T*, const X_T*, const GdnPrepareArgs&, u32, u8* room) {
    const X_T* const keys = (const X_T*)room;
    const X_T* const queries = keys + CHUNK * (KEY_DIM + 8);
    KX_UNROLL
    for (u32 e = 0; e < 32; e++) products.values[e] = 0.0f;
    kx_copy_wait<0>();
    kx_sync();

    const u32 lane = kx_tid() % 32, wave = kx_tid() / 32 % 4;
    const X_T* const left = (Products::scores(0) ? queries : keys) + (wave * 16 + lane % 16) * (KEY_DIM + 8) + lane / 16 * 8;
    const X_T* const right = keys + (lane / 16 * 8 + lane % 8) * (KEY_DIM + 8) + lane / 8 % 2 * 8;
    KX_UNROLL
    for (u32 depth = 0; depth < KEY_DIM; depth += 16) {
        u32 a[4];
        kx_ldmatrix4(a, left + depth);
        KX_UNROLL
        for (u32 block = 0; block < CHUNK / 16; block++) {
            if (block <= wave) {
                u32 b[4];
                kx_ldmatrix4(b, right + block * 16 * (KEY_DIM + 8) + depth);
                Half<X_T>::mma(products.values + block * 8, a, b);
                Half<X_T>::mma(products.values + block * 8 + 4, a, b + 2);
            }
        }
    }
    kx_sync();
}
#else
// A thread has 4 x 4 elements of each, in rows and columns 16 apart. Keys and queries pass through shared memory 32 columns
// at a time.
#define SLAB 32
#define SLAB_PITCH (SLAB + 4)
#define ROOM (2 * CHUNK * SLAB_PITCH * 4)
KX_DEV_MEMBER u32 Products::row(u32 e) { return kx_tid() / 16 + e % 16 / 4 * 16; }
KX_DEV_MEMBER u32 Products::column(u32 e) { return kx_tid() % 16 + e % 4 * 16; }
KX_DEV_MEMBER bool Products::scores(u32 e) { return e >= 16; }
KX_DEV_MEMBER bool Products::exists(u32) { return true; }

KX_DEV f32 dot4(f32x4 a, f32x4 b, f32 sum) {
    return kx_fma(a.w, b.w, kx_fma(a.z, b.z, kx_fma(a.y, b.y, kx_fma(a.x, b.x, sum))));
}

KX_DEV void load(const X_T*, const X_T*, const GdnPrepareArgs&, u32, u8*) {}

// room: [2][CHUNK][SLAB_PITCH] f32.
KX_DEV void multiply(Products& products, const X_T* q, const X_T* k, const GdnPrepareArgs& args, u32 len, u8* room) {
    f32* const keys = (f32*)room;
    f32* const queries = keys + CHUNK * SLAB_PITCH;
    KX_UNROLL
    for (u32 e = 0; e < 32; e++) products.values[e] = 0.0f;
    for (u32 first = 0; first < KEY_DIM; first += SLAB) {
        for (u32 i = kx_tid(); i < CHUNK * SLAB; i += THREADS) {
            const u32 row = i / SLAB, column = i % SLAB;
            const bool exists = row < len && first + column < KEY_DIM;
            const u32 at = row * SLAB_PITCH + column;
            keys[at] = exists ? kx_float(k[(u64)row * args.k_stride + first + column]) : 0.0f;
            queries[at] = exists ? kx_float(q[(u64)row * args.q_stride + first + column]) : 0.0f;
        }
        kx_sync();
        for (u32 depth = 0; depth < SLAB; depth += 4) {
            f32x4 right[4];
            KX_UNROLL
            for (u32 j = 0; j < 4; j++) right[j] = *(const f32x4*)(keys + Products::column(j) * SLAB_PITCH + depth);
            KX_UNROLL
            for (u32 i = 0; i < 4; i++) {
                const u32 at = Products::row(4 * i) * SLAB_PITCH + depth;
                const f32x4 key = *(const f32x4*)(keys + at), query = *(const f32x4*)(queries + at);
                KX_UNROLL
                for (u32 j = 0; j < 4; j++) {
                    f32* const values = products.values + 4 * i + j;
                    values[0] = dot4(key, right[j], values[0]);
                    values[16] = dot4(query, right[j], values[16]);
                }
            }
        }
        kx_sync();
    }
}
#endif

// A number at most 0 as a whole part and a rest in (-1, 0].
struct Split {
    f32 whole, rest;
};
KX_DEV Split operator+(Split a, Split b) {
    const f32 rest = a.rest + b.rest, carry = (f32)(i32)rest;
    return Split{a.whole + b.whole + carry, rest - carry};
}
KX_DEV f32 exp2_of_difference(Split a, Split b) { return kx_exp2((a.whole - b.whole) + (a.rest - b.rest)); }

struct Gates {
    Split sums[CHUNK]; // of the log-decays, in powers of two
    f32 beta[CHUNK];
};

// The gates of value head `head` with running sums of the log-decays, by one wave; 32 of its lanes take two tokens each.
KX_DEV void sum_decays(Gates& gates, const GdnPrepareArgs& args, GdnChunk& chunk, u64 row, u32 head, u32 len) {
    const u32 lane = kx_tid() % 32;
    const bool writes = kx_tid() % KX_WAVE < 32;
    Split own[2];
    KX_UNROLL
    for (u32 i = 0; i < 2; i++) {
        const u32 token = 2 * lane + i;
        f32 beta = 0.0f, decay = 0.0f;
        if (token < len) {
            beta = args.beta[(row + token) * args.beta_stride + head];
            // e^-200 is 0 in f32; with this bound sums stay finite.
            decay = kx_max(args.decay[(row + token) * args.decay_stride + head], -200.0f) * KX_LOG2E;
        }
        if (writes) gates.beta[token] = beta;
        const f32 whole = (f32)(i32)decay;
        own[i] = Split{whole, decay - whole};
    }
    own[1] = own[0] + own[1];
    Split total = own[1];
    KX_UNROLL
    for (u32 distance = 1; distance < 32; distance *= 2) {
        const u32 from = kx_tid() % KX_WAVE - (lane < distance ? 0 : distance);
        const Split before = {kx_shuffle(total.whole, from), kx_shuffle(total.rest, from)};
        if (lane >= distance) total = before + total;
    }
    const u32 previous = kx_tid() % KX_WAVE - (lane == 0 ? 0 : 1);
    const Split before = {kx_shuffle(total.whole, previous), kx_shuffle(total.rest, previous)};
    const u32 last = kx_tid() % KX_WAVE - lane + 31;
    const Split end = {kx_shuffle(total.whole, last), kx_shuffle(total.rest, last)};
    own[0] = lane == 0 ? own[0] : before + own[0];
    own[1] = total;
    KX_UNROLL
    for (u32 i = 0; i < 2; i++) {
        const u32 token = 2 * lane + i;
        if (writes) {
            gates.sums[token] = own[i];
            chunk.since_start[token] = kx_exp2(own[i].whole + own[i].rest);
            chunk.to_end[token] = exp2_of_difference(end, own[i]);
        }
    }
}

// The gates of value head `first` of a key head's and of the next GATED - 1, a wave for each.
KX_DEV void prepare_gates(Gates* gates, const GdnPrepareArgs& args, const Piece& piece, u32 key_head, u32 first) {
    for (u32 i = kx_tid() / KX_WAVE; i < GATED && first + i < RATIO; i += WAVES) {
        const u32 head = key_head * RATIO + first + i;
        sum_decays(gates[i], args, args.chunks[(u64)kx_block_y() * VALUE_HEADS + head], piece.row, head, piece.len);
    }
}

// The inverse of the diagonal 8 x 8 blocks of I + matrix, by substitution: a thread has one column of one block.
KX_DEV void invert_blocks(f32* matrix) {
    f32 x[8];
    const u32 block = kx_tid() / 8 * 8, column = kx_tid() % 8;
    if (kx_tid() < CHUNK) {
        KX_UNROLL
        for (u32 i = 0; i < 8; i++) {
            f32 sum = i == column ? 1.0f : 0.0f;
            KX_UNROLL
            for (u32 j = 0; j < i; j++) sum = kx_fma(-matrix[(block + i) * PITCH + block + j], x[j], sum);
            x[i] = sum;
        }
    }
    kx_sync();
    if (kx_tid() < CHUNK) {
        KX_UNROLL
        for (u32 i = 0; i < 8; i++) matrix[(block + i) * PITCH + block + column] = x[i];
    }
    kx_sync();
}

KX_DEV f32x4 multiply_add(f32 a, f32x4 b, f32x4 sum) {
    return f32x4{kx_fma(a, b.x, sum.x), kx_fma(a, b.y, sum.y), kx_fma(a, b.z, sum.z), kx_fma(a, b.w, sum.w)};
}
// sum over k in [begin, end) of left[k] right[k * pitch .. + 4]; all multiples of 4.
KX_DEV f32x4 row_times(const f32* left, const f32* right, u32 pitch, u32 begin, u32 end) {
    f32x4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    KX_UNROLL_BY(2)
    for (u32 k = begin; k < end; k += 4) {
        const f32x4 a = *(const f32x4*)(left + k);
        const f32* const b = right + k * pitch;
        sum = multiply_add(a.x, *(const f32x4*)b, sum);
        sum = multiply_add(a.y, *(const f32x4*)(b + pitch), sum);
        sum = multiply_add(a.z, *(const f32x4*)(b + 2 * pitch), sum);
        sum = multiply_add(a.w, *(const f32x4*)(b + 3 * pitch), sum);
    }
    return sum;
}

// Makes inverse blocks of 2 SIZE from those of SIZE: C becomes -B' (C A'). scratch: [32][SIZE + 4] f32.
template <u32 SIZE> KX_DEV void merge_blocks(f32* matrix, f32* scratch) {
    constexpr u32 UNITS = CHUNK / 2 * SIZE / 4, COLUMNS = SIZE / 4;
    for (u32 unit = kx_tid(); unit < UNITS; unit += THREADS) {
        const u32 line = unit / COLUMNS, column = unit % COLUMNS * 4;
        const u32 first = line / SIZE * (2 * SIZE), row = first + SIZE + line % SIZE;
        const f32* const right = matrix + first * PITCH + first + column;
        const f32x4 sum = row_times(matrix + row * PITCH + first, right, PITCH, column, SIZE);
        *(f32x4*)(scratch + line * (SIZE + 4) + column) = sum;
    }
    kx_sync();
    for (u32 unit = kx_tid(); unit < UNITS; unit += THREADS) {
        const u32 line = unit / COLUMNS, column = unit % COLUMNS * 4;
        const u32 pair = line / SIZE, first = pair * (2 * SIZE), row = first + SIZE + line % SIZE;
        const f32* const right = scratch + pair * SIZE * (SIZE + 4) + column;
        const u32 end = line % SIZE / 4 * 4 + 4;
        const f32x4 sum = row_times(matrix + row * PITCH + first + SIZE, right, SIZE + 4, 0, end);
        *(f32x4*)(matrix + row * PITCH + first + column) = f32x4{-sum.x, -sum.y, -sum.z, -sum.w};
    }
    kx_sync();
}

KX_KERNEL(gdn_chunk_prepare, GdnPrepareArgs, THREADS) {
    // Tiles of keys and queries, then the triangle and the scores.
    constexpr u32 MATRICES = 2 * CHUNK * PITCH * 4;
    KX_SHARED KX_ALIGN(16) u8 room[ROOM > MATRICES ? ROOM : MATRICES];
    KX_SHARED KX_ALIGN(16) f32 scratch[32 * 36];
    KX_SHARED KX_ALIGN(16) Gates all_gates[GATED];
    f32* const triangle = (f32*)room;
    f32* const scores = triangle + CHUNK * PITCH;
    kx_let_next_start();
    kx_wait_for_previous();
    if (kx_block_y() >= args.step.header->chunks) return;
    const Piece piece = args.step.chunks[kx_block_y()];
    const u32 key_head = kx_block_x();

    const X_T* const q = args.q + (u64)piece.row * args.q_stride + key_head * KEY_DIM;
    const X_T* const k = args.k + (u64)piece.row * args.k_stride + key_head * KEY_DIM;

    load(q, k, args, piece.len, room);
    prepare_gates(all_gates, args, piece, key_head, 0);
    Products products;
    multiply(products, q, k, args, piece.len, room);

    for (u32 index = 0; index < RATIO; index++) {
        if (index > 0 && index % GATED == 0) {
            prepare_gates(all_gates, args, piece, key_head, index);
            kx_sync();
        }
        const Gates& gates = all_gates[index % GATED];
        GdnChunk& chunk = args.chunks[(u64)kx_block_y() * VALUE_HEADS + key_head * RATIO + index];
        KX_UNROLL
        for (u32 e = 0; e < 32; e++) {
            if (Products::exists(e)) {
                const u32 row = Products::row(e), column = Products::column(e), at = row * PITCH + column;
                const f32 gate = row < column ? 0.0f : exp2_of_difference(gates.sums[row], gates.sums[column]);
                if (Products::scores(e)) {
                    scores[at] = products.values[e] * gate;
                } else {
                    triangle[at] = gates.beta[row] * products.values[e] * gate;
                }
            }
        }
        kx_sync();
        invert_blocks(triangle);
        merge_blocks<8>(triangle, scratch);
        merge_blocks<16>(triangle, scratch);
        merge_blocks<32>(triangle, scratch);

        for (u32 unit = kx_tid(); unit < CHUNK * (CHUNK / 8); unit += THREADS) {
            const u32 row = unit / (CHUNK / 8), column = unit % (CHUNK / 8) * 8;
            const bool below = column / 16 <= row / 16;
            if (TENSOR_CORES && !below) continue;
            f32 values[8];
            KX_UNROLL
            for (u32 i = 0; i < 8; i++) {
                values[i] = below ? triangle[row * PITCH + column + i] * gates.beta[column + i] : 0.0f;
            }
            kx_store8(chunk.solve + row * CHUNK + column, values);
            KX_UNROLL
            for (u32 i = 0; i < 8; i++) values[i] = below ? scores[row * PITCH + column + i] : 0.0f;
            kx_store8(chunk.scores + row * CHUNK + column, values);
        }
        kx_sync();
    }
}
