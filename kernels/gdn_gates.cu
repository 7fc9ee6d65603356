// The gates of the gated delta rule: beta = sigmoid(b), decay = -exp(a_log) * softplus(a + dt_bias), the logarithm of the
// decay, by token and value head.
//
// b, a: [T, HEADS] X_T, beta, decay: [T, HEADS] f32, with row strides in elements; a_log, dt_bias: [HEADS] f32.
//
// A thread takes one head of one token; a block takes ROWS tokens. Latency is all there is to it: 8192 tokens of 32 heads
// are 3 MB.
//
// Defines: X_T, HEADS, ROWS (THREADS / HEADS, at least 1), THREADS.
#include "step.h"

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

// log(1 + e^x), and x above 20 as in torch's softplus. For small e^x the sum 1 + e^x would lose its digits: there it is
// 2 artanh(e^x / (2 + e^x)).
KX_DEV f32 softplus(f32 x) {
    if (x > 20.0f) return x;
    const f32 e = kx_exp(x);
    if (e > 0.5f) return KX_LN2 * kx_log2(1.0f + e);
    const f32 s = e / (2.0f + e), s2 = s * s;
    const f32 series = kx_fma(kx_fma(kx_fma(1.0f / 7.0f, s2, 1.0f / 5.0f), s2, 1.0f / 3.0f), s2, 1.0f);
    return 2.0f * s * series;
}

KX_KERNEL(gdn_gates, GdnGatesArgs, THREADS) {
    kx_let_next_start();
    const u32 rows = *args.rows;
    bool waited = false;
    for (u32 i = kx_tid(); i < ROWS * HEADS; i += THREADS) {
        const u64 row = kx_block_x() * ROWS + i / HEADS;
        const u32 head = i % HEADS;
        const f32 bias = args.dt_bias[head], rate = -kx_exp(args.a_log[head]);
        if (!waited) kx_wait_for_previous();
        waited = true;
        if (row >= rows) return;
        const f32 b = kx_float(args.b[row * args.b_stride + head]);
        const f32 a = kx_float(args.a[row * args.a_stride + head]) + bias;
        const f32 decay = rate * softplus(a);
        args.beta[row * args.beta_stride + head] = kx_sigmoid(b);
        args.decay[row * args.decay_stride + head] = decay;
    }
}
