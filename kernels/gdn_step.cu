// All of Gated DeltaNet between its projections, for sequences with one token in the step: the convolution with SiLU
// (gdn_conv.cu), the norm of queries and keys, the gates (gdn_gates.cu) and the gated delta rule (gdn_recurrence.cu).
// Nothing is rounded between them.
//
// x: [T, channels], b, a: [T, VALUE_HEADS] X_T, out: [T, VALUE_HEADS * VALUE_DIM] OUT_T, with row strides in elements;
// weight: [TAPS, channels] f32; window: gdn_window.h, X_T; state: [slot, VALUE_HEADS, VALUE_DIM, KEY_DIM] f32. The channels
// are queries and keys of KEY_HEADS heads, then values. Arithmetic is f32.
//
// Grid: (slices of VALUE_DIM, value heads, sequences of the recurrence). A block keeps a slice of SLICE rows of the state in
// registers, as gdn_recurrence.cu does. It computes the query and key of its head, which other blocks do too: their
// inputs are 2 % of the state's bytes and come from the L2 cache. State and window are those of an earlier step, so they are
// on their way before the previous kernel has ended; the least time is that of the state's bytes, 4.2 MB for 32 heads of 128.
//
// Defines: X_T, OUT_T, KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, TAPS, LANES (8, 16 or 32), VECTOR (4 where KEY_DIM is
// a multiple of it, else 1), ROWS, THREADS.
#include "gdn_gates.h"
#include "gdn_state.h"
#include "gdn_window.h"

#define WAVES (THREADS / KX_WAVE)
#define QUERIES (KEY_HEADS * KEY_DIM)
#define CHANNELS (2 * QUERIES + VALUE_HEADS * VALUE_DIM)
// Channels of a block: a query, a key, and its values. How many of them a thread has at most.
#define OWN (2 * KEY_DIM + SLICE)
#define OWN_ITEMS ((OWN + THREADS - 1) / THREADS)

struct GdnStepArgs {
    Step step;
    const X_T* x;       // [T, channels]
    const f32* weight;  // [TAPS, channels]
    X_T* window;        // [slot, TAPS, channels]
    const X_T* b;       // [T, VALUE_HEADS]
    const X_T* a;       // [T, VALUE_HEADS]
    const f32* a_log;   // [VALUE_HEADS]
    const f32* dt_bias; // [VALUE_HEADS]
    f32* state;
    OUT_T* out;
    u32 x_stride, b_stride, a_stride, out_stride;
    f32 scale, eps;
};

// What the block's threads tell each other.
struct Room {
    KX_ALIGN(16) f32 queries[(KEY_DIM + 3) / 4 * 4];
    KX_ALIGN(16) f32 keys[(KEY_DIM + 3) / 4 * 4];
    f32 values[SLICE];
    f32 squares[2][WAVES]; // of queries and of keys, by wave
};

// A channel that a thread has, and where its result goes. `wanted` is false behind the last one.
struct Own {
    u32 channel;
    f32* to;
    bool wanted;
};

KX_DEV Own own_channel(Room& room, u32 item) {
    const u32 i = item * THREADS + kx_tid(), head = kx_block_y();
    const u32 key = head / (VALUE_HEADS / KEY_HEADS) * KEY_DIM;
    if (i < KEY_DIM) return Own{key + i, room.queries + i, true};
    if (i < 2 * KEY_DIM) return Own{QUERIES + key + i - KEY_DIM, room.keys + i - KEY_DIM, true};
    const u32 value = kx_block_x() * SLICE + i - 2 * KEY_DIM;
    const bool wanted = i < OWN && value < VALUE_DIM;
    return Own{2 * QUERIES + head * VALUE_DIM + (wanted ? value : 0), room.values + (wanted ? i - 2 * KEY_DIM : 0), wanted};
}

KX_KERNEL(gdn_step, GdnStepArgs, THREADS) {
    KX_SHARED Room room;
    kx_let_next_start();
    const u32 head = kx_block_y(), lane = kx_tid() % LANES;
    f32 weight[OWN_ITEMS][TAPS];
    KX_UNROLL
    for (u32 item = 0; item < OWN_ITEMS; item++) {
        const Own own = own_channel(room, item);
        KX_UNROLL
        for (u32 tap = 0; tap < TAPS; tap++) weight[item][tap] = args.weight[tap * CHANNELS + own.channel];
    }
    const f32 a_log = args.a_log[head], dt_bias = args.dt_bias[head];

    const u32 index = kx_block_z() < args.step.header->recurrent ? kx_block_z() : 0;
    const Segment segment = args.step.segments[args.step.recurrent[index].segment];
    // The tokens of longer segments follow one another: gdn_recurrence.cu takes them.
    const bool exists = kx_block_z() < args.step.header->recurrent && segment.len == 1;
    const bool has_state = exists && segment.position > 0;
    const u64 row = segment.row;

    f32* const rows = args.state + ((u64)segment.slot * VALUE_HEADS + head) * ((u64)VALUE_DIM * KEY_DIM);
    const u32 first_value = kx_block_x() * SLICE + kx_tid() / LANES;
    f32 state[ROWS][ITEMS][VECTOR];
    load_state(state, rows, first_value, lane * VECTOR, has_state);

    X_T* const window = args.window + (u64)segment.slot * TAPS * CHANNELS;
    X_T now[OWN_ITEMS], before[OWN_ITEMS][WINDOW];
    KX_UNROLL
    for (u32 item = 0; item < OWN_ITEMS; item++) {
        const u32 channel = own_channel(room, item).channel;
        KX_UNROLL
        for (u32 j = 0; j + 1 < TAPS; j++) {
            before[item][j] = X_T();
            if (!has_state || !in_window(segment.position, j)) continue;
            before[item][j] = window[window_entry(segment.position, j) * CHANNELS + channel];
        }
    }

    kx_wait_for_previous();
    if (!exists) return;
    KX_UNROLL
    for (u32 item = 0; item < OWN_ITEMS; item++) {
        now[item] = args.x[row * args.x_stride + own_channel(room, item).channel];
    }
    const f32 beta = kx_sigmoid(kx_float(args.b[row * args.b_stride + head]));
    const f32 decay = kx_exp(log_decay(kx_float(args.a[row * args.a_stride + head]), a_log, dt_bias));

    f32 query_squares = 0.0f, key_squares = 0.0f;
    const bool keeps_keys = kx_block_x() == 0 && head % (VALUE_HEADS / KEY_HEADS) == 0;
    KX_UNROLL
    for (u32 item = 0; item < OWN_ITEMS; item++) {
        const Own own = own_channel(room, item);
        if (!own.wanted) continue;
        f32 total = 0.0f;
        KX_UNROLL
        for (u32 j = 0; j + 1 < TAPS; j++) total = kx_fma(weight[item][j], kx_float(before[item][j]), total);
        const f32 result = kx_silu(kx_fma(weight[item][KEPT], kx_float(now[item]), total));
        const bool of_query = own.channel < QUERIES, of_key = !of_query && own.channel < 2 * QUERIES;
        if (of_query) query_squares = kx_fma(result, result, query_squares);
        if (of_key) key_squares = kx_fma(result, result, key_squares);
        *own.to = kx_saturated(result, OUT_T());
        // One block keeps what several have read; the entry is none of those that they read.
        if (TAPS > 1 && (keeps_keys || (!of_query && !of_key))) {
            window[segment.position % TAPS * CHANNELS + own.channel] = now[item];
        }
    }
    query_squares = kx_wave_sum(query_squares), key_squares = kx_wave_sum(key_squares);
    if (kx_tid() % KX_WAVE == 0) {
        room.squares[0][kx_tid() / KX_WAVE] = query_squares;
        room.squares[1][kx_tid() / KX_WAVE] = key_squares;
    }
    kx_sync();
    query_squares = key_squares = 0.0f;
    KX_UNROLL
    for (u32 wave = 0; wave < WAVES; wave++) query_squares += room.squares[0][wave], key_squares += room.squares[1][wave];
    const f32 query_factor = kx_rsqrt(query_squares + args.eps) * args.scale, key_factor = kx_rsqrt(key_squares + args.eps);

    f32 q[ITEMS][VECTOR], k[ITEMS][VECTOR];
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        const u32 element = (item * LANES + lane) * VECTOR;
        const bool exists = element < KEY_DIM;
        kx_load_vector(q[item], room.queries + (exists ? element : 0));
        kx_load_vector(k[item], room.keys + (exists ? element : 0));
        KX_UNROLL
        for (u32 i = 0; i < VECTOR; i++) {
            q[item][i] = exists ? q[item][i] * query_factor : 0.0f;
            k[item][i] = exists ? k[item][i] * key_factor : 0.0f;
        }
    }

    const f32 kq = dot(k, q);
    OUT_T* const out = args.out + row * args.out_stride + head * VALUE_DIM;
    KX_UNROLL
    for (u32 r = 0; r < ROWS; r++) {
        const u32 value = first_value + r * GROUPS;
        const f32 sk = dot(state[r], k), sq = dot(state[r], q);
        const f32 v = value < VALUE_DIM ? room.values[kx_tid() / LANES + r * GROUPS] : 0.0f;
        const f32 delta = beta * (v - decay * sk);
        if (lane == 0 && value < VALUE_DIM) kx_store(out + value, kx_fma(kq, delta, decay * sq));
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) {
            const u32 element = (item * LANES + lane) * VECTOR;
            KX_UNROLL
            for (u32 i = 0; i < VECTOR; i++) state[r][item][i] = kx_fma(delta, k[item][i], decay * state[r][item][i]);
            if (value < VALUE_DIM && element < KEY_DIM) kx_store_vector(rows + value * KEY_DIM + element, state[r][item]);
        }
    }
}
