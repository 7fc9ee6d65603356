// The dialect on NVIDIA GPUs, for NVRTC and nvcc. Includes nothing of CUDA's, so that NVRTC needs no header files.
#pragma once

#define KX_WAVE 32
#define KX_DEV static __device__ __forceinline__
#define KX_DEV_MEMBER __device__ __forceinline__
#define KX_SHARED __shared__
#define KX_ALIGN(n) __align__(n)
#define KX_UNROLL _Pragma("unroll")
#define KX_PRAGMA(text) _Pragma(#text)
#define KX_UNROLL_BY(n) KX_PRAGMA(unroll n)
// Unless it is told how many blocks are wanted at once, ptxas takes the next smaller number of registers with which one
// more fits, and spills for it.
#ifdef KX_RESIDENT
#define KX_BOUNDS(threads) __launch_bounds__(threads, KX_RESIDENT)
#else
#define KX_BOUNDS(threads) __launch_bounds__(threads)
#endif
#define KX_KERNEL(name, Args, threads) \
    extern "C" __global__ void KX_BOUNDS(threads) name(const __grid_constant__ Args args)
#define KX_DYNAMIC_SHARED(type, name) \
    extern __shared__ __align__(128) unsigned char kx_dynamic_shared[]; \
    type* name = (type*)kx_dynamic_shared

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define KX_MMA 1
#else
#define KX_MMA 0
#endif

KX_DEV u32 kx_tid() { return threadIdx.x; }
KX_DEV u32 kx_block_x() { return blockIdx.x; }
KX_DEV u32 kx_block_y() { return blockIdx.y; }
KX_DEV u32 kx_block_z() { return blockIdx.z; }
KX_DEV u32 kx_blocks_x() { return gridDim.x; }
KX_DEV u32 kx_blocks_y() { return gridDim.y; }
KX_DEV u32 kx_blocks_z() { return gridDim.z; }

KX_DEV void kx_sync() { __syncthreads(); }
KX_DEV void kx_sync_wave() { __syncwarp(); }
KX_DEV void kx_fence() { __threadfence(); }

template <int M> KX_DEV f32 kx_shuffle_xor(f32 v) { return __shfl_xor_sync(0xffffffffu, v, M); }
template <int M> KX_DEV u32 kx_shuffle_xor(u32 v) { return __shfl_xor_sync(0xffffffffu, v, M); }
KX_DEV f32 kx_shuffle(f32 v, u32 lane) { return __shfl_sync(0xffffffffu, v, lane); }
KX_DEV u32 kx_shuffle(u32 v, u32 lane) { return __shfl_sync(0xffffffffu, v, lane); }

KX_DEV f32 kx_fma(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
KX_DEV f32 kx_max(f32 a, f32 b) { return fmaxf(a, b); }
KX_DEV f32 kx_min(f32 a, f32 b) { return fminf(a, b); }
KX_DEV f32 kx_exp2(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
KX_DEV f32 kx_log2(f32 x) { return log2f(x); }
KX_DEV f32 kx_rsqrt(f32 x) { return rsqrtf(x); }
KX_DEV f32 kx_sqrt(f32 x) { return sqrtf(x); }
KX_DEV f32 kx_rcp(f32 x) { return 1.0f / x; }
KX_DEV f32 kx_sin(f32 x) { return sinf(x); }
KX_DEV f32 kx_cos(f32 x) { return cosf(x); }
KX_DEV f32 kx_pow(f32 x, f32 y) { return powf(x, y); }

KX_DEV f32 kx_f16_to_f32(u16 bits) {
    f32 value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
KX_DEV u16 kx_f32_to_f16(f32 value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

#if KX_MMA
#define KX_PAIRS 1
KX_DEV u32 kx_bf16_pair(f32 low, f32 high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
KX_DEV u32 kx_f16_pair(f32 low, f32 high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
KX_DEV u32 kx_f16_pair_finite(f32 low, f32 high) {
    u32 pair;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

// Four bytes of eight, counted from the lowest of `low`.
#define KX_BYTES 1
template <int A, int B, int C, int D> KX_DEV u32 kx_bytes(u32 low, u32 high) {
    return __byte_perm(low, high, A | B << 4 | C << 8 | D << 12);
}

// The conversions of kx_fp8.h, where there are instructions for them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define KX_FP8 1
KX_DEV u32 kx_e4m3_pair(f32 low, f32 high) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
KX_DEV u32 kx_e5m2_pair(f32 low, f32 high) {
    u16 pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
KX_DEV u32 kx_e4m3_halves(u32 codes) {
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((u16)codes));
    return halves;
}
KX_DEV u32 kx_e5m2_halves(u32 codes) {
    u32 halves;
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"((u16)codes));
    return halves;
}
#endif

KX_DEV u32 kx_atomic_add(u32* at, u32 value) { return atomicAdd(at, value); }
KX_DEV u32 kx_atomic_max(u32* at, u32 value) { return atomicMax(at, value); }

template <class V> KX_DEV V kx_load(const V* from) { return *from; }
template <class V> KX_DEV V kx_load_stream(const V* from) {
    static_assert(sizeof(V) == 16, "streams are read 16 bytes at a time");
    V value;
    u32* w = (u32*)&value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "l"(from));
    return value;
}
// Without `.nc`, which is for data that is constant as long as the kernel lives, its beginning before the wait included.
template <class V> KX_DEV V kx_load_once(const V* from) {
    static_assert(sizeof(V) == 16, "streams are read 16 bytes at a time");
    V value;
    u32* w = (u32*)&value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "l"(from));
    return value;
}

#if KX_MMA
KX_DEV void kx_copy_async16(void* shared, const void* global, bool valid) {
    const u32 to = (u32)__cvta_generic_to_shared(shared), bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
KX_DEV void kx_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> KX_DEV void kx_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

KX_DEV void kx_mma_bf16(f32 d[4], const u32 a[4], const u32 b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
KX_DEV void kx_mma_f16(f32 d[4], const u32 a[4], const u32 b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
KX_DEV void kx_ldmatrix4(u32 d[4], const void* row) {
    const u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(from) : "memory");
}
KX_DEV void kx_ldmatrix4_trans(u32 d[4], const void* row) {
    const u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(from) : "memory");
}
KX_DEV void kx_ldmatrix2(u32 d[2], const void* row) {
    const u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(from) : "memory");
}
KX_DEV void kx_ldmatrix2_trans(u32 d[2], const void* row) {
    const u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1]) : "r"(from) : "memory");
}
#else
KX_DEV void kx_copy_async16(void* shared, const void* global, bool valid) {
    const uint4 zero = {0, 0, 0, 0};
    *(uint4*)shared = valid ? *(const uint4*)global : zero;
}
KX_DEV void kx_copy_commit() {}
template <int N> KX_DEV void kx_copy_wait() {}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
KX_DEV void kx_wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
KX_DEV void kx_let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
KX_DEV void kx_wait_for_previous() {}
KX_DEV void kx_let_next_start() {}
#endif
