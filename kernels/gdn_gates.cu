// The gates of the gated delta rule: beta = sigmoid(b), decay = -exp(a_log) * softplus(a + dt_bias), the logarithm of the
// decay, by token and value head.
//
// b, a: [T, HEADS] X_T, beta, decay: [T, HEADS] f32, with row strides in elements; a_log, dt_bias: [HEADS] f32.
//
// A thread takes one head of one token; a block takes ROWS tokens. Latency is all there is to it: 8192 tokens of 32 heads
// are 3 MB.
//
// Defines: X_T, HEADS, ROWS (THREADS / HEADS, at least 1), THREADS.
#include "gdn_gates.h"

struct GdnGatesArgs {
    const u32* rows; // one number: how many rows there are
    const X_T* b;
    const X_T* a;
    const f32* a_log;
    const f32* dt_bias;
    f32* beta;
    f32* decay;
    u32 b_stride, a_stride, beta_stride, decay_stride;
};

KX_KERNEL(gdn_gates, GdnGatesArgs, THREADS) {
    kx_let_next_start();
    const u32 rows = *args.rows;
    for (u32 i = kx_tid(); i < ROWS * HEADS; i += THREADS) {
        const u64 row = kx_block_x() * ROWS + i / HEADS;
        const u32 head = i % HEADS;
        const f32 bias = args.dt_bias[head], a_log = args.a_log[head];
        kx_wait_for_previous();
        if (row >= rows) return;
        const f32 b = kx_float(args.b[row * args.b_stride + head]);
        const f32 decay = log_decay(kx_float(args.a[row * args.a_stride + head]), a_log, bias);
        args.beta[row * args.beta_stride + head] = kx_sigmoid(b);
        args.decay[row * args.decay_stride + head] = decay;
    }
}
