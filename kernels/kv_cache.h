// The KV cache of one attention layer: [block, 2 (keys, values), KV_HEADS, 16 tokens, HEAD_DIM] KV_T. In e4m3 and e5m2,
// every block ends with the scales of its rows (kx_fp8.h), a byte each: [2, KV_HEADS, 16 tokens].
#pragma once
#include "kx_fp8.h"
#include "step.h"

// Elements from the keys of a head in a block to its values.
#define KV_VALUES (KV_HEADS * KX_BLOCK * HEAD_DIM)

// Whether rows have scales.
template <class T> struct KvScaled { static const bool value = false; };
template <> struct KvScaled<e4m3> { static const bool value = true; };
template <> struct KvScaled<e5m2> { static const bool value = true; };
#define KV_SCALED (KvScaled<KV_T>::value)
// Bytes of the scales of a block, which is as many elements.
#define KV_SCALES (KV_SCALED ? 2 * KV_HEADS * KX_BLOCK : 0)

// Where the keys of a head in a block begin: [16, HEAD_DIM].
KX_DEV u64 kv_keys(u32 block, u32 head) {
    return ((u64)block * (2 * KV_HEADS) + head) * (KX_BLOCK * HEAD_DIM) + (u64)block * KV_SCALES;
}

// Where the scales of the keys of a head in a block begin, and from there to those of its values: [16], aligned to 16.
KX_DEV u64 kv_scales(u32 block, u32 head) { return kv_keys(block + 1, 0) - KV_SCALES + head * KX_BLOCK; }
#define KV_VALUE_SCALES (KV_HEADS * KX_BLOCK)

// The block that holds a position of a sequence.
KX_DEV u32 kv_block(const u32* blocks, u32 position) { return blocks[position / KX_BLOCK]; }

// Eight neighbouring elements as they lie in the cache.
template <class T> struct KvEight { u32x4 words; };
template <> struct KvEight<f32> { f32x4 low, high; };
template <> struct KvEight<e4m3> { u32x2 codes; };
template <> struct KvEight<e5m2> { u32x2 codes; };

KX_DEV KvEight<f32> kv_load(const f32* from) {
    return KvEight<f32>{kx_load_once((const f32x4*)from), kx_load_once((const f32x4*)from + 1)};
}
KX_DEV KvEight<bf16> kv_load(const bf16* from) { return KvEight<bf16>{kx_load_once((const u32x4*)from)}; }
KX_DEV KvEight<f16> kv_load(const f16* from) { return KvEight<f16>{kx_load_once((const u32x4*)from)}; }
KX_DEV KvEight<e4m3> kv_load(const e4m3* from) { return KvEight<e4m3>{kx_load((const u32x2*)from)}; }
KX_DEV KvEight<e5m2> kv_load(const e5m2* from) { return KvEight<e5m2>{kx_load((const u32x2*)from)}; }

// Without the scale of their row.
KX_DEV void kv_unpack(f32 out[8], const KvEight<f32>& in) {
    out[0] = in.low.x, out[1] = in.low.y, out[2] = in.low.z, out[3] = in.low.w;
    out[4] = in.high.x, out[5] = in.high.y, out[6] = in.high.z, out[7] = in.high.w;
}
KX_DEV void kv_unpack(f32 out[8], const KvEight<bf16>& in) { kx_unpack8(out, in.words, bf16()); }
KX_DEV void kv_unpack(f32 out[8], const KvEight<f16>& in) { kx_unpack8(out, in.words, f16()); }
template <class T> KX_DEV void kv_unpack(f32 out[8], const KvEight<T>& in) {
    kx_fp8_four(out, in.codes.x, T());
    kx_fp8_four(out + 4, in.codes.y, T());
}

// Eight elements of an activation into a cache without scales: the only place where they are rounded to its type.
template <class T> KX_DEV void kv_store(T* to, const T* from) {
    KX_UNROLL
    for (int i = 0; i < (int)sizeof(T) / 2; i++) ((u32x4*)to)[i] = kx_load((const u32x4*)from + i);
}
template <class T, class X> KX_DEV void kv_store(T* to, const X* from) {
    f32 numbers[8];
    kx_load8(numbers, from);
    kx_store8_finite(to, numbers);
}
// Codes as they are.
KX_DEV void kv_store(e4m3* to, const e4m3* from) { *(u32x2*)to = kx_load((const u32x2*)from); }
KX_DEV void kv_store(e5m2* to, const e5m2* from) { *(u32x2*)to = kx_load((const u32x2*)from); }

// Where a row of a cache lies: the keys of a head, or its values as those of head KV_HEADS + head.
struct KvPlace {
    u32 block;
    u32 head;
    u32 token; // within the block
};

// Writes a row that `Lanes` neighbouring lanes have, eight numbers each from `first` on, rounded to the cache's type. All
// lanes of a wave come here at once, since they look for the largest number of a row together; those with nothing to
// write say so, and have zeros.
template <u32 Lanes> KX_DEV void kv_put(KV_T* cache, KvPlace place, u32 first, const f32 in[8], bool write) {
    KV_T* to = cache + kv_keys(place.block, place.head) + place.token * HEAD_DIM + first;
    if constexpr (KV_SCALED) {
        f32 largest = 0.0f;
        KX_UNROLL
        for (int i = 0; i < 8; i++) largest = kx_max(largest, kx_max(in[i], -in[i]));
        const u32 scale = kx_scale_of(kx_group_max<Lanes>(largest), KV_T());
        const f32 inverse = kx_scale_inverse(scale);
        f32 scaled[8];
        KX_UNROLL
        for (int i = 0; i < 8; i++) scaled[i] = in[i] * inverse;
        if (!write) return;
        kx_store8(to, scaled);
        if (first == 0) ((u8*)cache)[kv_scales(place.block, place.head) + place.token] = (u8)scale;
    } else {
        if (write) kx_store8_finite(to, in);
    }
}
