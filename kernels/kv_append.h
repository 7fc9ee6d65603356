// The arguments of the kernels that write keys and values into the cache: k, v: [T, KV_HEADS * HEAD_DIM] X_T with row
// strides in elements.
#pragma once
#include "kv_cache.h"

struct KvAppendArgs {
    Step step;
    const X_T* k;
    const X_T* v;
    KV_T* cache;
    u32 k_stride;
    u32 v_stride;
};
