// The dialect in which every kernel is written: one vocabulary, and a header for each way to compile it.
//
//   kx_cuda.h   NVRTC, nvcc             waves of 32, tensor cores from sm_80 on
//   kx_hip.h    clang (no ROCm), hipRTC waves of 64 (gfx9)
//   kx_sim.h    any C++17 compiler      threads are fibres on the CPU; waves of 32 (with emulated mma) or 64
//
// A kernel file includes this file, takes its constants from defines and its arguments from one struct:
//
//   struct AddArgs { const X* a; const X* b; X* out; u32 width; };
//   KX_KERNEL(add, AddArgs, 256) { ... args.a ... }
//
// Rules. Only kx_* names, no CUDA or HIP ones. KX_WAVE (32 or 64) is a constant: never write 32. Every thread of a
// block reaches every kx_sync, every thread of a wave every shuffle, reduction and mma. Shared arrays that are accessed
// 16 bytes at a time are KX_ALIGN(16). Loops over register arrays are KX_UNROLLed, so that no array goes to memory.
// A kernel waits with kx_wait_for_previous before it touches anything that an earlier kernel of the step writes: all but
// weights, the step block (its tokens excepted), and states that only it writes. Some block waits in every launch, also
// where there is nothing to do, since the next kernel waits for this one only.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef float f32;

#if defined(KX_SIM)
#include "kx_sim.h"
#elif defined(__HIP__) || defined(__AMDGCN__)
#include "kx_hip.h"
#else
#include "kx_cuda.h"
#endif

// Each of the three headers defines:
//   KX_WAVE, KX_MMA (1 where kx_mma_* and kx_ldmatrix_* exist), KX_DEV, KX_SHARED, KX_ALIGN(n), KX_UNROLL,
//   KX_UNROLL_BY(n): at most so many turns of the next loop in a row, so that their loads find registers
//   KX_KERNEL(name, Args, threads): the entry point, its argument is `args`. KX_RESIDENT, where a kernel has defined it,
//   is how many blocks a processor shall hold at once: they share its registers, and the compiler may use all of them
//   KX_DYNAMIC_SHARED(type, name): `type* name` is the dynamic shared memory of the launch, 16-byte aligned
//   kx_tid() in the block, kx_block_x/y/z(), kx_blocks_x/y/z()
//   kx_sync(), kx_sync_wave(), kx_fence() (device-wide order of this thread's writes)
//   kx_shuffle_xor<M>(v), kx_shuffle(v, lane) for f32 and u32, within a wave
//   kx_fma, kx_max, kx_min, kx_exp2, kx_log2, kx_rsqrt, kx_sqrt, kx_rcp, kx_sin, kx_cos, kx_pow (f32; the last three exact)
//   kx_f16_to_f32(u16), kx_f32_to_f16(f32)
//   kx_atomic_add(u32*, u32) -> old value, device-wide; kx_atomic_max likewise
//   kx_load_stream<V>(const V*): a load of data that is read once and that nobody writes (weights);
//   kx_load_once<V>: of data that is read once and that the kernel before may still have written after this one began
//   (caches); kx_load<V>: of data that stays cached
//   kx_copy_async16(shared, global, valid): 16 bytes to shared memory, zeros unless valid; kx_copy_commit();
//   kx_copy_wait<N>(): all but the last N committed groups have landed (a kx_sync must follow)
//   kx_wait_for_previous(), kx_let_next_start(): programmatic dependent launch; no-ops where there is none
//   where KX_MMA: kx_mma_bf16(f32 d[4], const u32 a[4], const u32 b[2]) and kx_mma_f16: d += a b, m16n8k16, and
//   kx_ldmatrix4(u32 d[4], const void* shared_row), kx_ldmatrix4_trans, kx_ldmatrix2, kx_ldmatrix2_trans

struct KX_ALIGN(16) u32x4 { u32 x, y, z, w; };
struct KX_ALIGN(8) u32x2 { u32 x, y; };
struct KX_ALIGN(16) f32x4 { f32 x, y, z, w; };
struct KX_ALIGN(8) f32x2 { f32 x, y; };

// Element types. `f32` is one too.
struct bf16 { u16 bits; };
struct f16 { u16 bits; };

KX_DEV u32 kx_bits(f32 value) {
    union { f32 f; u32 u; } both;
    both.f = value;
    return both.u;
}
KX_DEV f32 kx_from_bits(u32 bits) {
    union { f32 f; u32 u; } both;
    both.u = bits;
    return both.f;
}

KX_DEV f32 kx_float(f32 value) { return value; }
KX_DEV f32 kx_float(bf16 value) { return kx_from_bits((u32)value.bits << 16); }
KX_DEV f32 kx_float(f16 value) { return kx_f16_to_f32(value.bits); }

// Rounds to nearest even. Infinities stay, NaN stays NaN.
KX_DEV u16 kx_bf16_bits(f32 value) {
    u32 bits = kx_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)(bits >> 16 | 0x40u);
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
// Two neighbouring elements in one word, the first in the low half; kx_f16_pair_finite gives 65504 for what is larger.
#ifndef KX_PAIRS
KX_DEV u32 kx_bf16_pair(f32 low, f32 high) { return kx_bf16_bits(low) | (u32)kx_bf16_bits(high) << 16; }
KX_DEV u32 kx_f16_pair(f32 low, f32 high) { return kx_f32_to_f16(low) | (u32)kx_f32_to_f16(high) << 16; }
KX_DEV f32 kx_f16_range(f32 value) { return value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value; }
KX_DEV u32 kx_f16_pair_finite(f32 low, f32 high) { return kx_f16_pair(kx_f16_range(low), kx_f16_range(high)); }
#endif
KX_DEV void kx_store(f32* to, f32 value) { *to = value; }
KX_DEV void kx_store(bf16* to, f32 value) { to->bits = kx_bf16_bits(value); }
KX_DEV void kx_store(f16* to, f32 value) { to->bits = kx_f32_to_f16(value); }

// The value after a trip through the type, as storing and loading it would give.
KX_DEV f32 kx_rounded(f32 value, f32) { return value; }
KX_DEV f32 kx_rounded(f32 value, bf16) { return kx_from_bits((u32)kx_bf16_bits(value) << 16); }
KX_DEV f32 kx_rounded(f32 value, f16) { return kx_f16_to_f32(kx_f32_to_f16(value)); }

// The nearest value that the type has: f16 ends at 65504, and an infinity would spoil all that is computed from it.
KX_DEV f32 kx_saturated(f32 value, f32) { return value; }
KX_DEV f32 kx_saturated(f32 value, bf16) { return value; }
KX_DEV f32 kx_saturated(f32 value, f16) { return kx_max(-65504.0f, kx_min(value, 65504.0f)); }

// Eight elements at an address that is aligned to their size, to and from f32.
KX_DEV void kx_unpack8(f32 out[8], u32x4 words, bf16) {
    const u32 w[4] = {words.x, words.y, words.z, words.w};
    KX_UNROLL
    for (int i = 0; i < 4; i++) {
        out[2 * i] = kx_from_bits(w[i] << 16);
        out[2 * i + 1] = kx_from_bits(w[i] & 0xffff0000u);
    }
}
KX_DEV void kx_unpack8(f32 out[8], u32x4 words, f16) {
    const u32 w[4] = {words.x, words.y, words.z, words.w};
    KX_UNROLL
    for (int i = 0; i < 4; i++) {
        out[2 * i] = kx_f16_to_f32((u16)w[i]);
        out[2 * i + 1] = kx_f16_to_f32((u16)(w[i] >> 16));
    }
}
KX_DEV void kx_load8(f32 out[8], const bf16* from) { kx_unpack8(out, kx_load((const u32x4*)from), bf16()); }
KX_DEV void kx_load8(f32 out[8], const f16* from) { kx_unpack8(out, kx_load((const u32x4*)from), f16()); }
KX_DEV void kx_load8(f32 out[8], const f32* from) {
    const f32x4 a = kx_load((const f32x4*)from), b = kx_load((const f32x4*)from + 1);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
KX_DEV void kx_store8(bf16* to, const f32 in[8]) {
    u32 w[4];
    KX_UNROLL
    for (int i = 0; i < 4; i++) w[i] = kx_bf16_pair(in[2 * i], in[2 * i + 1]);
    *(u32x4*)to = u32x4{w[0], w[1], w[2], w[3]};
}
KX_DEV void kx_store8(f16* to, const f32 in[8]) {
    u32 w[4];
    KX_UNROLL
    for (int i = 0; i < 4; i++) w[i] = kx_f16_pair(in[2 * i], in[2 * i + 1]);
    *(u32x4*)to = u32x4{w[0], w[1], w[2], w[3]};
}
// The nearest values that the type has, where infinities would spoil what is computed from them; NaN stays NaN.
KX_DEV void kx_store8_finite(f16* to, const f32 in[8]) {
    u32 w[4];
    KX_UNROLL
    for (int i = 0; i < 4; i++) w[i] = kx_f16_pair_finite(in[2 * i], in[2 * i + 1]);
    *(u32x4*)to = u32x4{w[0], w[1], w[2], w[3]};
}
KX_DEV void kx_store8(f32* to, const f32 in[8]) {
    *(f32x4*)to = f32x4{in[0], in[1], in[2], in[3]};
    *((f32x4*)to + 1) = f32x4{in[4], in[5], in[6], in[7]};
}
template <class T> KX_DEV void kx_store8_finite(T* to, const f32 in[8]) { kx_store8(to, in); }

// As many neighbouring elements as the array has, 8, 4 or 1, to and from f32. More than one lie at an address that is
// aligned to their size.
template <class T> KX_DEV void kx_load_vector(f32 (&out)[8], const T* from) { kx_load8(out, from); }
template <class T> KX_DEV void kx_load_vector(f32 (&out)[4], const T* from) {
    const u32x2 words = kx_load((const u32x2*)from);
    T x;
    x.bits = (u16)words.x, out[0] = kx_float(x);
    x.bits = (u16)(words.x >> 16), out[1] = kx_float(x);
    x.bits = (u16)words.y, out[2] = kx_float(x);
    x.bits = (u16)(words.y >> 16), out[3] = kx_float(x);
}
KX_DEV void kx_load_vector(f32 (&out)[4], const f32* from) {
    const f32x4 all = kx_load((const f32x4*)from);
    out[0] = all.x, out[1] = all.y, out[2] = all.z, out[3] = all.w;
}
template <class T> KX_DEV void kx_load_vector(f32 (&out)[1], const T* from) { out[0] = kx_float(*from); }
template <class T> KX_DEV void kx_store_vector(T* to, const f32 (&in)[8]) { kx_store8(to, in); }
KX_DEV void kx_store_vector(f32* to, const f32 (&in)[4]) { *(f32x4*)to = f32x4{in[0], in[1], in[2], in[3]}; }
template <class T> KX_DEV void kx_store_vector(T* to, const f32 (&in)[1]) { kx_store(to, in[0]); }

// Functions of the model, in f32.
#define KX_LOG2E 1.4426950408889634f
#define KX_LN2 0.6931471805599453f
KX_DEV f32 kx_exp(f32 x) { return kx_exp2(x * KX_LOG2E); }
KX_DEV f32 kx_sigmoid(f32 x) { return 1.0f / (1.0f + kx_exp(-x)); }
KX_DEV f32 kx_silu(f32 x) { return x / (1.0f + kx_exp(-x)); }

// The sum, or the largest, of a value over the wave; every lane gets it.
template <int M> struct KxWave {
    static KX_DEV_MEMBER f32 sum(f32 v) { return KxWave<M / 2>::sum(v + kx_shuffle_xor<M>(v)); }
    static KX_DEV_MEMBER f32 max(f32 v) { return KxWave<M / 2>::max(kx_max(v, kx_shuffle_xor<M>(v))); }
};
template <> struct KxWave<0> {
    static KX_DEV_MEMBER f32 sum(f32 v) { return v; }
    static KX_DEV_MEMBER f32 max(f32 v) { return v; }
};
KX_DEV f32 kx_wave_sum(f32 v) { return KxWave<KX_WAVE / 2>::sum(v); }
KX_DEV f32 kx_wave_max(f32 v) { return KxWave<KX_WAVE / 2>::max(v); }
// Over groups of W neighbouring lanes, W a power of two up to KX_WAVE.
template <int W> KX_DEV f32 kx_group_sum(f32 v) { return KxWave<W / 2>::sum(v); }
template <int W> KX_DEV f32 kx_group_max(f32 v) { return KxWave<W / 2>::max(v); }

// The sum over a block of THREADS threads; `room` is shared, THREADS / KX_WAVE floats. Every thread gets it.
template <int BlockThreads> KX_DEV f32 kx_block_sum(f32 v, f32* room) {
    v = kx_wave_sum(v);
    kx_sync();
    if (kx_tid() % KX_WAVE == 0) room[kx_tid() / KX_WAVE] = v;
    kx_sync();
    f32 total = 0.0f;
    KX_UNROLL
    for (int i = 0; i < BlockThreads / KX_WAVE; i++) total += room[i];
    return total;
}
