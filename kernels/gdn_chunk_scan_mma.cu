// The chunked scan, part two, on tensor cores: through the chunks of each sequence. gdn_chunk.h has the formulas.
//
// q, k: [T, KEY_HEADS * KEY_DIM], v, out: [T, VALUE_HEADS * VALUE_DIM] X_T with row strides in elements, all heads at
// multiples of 16 bytes; chunks: [chunks, VALUE_HEADS] GdnChunk; state: [slot, VALUE_HEADS, VALUE_DIM, KEY_DIM] f32.
//
// Grid: (slices of VALUE_DIM, value heads, scans). The rows of S are independent of each other, so a block takes 16 PAIRS
// of them, and a pair of waves 16: one keeps S in registers in f32 and makes D, the other makes the output and loads the
// next chunks. Everything is transposed, [value, token], because then the result of one m16n8k16 is the left operand of
// the next without passing through memory: S (as X_T) times K^T, V^T less that times T^T, D^T times K into S; and
// Q's products likewise. What the second wave needs of the first, S and D^T as operands, passes through shared memory.
//
// The order, with two barriers a chunk:   first wave    K S^T, D | S, S as an operand
//                                         second wave   Q S^T    | P D, out
//
// S is rounded to X_T for the products, D in its update too; T, P, V - e^c K S^T and D in the output are f16, whose eleven
// digits make the result as exact as rounding it to bf16 allows (those of bf16 would double the error). f16 ends at
// 65504, which larger values become. Sums are f32.
//
// One sequence with 32 heads of 128 fills 128 blocks of two pairs. Bound by the chain of products of the first waves, 148
// m16n8k16 a chunk, and by L2: a block reads 48 KB a chunk.
//
// Defines: X_T (bf16 or f16), W_T (f16), KEY_HEADS, VALUE_HEADS, KEY_DIM (a multiple of 16 up to 128), VALUE_DIM (a
// multiple of 16 PAIRS), PAIRS, STAGES (chunks in shared memory), THREADS (64 PAIRS). Dynamic shared memory: one Shared,
// SHARED_BYTES.
#include "gdn_chunk.h"

#define STEPS (KEY_DIM / 16)
#define SLICE (16 * PAIRS)
// Row strides in shared memory: 16 bytes more than the row, so that the rows of a matrix load are in different banks.
#define KEY_PITCH (KEY_DIM + 8)
#define CHUNK_PITCH (CHUNK + 8)
#define VALUE_PITCH (SLICE + 8)
#define OUT_PITCH (16 + 8)
// The second waves load.
#define LOADERS (32 * PAIRS)

static_assert(THREADS == 64 * PAIRS && KX_WAVE == 32, "a pair of waves has 16 value columns");

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

// What is loaded of a chunk.
struct KX_ALIGN(16) Stage {
    X_T k[CHUNK * KEY_PITCH];
    X_T q[CHUNK * KEY_PITCH];
    W_T solve[CHUNK * CHUNK_PITCH];
    W_T scores[CHUNK * CHUNK_PITCH];
    X_T v[CHUNK * VALUE_PITCH];
    f32 since_start[CHUNK], to_end[CHUNK];
    Piece piece;
};
struct KX_ALIGN(16) Shared {
    Stage stages[STAGES];
    u32x4 state[PAIRS][STEPS][32];      // S as left operands, a register of each lane after another
    u32x4 deltas[PAIRS][CHUNK / 16][32]; // D^T likewise
    u16 out[PAIRS][CHUNK * OUT_PITCH];   // [token, value] of X_T
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch gives what the kernel takes");

// Two neighbouring results [16, 8] as one left operand [16, 16].
template <class T> KX_DEV void as_left(u32 a[4], const f32 low[4], const f32 high[4]) {
    a[0] = Half<T>::pair(low[0], low[1]), a[1] = Half<T>::pair(low[2], low[3]);
    a[2] = Half<T>::pair(high[0], high[1]), a[3] = Half<T>::pair(high[2], high[3]);
}
KX_DEV void load_left(u32 a[4], const u32x4& from) { a[0] = from.x, a[1] = from.y, a[2] = from.z, a[3] = from.w; }
KX_DEV u32x4 words(const u32 a[4]) { return u32x4{a[0], a[1], a[2], a[3]}; }

// The place of a lane's row in a load of four 8 x 8 matrices, which become two right operands: of a matrix whose rows are
// columns of the operand, and, transposed, of one whose rows are rows of it.
KX_DEV u32 right_place(u32 lane, u32 pitch) { return (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8; }
KX_DEV u32 right_place_trans(u32 lane, u32 pitch) { return (lane / 8 % 2 * 8 + lane % 8) * pitch + lane / 16 * 8; }

// sums[16 values, 64 tokens] += S matrix^T, where S is given as left operands.
KX_DEV void times_state(f32 sums[8][4], const u32x4 (*state)[32], const X_T* matrix, u32 lane) {
    const X_T* const place = matrix + right_place(lane, KEY_PITCH);
    KX_UNROLL
    for (u32 step = 0; step < STEPS; step++) {
        u32 a[4];
        load_left(a, state[step][lane]);
        KX_UNROLL
        for (u32 tokens = 0; tokens < 4; tokens++) {
            u32 b[4];
            kx_ldmatrix4(b, place + tokens * 16 * KEY_PITCH + step * 16);
            Half<X_T>::mma(sums[2 * tokens], a, b);
            Half<X_T>::mma(sums[2 * tokens + 1], a, b + 2);
        }
    }
}

// sums[16 values, 64 tokens] += left[16, 64] triangle^T, where the triangle is [64 tokens, 64] and lower.
KX_DEV void times_triangle(f32 sums[8][4], const u32 left[4][4], const W_T* triangle, u32 lane) {
    const W_T* const place = triangle + right_place(lane, CHUNK_PITCH);
    KX_UNROLL
    for (u32 step = 0; step < 4; step++) {
        KX_UNROLL
        for (u32 tokens = step; tokens < 4; tokens++) {
            u32 b[4];
            kx_ldmatrix4(b, place + tokens * 16 * CHUNK_PITCH + step * 16);
            kx_mma_f16(sums[2 * tokens], left[step], b);
            kx_mma_f16(sums[2 * tokens + 1], left[step], b + 2);
        }
    }
}

struct Block {
    const GdnScanArgs& args;
    Shared& shared;
    Scan scan;
    u32 head, key, value; // value head, first columns of its keys and of the slice's values
};

// Starts to load the rows of a chunk, WIDTH columns of each, zeros behind the last one.
template <u32 WIDTH> KX_DEV void copy_rows(X_T* to, const X_T* from, u32 stride, u32 len) {
    constexpr u32 UNITS = WIDTH / 8, PITCH = WIDTH + 8;
    const u32 loader = kx_tid() - LOADERS;
    if constexpr (LOADERS % UNITS == 0) {
        // A thread keeps its column.
        constexpr u32 STEP = LOADERS / UNITS;
        const u32 row = loader / UNITS, column = loader % UNITS * 8;
        from += (u64)row * stride + column, to += row * PITCH + column;
        KX_UNROLL
        for (u32 i = 0; i < CHUNK; i += STEP) {
            kx_copy_async16(to + i * PITCH, from, row + i < len);
            from += (u64)STEP * stride;
        }
    } else {
        for (u32 i = loader; i < CHUNK * UNITS; i += LOADERS) {
            const u32 row = i / UNITS, column = i % UNITS * 8;
            kx_copy_async16(to + row * PITCH + column, from + (u64)row * stride + column, row < len);
        }
    }
}

// Starts to load chunk `index` of the scan, whose piece is `piece`, by the second waves; `piece` becomes the next one's.
KX_DEV void load_chunk(const Block& block, u32 index, Piece& piece) {
    if (index < block.scan.chunks) {
        const GdnScanArgs& args = block.args;
        const u32 at = block.scan.first_chunk + index, loader = kx_tid() - LOADERS;
        const GdnChunk& chunk = args.chunks[(u64)at * VALUE_HEADS + block.head];
        Stage& stage = block.shared.stages[index % STAGES];
        copy_rows<KEY_DIM>(stage.k, args.k + (u64)piece.row * args.k_stride + block.key, args.k_stride, piece.len);
        copy_rows<KEY_DIM>(stage.q, args.q + (u64)piece.row * args.q_stride + block.key, args.q_stride, piece.len);
        copy_rows<SLICE>(stage.v, args.v + (u64)piece.row * args.v_stride + block.value, args.v_stride, piece.len);
        KX_UNROLL
        for (u32 i = 0; i < CHUNK; i += LOADERS / 8) {
            const u32 row = i + loader / 8, column = loader % 8 * 8;
            if (column / 16 <= row / 16) {
                const u32 to = row * CHUNK_PITCH + column;
                kx_copy_async16(stage.solve + to, chunk.solve + row * CHUNK + column, true);
                kx_copy_async16(stage.scores + to, chunk.scores + row * CHUNK + column, true);
            }
        }
        if (loader < CHUNK / 4) {
            kx_copy_async16(stage.since_start + loader * 4, chunk.since_start + loader * 4, true);
            kx_copy_async16(stage.to_end + loader * 4, chunk.to_end + loader * 4, true);
        }
        if (loader == 0) stage.piece = piece;
        if (index + 1 < block.scan.chunks) piece = args.step.chunks[at + 1];
    }
    kx_copy_commit();
}

KX_DEV void clear(f32 sums[8][4]) {
    KX_UNROLL
    for (u32 i = 0; i < 8; i++) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
}

// D^T of a chunk: as left operands in f16 for the other wave, and with the decay to the end in X_T for the update of S.
KX_DEV void make_deltas(u32 decayed[4][4], Shared& shared, const Stage& stage, u32 lane, u32 own) {
    f32 sums[8][4];
    clear(sums);
    times_state(sums, shared.state[own], stage.k, lane);

    u32 rest[4][4]; // V^T - K S^T with its decay, as left operands
    const X_T* const values = stage.v + right_place(lane, VALUE_PITCH) + own * 16;
    KX_UNROLL
    for (u32 tokens = 0; tokens < 4; tokens++) {
        u32 v[4];
        kx_ldmatrix4_trans(v, values + tokens * 16 * VALUE_PITCH);
        KX_UNROLL
        for (u32 half = 0; half < 2; half++) {
            f32* const sum = sums[2 * tokens + half];
            const f32x2 since = *(const f32x2*)(stage.since_start + tokens * 16 + half * 8 + lane % 4 * 2);
            sum[0] = kx_fma(-since.x, sum[0], Half<X_T>::low(v[2 * half]));
            sum[1] = kx_fma(-since.y, sum[1], Half<X_T>::high(v[2 * half]));
            sum[2] = kx_fma(-since.x, sum[2], Half<X_T>::low(v[2 * half + 1]));
            sum[3] = kx_fma(-since.y, sum[3], Half<X_T>::high(v[2 * half + 1]));
        }
        as_left<f16>(rest[tokens], sums[2 * tokens], sums[2 * tokens + 1]);
    }

    clear(sums);
    times_triangle(sums, rest, stage.solve, lane);
    KX_UNROLL
    for (u32 tokens = 0; tokens < 4; tokens++) {
        u32 a[4];
        as_left<f16>(a, sums[2 * tokens], sums[2 * tokens + 1]);
        shared.deltas[own][tokens][lane] = words(a);
        KX_UNROLL
        for (u32 half = 0; half < 2; half++) {
            f32* const sum = sums[2 * tokens + half];
            const f32x2 to_end = *(const f32x2*)(stage.to_end + tokens * 16 + half * 8 + lane % 4 * 2);
            sum[0] *= to_end.x, sum[1] *= to_end.y, sum[2] *= to_end.x, sum[3] *= to_end.y;
        }
        as_left<X_T>(decayed[tokens], sums[2 * tokens], sums[2 * tokens + 1]);
    }
}

// S as left operands, for both waves.
KX_DEV void share_state(Shared& shared, const f32 state[2 * STEPS][4], u32 lane, u32 own) {
    KX_UNROLL
    for (u32 step = 0; step < STEPS; step++) {
        u32 a[4];
        as_left<X_T>(a, state[2 * step], state[2 * step + 1]);
        shared.state[own][step][lane] = words(a);
    }
}

// S <- e^c_n S + (D with the decay to the end)^T K.
KX_DEV void update_state(f32 state[2 * STEPS][4], const u32 decayed[4][4], const Stage& stage, u32 lane) {
    const f32 decay = stage.since_start[CHUNK - 1];
    const X_T* const keys = stage.k + right_place_trans(lane, KEY_PITCH);
    KX_UNROLL
    for (u32 step = 0; step < STEPS; step++) {
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) state[2 * step][i] *= decay, state[2 * step + 1][i] *= decay;
        KX_UNROLL
        for (u32 tokens = 0; tokens < 4; tokens++) {
            u32 b[4];
            kx_ldmatrix4_trans(b, keys + tokens * 16 * KEY_PITCH + step * 16);
            Half<X_T>::mma(state[2 * step], decayed[tokens], b);
            Half<X_T>::mma(state[2 * step + 1], decayed[tokens], b + 2);
        }
    }
}

// The output's part from the state, diag(e^c) Q S^T, transposed.
KX_DEV void start_output(f32 sums[8][4], const Shared& shared, const Stage& stage, u32 lane, u32 own) {
    clear(sums);
    times_state(sums, shared.state[own], stage.q, lane);
    KX_UNROLL
    for (u32 i = 0; i < 8; i++) {
        const f32x2 since = *(const f32x2*)(stage.since_start + i * 8 + lane % 4 * 2);
        sums[i][0] *= since.x, sums[i][1] *= since.y, sums[i][2] *= since.x, sums[i][3] *= since.y;
    }
}

// The rest of it, P D; out through shared memory, where it is turned round.
KX_DEV void finish_output(f32 sums[8][4], const Block& block, const Stage& stage, u32 lane, u32 own) {
    Shared& shared = block.shared;
    u32 deltas[4][4];
    KX_UNROLL
    for (u32 step = 0; step < 4; step++) load_left(deltas[step], shared.deltas[own][step][lane]);
    times_triangle(sums, deltas, stage.scores, lane);
    u16* const turned = shared.out[own];
    KX_UNROLL
    for (u32 i = 0; i < 8; i++) {
        u16* const to = turned + (i * 8 + lane % 4 * 2) * OUT_PITCH + lane / 4;
        KX_UNROLL
        for (u32 half = 0; half < 2; half++) {
            const u32 word = Half<X_T>::pair(sums[i][2 * half], sums[i][2 * half + 1]);
            to[half * 8] = (u16)word, to[OUT_PITCH + half * 8] = (u16)(word >> 16);
        }
    }
    kx_sync_wave();
    const Piece piece = stage.piece;
    X_T* const out = block.args.out + (u64)piece.row * block.args.out_stride + block.value + own * 16;
    KX_UNROLL
    for (u32 i = 0; i < 4; i++) {
        const u32 token = i * 16 + lane / 2, value = lane % 2 * 8;
        if (token < piece.len) {
            *(u32x4*)(out + (u64)token * block.args.out_stride + value) = *(const u32x4*)(turned + token * OUT_PITCH + value);
        }
    }
    kx_sync_wave();
}

KX_KERNEL(gdn_chunk_scan_mma, GdnScanArgs, THREADS) {
    KX_DYNAMIC_SHARED(Shared, memory);
    Shared& shared = *memory;
    kx_let_next_start();
    kx_wait_for_previous();
    if (kx_block_z() >= args.step.header->scans) return;
    const u32 head = kx_block_y();
    const Block block = {args, shared, args.step.scans[kx_block_z()], head,
                         head / (VALUE_HEADS / KEY_HEADS) * KEY_DIM, head * VALUE_DIM + kx_block_x() * SLICE};
    const Segment segment = args.step.segments[block.scan.segment];
    const u32 lane = kx_tid() % 32, own = kx_tid() / 32 % PAIRS;
    const bool first_wave = kx_tid() < LOADERS;
    Piece next = args.step.chunks[block.scan.first_chunk]; // the one that is loaded next

    // state[i][j] is row lane / 4 + j / 2 * 8 of the pair's, column i * 8 + lane % 4 * 2 + j % 2.
    f32 state[2 * STEPS][4];
    const u64 row = ((u64)segment.slot * VALUE_HEADS) * VALUE_DIM + block.value + own * 16 + lane / 4;
    f32* const slot = args.state + row * KEY_DIM + lane % 4 * 2;
    if (first_wave) {
        KX_UNROLL
        for (u32 i = 0; i < 2 * STEPS; i++) {
            f32x2 upper = {0.0f, 0.0f}, lower = {0.0f, 0.0f};
            if (segment.position > 0) {
                upper = kx_load((const f32x2*)(slot + i * 8)), lower = kx_load((const f32x2*)(slot + 8 * KEY_DIM + i * 8));
            }
            state[i][0] = upper.x, state[i][1] = upper.y, state[i][2] = lower.x, state[i][3] = lower.y;
        }
        share_state(shared, state, lane, own);
    } else {
        for (u32 index = 0; index < (STAGES > 1 ? STAGES - 1 : 1); index++) load_chunk(block, index, next);
        kx_copy_wait<(STAGES > 2 ? STAGES - 2 : 0)>();
    }

    for (u32 index = 0; index < block.scan.chunks; index++) {
        const Stage& stage = shared.stages[index % STAGES];
        u32 decayed[4][4];
        f32 sums[8][4];
        kx_sync();
        if (first_wave) {
            make_deltas(decayed, shared, stage, lane, own);
        } else {
            if (STAGES > 1) load_chunk(block, index + STAGES - 1, next);
            start_output(sums, shared, stage, lane, own);
        }
        kx_sync();
        if (first_wave) {
            update_state(state, decayed, stage, lane);
            share_state(shared, state, lane, own);
        } else {
            finish_output(sums, block, stage, lane, own);
            if (STAGES > 1) kx_copy_wait<(STAGES > 2 ? STAGES - 2 : 0)>();
        }
        if (STAGES == 1) {
            kx_sync();
            if (!first_wave) {
                load_chunk(block, index + 1, next);
                kx_copy_wait<0>();
            }
        }
    }

    if (first_wave) {
        KX_UNROLL
        for (u32 i = 0; i < 2 * STEPS; i++) {
            *(f32x2*)(slot + i * 8) = f32x2{state[i][0], state[i][1]};
            *(f32x2*)(slot + 8 * KEY_DIM + i * 8) = f32x2{state[i][2], state[i][3]};
        }
    }
}
