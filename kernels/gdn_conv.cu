// The short causal convolution of Gated DeltaNet, then SiLU, over each sequence:
// out[t, c] = silu(sum_j weight[j, c] x[t - TAPS + 1 + j, c]). The last TAPS - 1 inputs of a sequence are its state.
//
// x: [T, channels] X_T and out: [T, channels] OUT_T with row strides in elements; weight: [TAPS, channels] f32; state:
// [slot, TAPS - 1, channels] X_T, oldest first. Arithmetic is f32. `out` must not be `x`.
//
// Grid: (channel blocks, parts of a piece, pieces). A block takes THREADS * VECTOR channels of at most ROWS rows; a thread
// slides over the rows with the last TAPS - 1 inputs of its channels in registers, and loads AHEAD rows at once. VECTOR is
// 8 where all rows begin at multiples of 16 bytes and the channels are a multiple of 8, else 1.
//
// The state is read and written by one block for each channel: the one with the first row of a segment, which takes all
// rows that need the state, the first TAPS - 1, even where they lie in the next piece.
//
// Defines: X_T, OUT_T, TAPS, VECTOR, THREADS; SINGLE and ROWS: 1 and 1 for the pieces of single tokens, which are all of their
// segment, or 0 and at least TAPS - 1 for the others.
#include "step.h"

#define KEPT (TAPS - 1)
#define WINDOW (TAPS > 1 ? TAPS - 1 : 1)
#define AHEAD (ROWS < 8 ? ROWS : 8)

struct GdnConvArgs {
    Step step;
    const X_T* x;      // [T, channels]
    const f32* weight; // [TAPS, channels]
    X_T* state;        // [slot, TAPS - 1, channels]
    OUT_T* out;        // [T, channels]
    u32 x_stride, out_stride, channels, padding;
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
template <class X> KX_DEV void store(X* to, const f32 in[8]) { kx_store8(to, in); }
#else
template <class X> struct Raw { X value; };
template <class X> KX_DEV Raw<X> fetch(const X* from) { return Raw<X>{kx_load(from)}; }
template <class X> KX_DEV void unpack(f32 out[1], const Raw<X>& raw) { out[0] = kx_float(raw.value); }
template <class X> KX_DEV void store(X* to, const f32 in[1]) { kx_store(to, in[0]); }
#endif

KX_KERNEL(gdn_conv, GdnConvArgs, THREADS) {
    kx_let_next_start();
    const u32 channel = (kx_block_x() * THREADS + kx_tid()) * VECTOR;
    if (channel >= args.channels) return;
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
    X_T* const state = args.state + (u64)segment.slot * KEPT * args.channels + channel;
    const bool fresh = segment.position == 0;

    // window[j] is the input KEPT - j rows before the next one.
    f32 window[WINDOW][VECTOR];
    KX_UNROLL
    for (u32 j = 0; j + 1 < TAPS; j++) {
        KX_UNROLL
        for (u32 i = 0; i < VECTOR; i++) window[j][i] = 0.0f;
        // Of this step, only this block writes this part of the state.
        if (exists && begin == 0 && !fresh) unpack(window[j], fetch(state + j * args.channels));
    }
    kx_wait_for_previous();
    if (!exists || begin >= end) return;
    if (begin > 0) {
        KX_UNROLL
        for (u32 j = 0; j + 1 < TAPS; j++) unpack(window[j], fetch(x + (u64)(begin - KEPT + j) * args.x_stride));
    }

    if (begin == 0) {
        // Entries move towards the front, and each is read before it is written.
        KX_UNROLL
        for (u32 j = 0; j + 1 < TAPS; j++) {
            const u32 from = segment.len + j; // in the old state and the segment, one behind the other
            f32 kept[VECTOR];
            KX_UNROLL
            for (u32 i = 0; i < VECTOR; i++) kept[i] = 0.0f;
            if (SINGLE && j + 2 < TAPS) {
                KX_UNROLL
                for (u32 i = 0; i < VECTOR; i++) kept[i] = window[(j + 1) % WINDOW][i];
            } else if (from + 1 >= TAPS) {
                unpack(kept, fetch(x + (u64)(from - KEPT) * args.x_stride));
            } else if (!fresh) {
                unpack(kept, fetch(state + from * args.channels));
            }
            store(state + j * args.channels, kept);
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
                    sum[c] = kx_saturated(kx_silu(kx_fma(weight[KEPT][c], now[c], total)), OUT_T());
                    KX_UNROLL
                    for (u32 j = 0; j + 2 < TAPS; j++) window[j][c] = window[j + 1][c];
                    if (TAPS > 1) window[WINDOW - 1][c] = now[c];
                }
                store(out + (u64)(row + i) * args.out_stride, sum);
            }
        }
    }
}
