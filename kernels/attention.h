// What all kernels of attention share: the cache, the bounds of scores, and the gate on the result,
// out = attention * sigmoid(gate), before anything is rounded. Without GATE_T there is none.
// gate: [T, HEADS * HEAD_DIM] GATE_T with a row stride in elements.
#pragma once
#include "kv_cache.h"

// Below all scores, yet finite: a masked score is twice as low as the maximum of no scores, so its weight is 0.
#define NO_MAXIMUM -1e30f
#define MASKED -2e30f

#ifdef GATE_T
#define GATE_ARGS \
    const GATE_T* gate; \
    u32 gate_stride, gate_padding;
#else
#define GATE_ARGS
#endif

// The factors on N neighbouring columns of a row.
template <int N, class Args> KX_DEV void load_gate(f32 out[N], const Args& args, u64 row, u32 column) {
#ifdef GATE_T
    KX_UNROLL
    for (int i = 0; i < N; i++) out[i] = kx_sigmoid(kx_float(args.gate[row * args.gate_stride + column + i]));
#else
    KX_UNROLL
    for (int i = 0; i < N; i++) out[i] = 1.0f;
#endif
}
