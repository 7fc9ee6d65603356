// The arguments of the kernels of prefill attention. q: [T, HEADS * HEAD_DIM] X_T; out: the same in OUT_T, with row strides
// in elements; cache: kv_cache.h.
#pragma once
#include "attention.h"

struct AttentionPrefillArgs {
    Step step;
    const X_T* q;
    const KV_T* cache;
    OUT_T* out;
    u32 q_stride;
    u32 out_stride;
    f32 scale; // times log2(e)
    u32 reserved;
    GATE_ARGS
};
