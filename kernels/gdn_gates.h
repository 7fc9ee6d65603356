// The gates of the gated delta rule (gdn_gates.cu).
#pragma once
#include "kx.h"

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

// The logarithm of the decay, from the projection `a` of a token.
KX_DEV f32 log_decay(f32 a, f32 a_log, f32 dt_bias) { return -kx_exp(a_log) * softplus(a + dt_bias); }
