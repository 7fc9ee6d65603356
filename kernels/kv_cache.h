// The KV cache of one attention layer: [block, 2 (keys, values), KV_HEADS, 16 tokens, HEAD_DIM] KV_T.
#pragma once
#include "step.h"

// Elements from the keys of a head in a block to its values.
#define KV_VALUES (KV_HEADS * KX_BLOCK * HEAD_DIM)

// Where the keys of a head in a block begin: [16, HEAD_DIM].
KX_DEV u64 kv_keys(u32 block, u32 head) { return ((u64)block * (2 * KV_HEADS) + head) * (KX_BLOCK * HEAD_DIM); }

// The block that holds a position of a sequence.
KX_DEV u32 kv_block(const u32* blocks, u32 position) { return blocks[position / KX_BLOCK]; }

// Eight neighbouring elements as they lie in the cache.
template <class T> struct KvEight { u32x4 words; };
template <> struct KvEight<f32> { f32x4 low, high; };

KX_DEV KvEight<f32> kv_load(const f32* from) {
    return KvEight<f32>{kx_load_stream((const f32x4*)from), kx_load_stream((const f32x4*)from + 1)};
}
KX_DEV KvEight<bf16> kv_load(const bf16* from) { return KvEight<bf16>{kx_load_stream((const u32x4*)from)}; }
KX_DEV KvEight<f16> kv_load(const f16* from) { return KvEight<f16>{kx_load_stream((const u32x4*)from)}; }

KX_DEV void kv_unpack(f32 out[8], const KvEight<f32>& in) {
    out[0] = in.low.x, out[1] = in.low.y, out[2] = in.low.z, out[3] = in.low.w;
    out[4] = in.high.x, out[5] = in.high.y, out[6] = in.high.z, out[7] = in.high.w;
}
KX_DEV void kv_unpack(f32 out[8], const KvEight<bf16>& in) { kx_unpack8(out, in.words, bf16()); }
KX_DEV void kv_unpack(f32 out[8], const KvEight<f16>& in) { kx_unpack8(out, in.words, f16()); }

// Eight elements of an activation into the cache: the only place where they are rounded to its type.
template <class T> KX_DEV void kv_store(T* to, const T* from) {
    KX_UNROLL
    for (int i = 0; i < (int)sizeof(T) / 2; i++) ((u32x4*)to)[i] = kx_load((const u32x4*)from + i);
}
template <class T, class X> KX_DEV void kv_store(T* to, const X* from) {
    f32 numbers[8];
    kx_load8(numbers, from);
    kx_store8(to, numbers);
}
