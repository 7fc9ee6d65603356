// The gated delta rule token by token, for generated tokens (Yang et al., arXiv 2412.06464). Of the old state S let
// sk = S k and sq = S q; then delta = beta (v - e^decay sk), out = e^decay sq + (k . q) delta, S <- e^decay S + delta k^T: one
// read and one write of S for a token, and one round of sums.
//
// q, k: [T, KEY_HEADS * KEY_DIM], v, out: [T, VALUE_HEADS * VALUE_DIM] X_T, beta, decay: [T, VALUE_HEADS] f32, with row
// strides in elements; state: [slot, VALUE_HEADS, VALUE_DIM, KEY_DIM] f32. Value head h has query and key head
// h / (VALUE_HEADS / KEY_HEADS). Arithmetic is f32.
//
// Grid: (slices of VALUE_DIM, value heads, pieces). A block keeps a slice of SLICE rows of S in registers for all tokens
// of its piece: LANES neighbouring lanes have a row, each lane ITEMS times VECTOR elements of ROWS rows. At batch 1 with 32
// heads of 128 that is 128 blocks, and a thread has its 8 loads of 16 bytes in flight at once; the next token's operands
// are loaded before this one's sums. The least time at batch 1 is that of 4.2 MB, 1.4 us on an H100.
//
// Defines: X_T, KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, LANES (8, 16 or 32), VECTOR (4 where KEY_DIM is a multiple of
// it and q and k begin at multiples of 4 elements, else 1), ROWS, THREADS; LONG, to leave single tokens to gdn_step.cu.
#include "gdn_state.h"

struct GdnRecurrenceArgs {
    Step step;
    const X_T* q;
    const X_T* k;
    const X_T* v;
    const f32* beta;
    const f32* decay;
    f32* state;
    X_T* out;
    u32 q_stride, k_stride, v_stride, beta_stride, decay_stride, out_stride;
};

// What a token brings to this lane.
struct Token {
    f32 q[ITEMS][VECTOR], k[ITEMS][VECTOR];
    f32 v[ROWS];
    f32 beta, decay;
};

// Where a lane works: elements `element` and LANES * VECTOR further each, of rows `value` and GROUPS further each.
struct Place {
    u32 head, element, value;
};

KX_DEV void load_token(Token& token, const GdnRecurrenceArgs& args, u64 row, const Place& at) {
    const u32 key = at.head / (VALUE_HEADS / KEY_HEADS) * KEY_DIM;
    const X_T* const q = args.q + row * args.q_stride + key;
    const X_T* const k = args.k + row * args.k_stride + key;
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        const u32 element = at.element + item * LANES * VECTOR;
        if (element < KEY_DIM) {
            kx_load_vector(token.q[item], q + element);
            kx_load_vector(token.k[item], k + element);
        } else {
            KX_UNROLL
            for (u32 i = 0; i < VECTOR; i++) token.q[item][i] = token.k[item][i] = 0.0f;
        }
    }
    const X_T* const v = args.v + row * args.v_stride + at.head * VALUE_DIM;
    KX_UNROLL
    for (u32 r = 0; r < ROWS; r++) {
        const u32 value = at.value + r * GROUPS;
        token.v[r] = value < VALUE_DIM ? kx_float(v[value]) : 0.0f;
    }
    token.beta = args.beta[row * args.beta_stride + at.head];
    token.decay = args.decay[row * args.decay_stride + at.head];
}

KX_KERNEL(gdn_recurrence, GdnRecurrenceArgs, THREADS) {
    kx_let_next_start();
    const bool exists = kx_block_z() < args.step.header->recurrent;
    const Piece piece = args.step.recurrent[exists ? kx_block_z() : 0];
    const Segment segment = args.step.segments[piece.segment];
    const u32 lane = kx_tid() % LANES;
    const Place at = {kx_block_y(), lane * VECTOR, kx_block_x() * SLICE + kx_tid() / LANES};
    f32* const rows = args.state + ((u64)segment.slot * VALUE_HEADS + at.head) * ((u64)VALUE_DIM * KEY_DIM);

    // Unless the scan has the first rows of this sequence, the state is that of an earlier step.
    f32 state[ROWS][ITEMS][VECTOR];
    load_state(state, rows, at.value, at.element, exists && piece.position > 0 && segment.scan == 0);
    kx_wait_for_previous();
    if (!exists) return;
#ifdef LONG
    if (segment.len == 1) return;
#endif
    if (segment.scan > 0) load_state(state, rows, at.value, at.element, true);
    Token next;
    load_token(next, args, piece.row, at);

    for (u32 index = 0; index < piece.len; index++) {
        const Token token = next;
        const u64 row = piece.row + index;
        if (index + 1 < piece.len) load_token(next, args, row + 1, at);

        const f32 kq = dot(token.k, token.q);
        const f32 decay = kx_exp(token.decay);
        X_T* const out = args.out + row * args.out_stride + at.head * VALUE_DIM;
        KX_UNROLL
        for (u32 r = 0; r < ROWS; r++) {
            const f32 sk = dot(state[r], token.k), sq = dot(state[r], token.q);
            const f32 delta = token.beta * (token.v[r] - decay * sk);
            const u32 value = at.value + r * GROUPS;
            if (lane == 0 && value < VALUE_DIM) kx_store(out + value, kx_fma(kq, delta, decay * sq));
            KX_UNROLL
            for (u32 item = 0; item < ITEMS; item++) {
                KX_UNROLL
                for (u32 i = 0; i < VECTOR; i++) {
                    state[r][item][i] = kx_fma(delta, token.k[item][i], decay * state[r][item][i]);
                }
            }
        }
    }

    KX_UNROLL
    for (u32 r = 0; r < ROWS; r++) {
        const u32 value = at.value + r * GROUPS;
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) {
            const u32 element = at.element + item * LANES * VECTOR;
            if (value < VALUE_DIM && element < KEY_DIM) kx_store_vector(rows + value * KEY_DIM + element, state[r][item]);
        }
    }
}
