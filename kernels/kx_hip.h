// The dialect on AMD and Hygon GPUs: clang with neither HIP headers nor device libraries, and hipRTC.
#pragma once

// GCN and CDNA (gfx9) have waves of 64; RDNA (gfx10 and later) of 32, and permutes there don't leave 32 lanes.
#ifndef KX_WAVE
#if defined(__GFX10__) || defined(__GFX11__) || defined(__GFX12__)
#define KX_WAVE 32
#else
#define KX_WAVE 64
#endif
#endif
#define KX_MMA 0
#if !defined(__HIPCC_RTC__) && !defined(__global__)
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#endif
#define KX_DEV static __device__ inline __attribute__((always_inline))
#define KX_DEV_MEMBER __device__ inline __attribute__((always_inline))
#define KX_SHARED __shared__
#define KX_ALIGN(n) __attribute__((aligned(n)))
#define KX_UNROLL _Pragma("unroll")
#define KX_PRAGMA(text) _Pragma(#text)
#define KX_UNROLL_BY(n) KX_PRAGMA(unroll n)
#define KX_KERNEL(name, Args, threads) \
    extern "C" __global__ __attribute__((amdgpu_flat_work_group_size(threads, threads))) void name(const Args args)
#define KX_DYNAMIC_SHARED(type, name) \
    extern __shared__ __attribute__((aligned(128))) unsigned char kx_dynamic_shared[]; \
    type* name = (type*)kx_dynamic_shared

// The host pass of clang sees the same text; only the device pass has the built-ins.
#if defined(__HIP_DEVICE_COMPILE__) || defined(__AMDGCN__)
KX_DEV u32 kx_tid() { return __builtin_amdgcn_workitem_id_x(); }
KX_DEV u32 kx_block_x() { return __builtin_amdgcn_workgroup_id_x(); }
KX_DEV u32 kx_block_y() { return __builtin_amdgcn_workgroup_id_y(); }
KX_DEV u32 kx_block_z() { return __builtin_amdgcn_workgroup_id_z(); }
// The dispatch packet holds the grid in threads (u32 at 12, 16, 20) and the block in threads (u16 at 4, 6, 8).
KX_DEV u32 kx_blocks_of(int axis) {
    const char __attribute__((address_space(4)))* packet = (const char __attribute__((address_space(4)))*)__builtin_amdgcn_dispatch_ptr();
    const u32 grid = *(const u32 __attribute__((address_space(4)))*)(packet + 12 + 4 * axis);
    const u32 block = *(const u16 __attribute__((address_space(4)))*)(packet + 4 + 2 * axis);
    return grid / block;
}
KX_DEV u32 kx_blocks_x() { return kx_blocks_of(0); }
KX_DEV u32 kx_blocks_y() { return kx_blocks_of(1); }
KX_DEV u32 kx_blocks_z() { return kx_blocks_of(2); }

KX_DEV void kx_sync() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
KX_DEV void kx_sync_wave() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}
KX_DEV void kx_fence() { __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "agent"); }

KX_DEV u32 kx_lane() { return __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)); }
KX_DEV u32 kx_shuffle(u32 v, u32 lane) { return (u32)__builtin_amdgcn_ds_bpermute((int)(lane << 2), (int)v); }
KX_DEV f32 kx_shuffle(f32 v, u32 lane) { return __builtin_bit_cast(f32, kx_shuffle(__builtin_bit_cast(u32, v), lane)); }
// DPP for neighbours (quad_perm and row_ror:8, which is xor 8 within a row of 16), ds_swizzle within 32, else a permute.
template <int M> KX_DEV u32 kx_shuffle_xor(u32 v) {
    if constexpr (M == 1) return (u32)__builtin_amdgcn_mov_dpp((int)v, 0xB1, 0xf, 0xf, true);
    else if constexpr (M == 2) return (u32)__builtin_amdgcn_mov_dpp((int)v, 0x4E, 0xf, 0xf, true);
    else if constexpr (M == 8) return (u32)__builtin_amdgcn_mov_dpp((int)v, 0x128, 0xf, 0xf, true);
    else if constexpr (M < 32) return (u32)__builtin_amdgcn_ds_swizzle((int)v, M << 10 | 0x1f);
    else return kx_shuffle(v, kx_lane() ^ M);
}
template <int M> KX_DEV f32 kx_shuffle_xor(f32 v) {
    return __builtin_bit_cast(f32, kx_shuffle_xor<M>(__builtin_bit_cast(u32, v)));
}

KX_DEV f32 kx_fma(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
KX_DEV f32 kx_max(f32 a, f32 b) { return __builtin_fmaxf(a, b); }
KX_DEV f32 kx_min(f32 a, f32 b) { return __builtin_fminf(a, b); }
#if __has_builtin(__builtin_amdgcn_exp2f)
KX_DEV f32 kx_exp2(f32 x) { return __builtin_amdgcn_exp2f(x); }
#else
KX_DEV f32 kx_exp2(f32 x) {
    f32 y;
    asm("v_exp_f32 %0, %1" : "=v"(y) : "v"(x));
    return y;
}
#endif
#if __has_builtin(__builtin_amdgcn_logf)
KX_DEV f32 kx_log2(f32 x) { return __builtin_amdgcn_logf(x); }
#else
KX_DEV f32 kx_log2(f32 x) {
    f32 y;
    asm("v_log_f32 %0, %1" : "=v"(y) : "v"(x));
    return y;
}
#endif
KX_DEV f32 kx_rsqrt(f32 x) { return __builtin_amdgcn_rsqf(x); }
KX_DEV f32 kx_sqrt(f32 x) { return __builtin_amdgcn_sqrtf(x); }
KX_DEV f32 kx_rcp(f32 x) { return __builtin_amdgcn_rcpf(x); }

// Exact to about an ulp, which v_sin_f32 (revolutions, 2^-20 absolute) and exp2(y log2(x)) are not. There is no library to
// take them from, so they are series; what would cancel is done in f64. crates/refrain-hip/tests/arithmetic.rs runs them.
// Sine and cosine of the angle within a quarter turn: |x| up to 2^30, to the nearest multiple of pi/2.
struct KxAngle { f32 sine, cosine; u32 quarter; };
KX_DEV KxAngle kx_angle(f32 x) {
    const double quarters = __builtin_rint((double)x * 0.63661977236758134);
    const f32 r = (f32)__builtin_fma(quarters, -1.5707963267948966, (double)x);
    const f32 z = r * r;
    f32 s = __builtin_fmaf(z, 2.7557319e-6f, -1.9841270e-4f);
    s = __builtin_fmaf(z, s, 8.3333333e-3f);
    s = __builtin_fmaf(z, s, -1.6666667e-1f);
    f32 c = __builtin_fmaf(z, -2.7557319e-7f, 2.4801587e-5f);
    c = __builtin_fmaf(z, c, -1.3888889e-3f);
    c = __builtin_fmaf(z, c, 4.1666667e-2f);
    c = __builtin_fmaf(z, c, -0.5f);
    return KxAngle{__builtin_fmaf(r * z, s, r), __builtin_fmaf(z, c, 1.0f), (u32)(i32)quarters};
}
KX_DEV f32 kx_turned(KxAngle angle, u32 quarter) {
    const f32 value = quarter & 1u ? angle.cosine : angle.sine;
    return quarter & 2u ? -value : value;
}
KX_DEV f32 kx_sin(f32 x) {
    const KxAngle angle = kx_angle(x);
    return kx_turned(angle, angle.quarter);
}
KX_DEV f32 kx_cos(f32 x) {
    const KxAngle angle = kx_angle(x);
    return kx_turned(angle, angle.quarter + 1u);
}
// For x from 0 on. log2 of the mantissa in [1/sqrt(2), sqrt(2)) by the series of the inverse hyperbolic tangent.
KX_DEV f32 kx_pow(f32 x, f32 y) {
    if (x == 0.0f) return y > 0.0f ? 0.0f : y == 0.0f ? 1.0f : __builtin_inff();
    double m = (double)__builtin_amdgcn_frexp_mantf(x);
    i32 exponent = __builtin_amdgcn_frexp_expf(x);
    if (m < 0.70710678118654752) m *= 2.0, exponent -= 1;
    const double t = (m - 1.0) / (m + 1.0), z = t * t;
    double log = 1.0 / 15.0;
    KX_UNROLL
    for (int odd = 13; odd >= 1; odd -= 2) log = __builtin_fma(z, log, 1.0 / odd);
    const double power = (double)y * __builtin_fma(2.8853900817779268 * t, log, (double)exponent);
    const double whole = __builtin_rint(power);
    const double rest = (power - whole) * 0.69314718055994531;
    double exp = 1.0;
    KX_UNROLL
    for (int n = 10; n >= 1; n--) exp = __builtin_fma(rest * (1.0 / n), exp, 1.0);
    const double bounded = whole > 2000.0 ? 2000.0 : whole < -2000.0 ? -2000.0 : whole;
    return (f32)__builtin_amdgcn_ldexp(exp, (i32)bounded);
}

KX_DEV f32 kx_f16_to_f32(u16 bits) { return (f32)__builtin_bit_cast(_Float16, bits); }
KX_DEV u16 kx_f32_to_f16(f32 value) { return __builtin_bit_cast(u16, (_Float16)value); }
// Pairs; of bf16 without branches, which takes half as many instructions as rounding each by kx_bf16_bits.
#define KX_PAIRS 1
KX_DEV u32 kx_bf16_in_upper_half(f32 value) {
    const u32 bits = __builtin_bit_cast(u32, value);
    // Both first: of two expressions clang would make two branches.
    const u32 quiet = bits | 0x400000u, rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return value != value ? quiet : rounded;
}
KX_DEV u32 kx_bf16_pair(f32 low, f32 high) {
    return __builtin_amdgcn_perm(kx_bf16_in_upper_half(high), kx_bf16_in_upper_half(low), 0x07060302u);
}
KX_DEV u32 kx_f16_pair(f32 low, f32 high) {
    return kx_f32_to_f16(low) | (u32)kx_f32_to_f16(high) << 16;
}
KX_DEV f32 kx_f16_range(f32 value) { return value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value; }
KX_DEV u32 kx_f16_pair_finite(f32 low, f32 high) { return kx_f16_pair(kx_f16_range(low), kx_f16_range(high)); }

// Within the device: atomics of the whole system, the default, are loops, since not every bus has them.
KX_DEV u32 kx_atomic_add(u32* at, u32 value) {
    return __hip_atomic_fetch_add(at, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
KX_DEV u32 kx_atomic_max(u32* at, u32 value) {
    return __hip_atomic_fetch_max(at, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

template <class V> KX_DEV V kx_load(const V* from) { return *from; }
template <class V> KX_DEV V kx_load_stream(const V* from) { return *from; }
template <class V> KX_DEV V kx_load_once(const V* from) { return *from; }

// A vector, not a struct: of two structs clang would choose by address, and put the zeros into private memory for it.
typedef u32 KxSixteen __attribute__((vector_size(16)));
KX_DEV void kx_copy_async16(void* shared, const void* global, bool valid) {
    KxSixteen value = {0, 0, 0, 0};
    if (valid) value = *(const KxSixteen*)global;
    *(KxSixteen*)shared = value;
}
KX_DEV void kx_copy_commit() {}
template <int N> KX_DEV void kx_copy_wait() {}
KX_DEV void kx_wait_for_previous() {}
KX_DEV void kx_let_next_start() {}
#endif
