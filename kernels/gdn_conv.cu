// The short causal convolution of Gated DeltaNet, then SiLU, over each sequence:
// out[t, c] = silu(sum_j weight[j, c] x[t - TAPS + 1 + j, c]). The last TAPS - 1 inputs of a sequence are its state.
//
// gdn_prepare goes on with all that comes before the gated delta rule: the norm of the heads of queries and keys, which are
// the first channels,
//   head <- head rsqrt(sum(head^2) + eps), queries times scale,
// and the gates of gdn_gates.cu. Nothing is rounded between the convolution and the norm.
//
// x: [T, channels] X_T and out: [T, channels] OUT_T with row strides in elements; weight: [TAPS, channels] f32; state:
// gdn_window.h, X_T. b, a: [T, HEADS] X_T, beta, decay: [T, HEADS] f32. Arithmetic is f32. `out` must not be `x`.
//
// Grid: (channel blocks, parts of a piece, pieces). A block takes THREADS * VECTOR channels of at most ROWS rows; a thread
// slides over the rows with the last TAPS - 1 inputs of its channels in registers, and loads AHEAD rows at once. VECTOR is
// 8 where all rows begin at multiples of 16 bytes and the channels are a multiple of 8, else 1. The last block of gdn_prepare
// along x computes the gates.
//
// The state is read and written by one block for each channel: the one with the first row of a segment, which takes all
// rows that need the state, the first TAPS - 1, even where they lie in the next piece.
//
// Defines: X_T, OUT_T, TAPS, VECTOR, THREADS; SINGLE and ROWS: 1 and 1 for the pieces of single tokens, which are all of their
// segment, or 0 and at least TAPS - 1 for the others. Of gdn_prepare also HEADS, KEY_DIM and HEAD_LANES (KEY_DIM / VECTOR,
// a power of two up to 32), and SCANNED: 1 to leave single tokens of the recurrence to gdn_step.cu.
#include "gdn_gates.h"
#include "gdn_window.h"

#define AHEAD (ROWS < 8 ? ROWS : 8)

struct GdnConvArgs {
    Step step;
    const X_T* x;      // [T, channels]
    const f32* weight; // [TAPS, channels]
    X_T* state;        // [slot, TAPS, channels]
    OUT_T* out;        // [T, channels]
    u32 x_stride, out_stride, channels, padding;
#ifdef HEAD_LANES
    const X_T* b;       // [T, HEADS]
    const X_T* a;       // [T, HEADS]
    const f32* a_log;   // [HEADS]
    const f32* dt_bias; // [HEADS]
    f32* beta;          // [T, HEADS]
    f32* decay;         // [T, HEADS]
    u32 b_stride, a_stride, beta_stride, decay_stride;
    u32 queries; // channels of queries; as many of keys follow
    f32 scale, eps;
    u32 reserved;
#endif
};

// VECTOR neighbouring elements as they lie in memory: loaded long before they are used, they take few registers.
#if VECTOR == 8
template <class X> struct Raw { u32x4 words; };
template <> struct Raw<f32> { f32x4 low, high; };
template <class X> KX_DEV Raw<X> fetch(const X* from) { return Raw<X>{kx_load((const u32x4*)from)}; }
KX_DEV Raw<f32> fetch(const f32* from) { return Raw<f32>{kx_load((const f32x4*)from), kx_load((const f32x4*)from + 1)}; }
template <class X> KX_DEV void unpack(f32 out[8], const Raw<X>& raw) { kx_unpack8(out, raw.words, X()); }
KX_DEV void unpack(f32 out[8], const Raw<f32>& raw) {
    out[0] = raw.low.x, out[1] = raw.low.y, out[2] = raw.low.z, out[3] = raw.low.w;
    out[4] = raw.high.x, out[5] = raw.high.y, out[6] = raw.high.z, out[7] = raw.high.w;
}
#else
template <class X> struct Raw { X value; };
template <class X> KX_DEV Raw<X> fetch(const X* from) { return Raw<X>{kx_load(from)}; }
template <class X> KX_DEV void unpack(f32 out[1], const Raw<X>& raw) { out[0] = kx_float(raw.value); }
#endif

#ifdef HEAD_LANES
// The gates of a part of a piece.
KX_DEV void gates(const GdnConvArgs& args, const Piece& piece) {
    const u32 begin = kx_block_y() * ROWS, end = begin + ROWS < piece.len ? begin + ROWS : piece.len;
    for (u32 i = begin * HEADS + kx_tid(); i < end * HEADS; i += THREADS) {
        const u64 row = piece.row + i / HEADS;
        const u32 head = i % HEADS;
        const f32 b = kx_float(args.b[row * args.b_stride + head]), a = kx_float(args.a[row * args.a_stride + head]);
        args.beta[row * args.beta_stride + head] = kx_sigmoid(b);
        args.decay[row * args.decay_stride + head] = log_decay(a, args.a_log[head], args.dt_bias[head]);
    }
}

// Normalises the part of a head that this thread has, if its channels are of queries or keys. All threads take part.
KX_DEV void normalise(const GdnConvArgs& args, u32 channel, f32 values[VECTOR]) {
    f32 sum = 0.0f;
    KX_UNROLL
    for (u32 c = 0; c < VECTOR; c++) sum = kx_fma(values[c], values[c], sum);
    f32 factor = kx_rsqrt(kx_group_sum<HEAD_LANES>(sum) + args.eps);
    if (channel < args.queries) factor *= args.scale;
    if (channel >= 2 * args.queries) return;
    KX_UNROLL
    for (u32 c = 0; c < VECTOR; c++) values[c] *= factor;
}
#define ENTRY gdn_prepare
#else
#define ENTRY gdn_conv
#endif

KX_KERNEL(ENTRY, GdnConvArgs, THREADS) {
    kx_let_next_start();
    const u32 own = (kx_block_x() * THREADS + kx_tid()) * VECTOR;
    const bool inside = own < args.channels;
#ifdef HEAD_LANES
    const bool of_gates = kx_block_x() + 1 == kx_blocks_x();
    // Threads without channels do as the first one does, and store nothing.
    const u32 channel = inside ? own : 0;
#else
    if (!inside) return;
    const u32 channel = own;
#endif
    f32 weight[TAPS][VECTOR];
    KX_UNROLL
    for (u32 tap = 0; tap < TAPS; tap++) unpack(weight[tap], fetch(args.weight + (u64)tap * args.channels + channel));

    const StepHeader* const header = args.step.header;
    const u32 index = kx_block_z() + (SINGLE ? header->prefill_pieces : 0);
    const bool exists = index < (SINGLE ? header->pieces : header->prefill_pieces);
    const Piece piece = args.step.pieces[exists ? index : 0];
    const Segment segment = args.step.segments[piece.segment];

    // Rows are counted from the segment's first.
    u32 begin = piece.row - segment.row, end = begin + piece.len;
    if (begin == 0) {
        const u32 needed = TAPS <= segment.len ? KEPT : segment.len;
        if (end < needed) end = needed;
    } else if (begin + 1 < TAPS) {
        begin = KEPT;
    }
    begin += kx_block_y() * ROWS;
    if (end > begin + ROWS) end = begin + ROWS;

    const X_T* const x = args.x + (u64)segment.row * args.x_stride + channel;
    OUT_T* const out = args.out + (u64)segment.row * args.out_stride + channel;
    X_T* const state = args.state + (u64)segment.slot * TAPS * args.channels + channel;

    // window[j] is the input KEPT - j rows before the next one.
    f32 window[WINDOW][VECTOR];
    KX_UNROLL
    for (u32 j = 0; j + 1 < TAPS; j++) {
        KX_UNROLL
        for (u32 i = 0; i < VECTOR; i++) window[j][i] = 0.0f;
        // Of this step, only this block writes this part of the state.
        if (exists && begin == 0 && in_window(segment.position, j)) {
            unpack(window[j], fetch(state + window_entry(segment.position, j) * args.channels));
        }
    }
    kx_wait_for_previous();
    if (!exists) return;
#ifdef HEAD_LANES
    if (SINGLE && SCANNED && segment.scan == 0) return;
    if (of_gates) {
        gates(args, piece);
        return;
    }
#endif
    if (begin >= end) return;
    if (begin > 0) {
        KX_UNROLL
        for (u32 j = 0; j + 1 < TAPS; j++) unpack(window[j], fetch(x + (u64)(begin - KEPT + j) * args.x_stride));
    }

    if (begin == 0 && inside) {
        // The last inputs of the segment, wherever they take the place of what has just been read.
        KX_UNROLL
        for (u32 j = SINGLE && TAPS > 1 ? KEPT - 1 : 0; j + 1 < TAPS; j++) {
            if (segment.len + j < KEPT) continue;
            const u32 row = segment.len + j - KEPT;
            f32 kept[VECTOR];
            unpack(kept, fetch(x + (u64)row * args.x_stride));
            kx_store_vector(state + (segment.position + row) % TAPS * args.channels, kept);
        }
    }

    for (u32 row = begin; row < end; row += AHEAD) {
        Raw<X_T> ahead[AHEAD];
        KX_UNROLL
        for (u32 i = 0; i < AHEAD; i++) {
            if (row + i < end) ahead[i] = fetch(x + (u64)(row + i) * args.x_stride);
        }
        KX_UNROLL
        for (u32 i = 0; i < AHEAD; i++) {
            if (row + i < end) {
                f32 now[VECTOR], sum[VECTOR];
                unpack(now, ahead[i]);
                KX_UNROLL
                for (u32 c = 0; c < VECTOR; c++) {
                    f32 total = 0.0f;
                    KX_UNROLL
                    for (u32 j = 0; j + 1 < TAPS; j++) total = kx_fma(weight[j][c], window[j][c], total);
                    sum[c] = kx_silu(kx_fma(weight[KEPT][c], now[c], total));
                    KX_UNROLL
                    for (u32 j = 0; j + 2 < TAPS; j++) window[j][c] = window[j + 1][c];
                    if (TAPS > 1) window[WINDOW - 1][c] = now[c];
                }
#ifdef HEAD_LANES
                normalise(args, own, sum);
#endif
                KX_UNROLL
                for (u32 c = 0; c < VECTOR; c++) sum[c] = kx_saturated(sum[c], OUT_T());
                if (inside) kx_store_vector(out + (u64)(row + i) * args.out_stride, sum);
            }
        }
    }
}
