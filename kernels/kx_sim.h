// The dialect on the simulated GPU (crates/refrain-sim): plain C++17, threads are fibres on the CPU. Includes nothing, so
// that kernels compile fast. Every rendezvous of threads is a call into the runtime, through the table that it fills in.
#pragma once

#if !defined(KX_WAVE) || (KX_WAVE != 32 && KX_WAVE != 64)
#error "KX_WAVE must be 32 or 64"
#endif
// Tensor cores are those of NVIDIA, whose waves are 32 wide.
#define KX_MMA (KX_WAVE == 32)
#define KX_DEV static inline __attribute__((always_inline))
#define KX_DEV_MEMBER inline __attribute__((always_inline))
// In a section of its own, so that the runtime finds all of it and poisons it before each block; `used`, for the compiler
// must not conclude what is in it from what this file stores.
#define KX_SHARED static __attribute__((section("kx_shared"), used))
#define KX_ALIGN(n) __attribute__((aligned(n)))
#define KX_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define KX_UNROLL _Pragma("unroll")
#define KX_UNROLL_BY(n) KX_PRAGMA(unroll n)
#else
#define KX_UNROLL _Pragma("GCC unroll 128")
#define KX_UNROLL_BY(n) KX_PRAGMA(GCC unroll n)
#endif

// Both structs are mirrored in crates/refrain-sim/src/abi.rs; KX_SIM_VERSION counts their changes.
#define KX_SIM_VERSION 1
struct KxSim {
    u32 tid;
    u32 block[3];
    u32 blocks[3];
    u32 reserved;
    void* dynamic_shared;
    void* worker;
    void (*sync)(void* worker);
    void (*sync_wave)(void* worker);
    u32 (*shuffle)(void* worker, u32 value, u32 lane);
    void (*mma)(void* worker, f32* d, const u32* a, const u32* b, u32 bf16);
    void (*ldmatrix)(void* worker, u32* d, const void* row, u32 matrices, u32 transposed);
    void (*copy_async)(void* worker, void* shared, const void* global);
    void (*copy_commit)(void* worker);
    void (*copy_wait)(void* worker, u32 pending);
};
struct KxSimImage {
    u32 version;
    u32 wave;
    KxSim* state;
    u8* shared_begin;
    u8* shared_end;
};
struct KxSimKernel {
    u32 arguments;
    u32 threads;
    void (*run)(const void* arguments);
};

static KxSim kx_sim;
// The section exists, and with it the symbols of its ends, also where a kernel has no shared memory.
static u8 kx_sim_shared_mark[16] __attribute__((section("kx_shared"), aligned(16), used));
extern "C" {
extern u8 __start_kx_shared[] __attribute__((visibility("hidden")));
extern u8 __stop_kx_shared[] __attribute__((visibility("hidden")));
extern __attribute__((visibility("default"))) const KxSimImage kx_sim_image;
const KxSimImage kx_sim_image = {KX_SIM_VERSION, KX_WAVE, &kx_sim, __start_kx_shared, __stop_kx_shared};
}

// One function runs one thread. The size of the arguments and the number of threads are checked at each launch.
#define KX_KERNEL(name, Args, threads) KX_SIM_KERNEL(name, Args, threads)
#define KX_SIM_KERNEL(name, Args, threads) \
    static void name(const Args& args); \
    static void kx_sim_run_##name(const void* arguments) { name(*(const Args*)arguments); } \
    extern "C" { \
    extern __attribute__((visibility("default"))) const KxSimKernel kx_sim_kernel_##name; \
    const KxSimKernel kx_sim_kernel_##name = {sizeof(Args), threads, kx_sim_run_##name}; \
    } \
    static void name(const Args& args)
#define KX_DYNAMIC_SHARED(type, name) type* name = (type*)kx_sim.dynamic_shared

KX_DEV u32 kx_tid() { return kx_sim.tid; }
KX_DEV u32 kx_block_x() { return kx_sim.block[0]; }
KX_DEV u32 kx_block_y() { return kx_sim.block[1]; }
KX_DEV u32 kx_block_z() { return kx_sim.block[2]; }
KX_DEV u32 kx_blocks_x() { return kx_sim.blocks[0]; }
KX_DEV u32 kx_blocks_y() { return kx_sim.blocks[1]; }
KX_DEV u32 kx_blocks_z() { return kx_sim.blocks[2]; }

KX_DEV void kx_sync() { kx_sim.sync(kx_sim.worker); }
KX_DEV void kx_sync_wave() { kx_sim.sync_wave(kx_sim.worker); }
KX_DEV void kx_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

KX_DEV u32 kx_sim_bits(f32 value) {
    u32 bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}
KX_DEV f32 kx_sim_float(u32 bits) {
    f32 value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
KX_DEV u32 kx_shuffle(u32 v, u32 lane) { return kx_sim.shuffle(kx_sim.worker, v, lane); }
KX_DEV f32 kx_shuffle(f32 v, u32 lane) { return kx_sim_float(kx_shuffle(kx_sim_bits(v), lane)); }
template <int M> KX_DEV u32 kx_shuffle_xor(u32 v) {
    static_assert(M > 0 && M < KX_WAVE, "lanes are counted within a wave");
    return kx_shuffle(v, kx_tid() ^ M);
}
template <int M> KX_DEV f32 kx_shuffle_xor(f32 v) { return kx_sim_float(kx_shuffle_xor<M>(kx_sim_bits(v))); }

KX_DEV f32 kx_fma(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
// As fmaxf and fminf: of a number and NaN the number. Written out, for the library's are calls.
KX_DEV f32 kx_max(f32 a, f32 b) { return ((a > b) | (b != b)) ? a : b; }
KX_DEV f32 kx_min(f32 a, f32 b) { return ((a < b) | (b != b)) ? a : b; }
KX_DEV f32 kx_exp2(f32 x) { return __builtin_exp2f(x); }
KX_DEV f32 kx_log2(f32 x) { return __builtin_log2f(x); }
KX_DEV f32 kx_sqrt(f32 x) { return __builtin_sqrtf(x); }
KX_DEV f32 kx_rsqrt(f32 x) { return 1.0f / __builtin_sqrtf(x); }
KX_DEV f32 kx_rcp(f32 x) { return 1.0f / x; }
KX_DEV f32 kx_sin(f32 x) { return __builtin_sinf(x); }
KX_DEV f32 kx_cos(f32 x) { return __builtin_cosf(x); }
KX_DEV f32 kx_pow(f32 x, f32 y) { return __builtin_powf(x, y); }

// Not every C++ compiler has a half type. Subnormals of f16 are exact through the product, infinities and NaN are not.
KX_DEV f32 kx_f16_to_f32(u16 bits) {
    const u32 sign = (u32)(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return kx_sim_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    return kx_sim_float(sign | kx_sim_bits(kx_sim_float(rest << 13) * 0x1p112f));
}
// To nearest even. Below 2^-14 the addition of 0.5 rounds: there an ulp of f32 is what the least f16 is.
KX_DEV u16 kx_f32_to_f16(f32 value) {
    const u32 bits = kx_sim_bits(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (u16)(sign | 0x7fffu);
    if (rest >= 0x477ff000u) return (u16)(sign | 0x7c00u);
    if (rest < 0x38800000u) return (u16)(sign | (kx_sim_bits(kx_sim_float(rest) + 0.5f) - 0x3f000000u));
    return (u16)(sign | (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13);
}

KX_DEV u32 kx_atomic_add(u32* at, u32 value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
KX_DEV u32 kx_atomic_max(u32* at, u32 value) {
    u32 old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}

template <class V> KX_DEV V kx_load(const V* from) { return *from; }
template <class V> KX_DEV V kx_load_stream(const V* from) {
    static_assert(sizeof(V) == 16, "streams are read 16 bytes at a time");
    return *from;
}
template <class V> KX_DEV V kx_load_once(const V* from) { return kx_load_stream(from); }

// Copies land when they are waited for, not before: a missing wait reads poison.
KX_DEV void kx_copy_async16(void* shared, const void* global, bool valid) {
    kx_sim.copy_async(kx_sim.worker, shared, valid ? global : (const void*)0);
}
KX_DEV void kx_copy_commit() { kx_sim.copy_commit(kx_sim.worker); }
template <int N> KX_DEV void kx_copy_wait() { kx_sim.copy_wait(kx_sim.worker, N); }

#if KX_MMA
KX_DEV void kx_mma_bf16(f32 d[4], const u32 a[4], const u32 b[2]) { kx_sim.mma(kx_sim.worker, d, a, b, 1); }
KX_DEV void kx_mma_f16(f32 d[4], const u32 a[4], const u32 b[2]) { kx_sim.mma(kx_sim.worker, d, a, b, 0); }
KX_DEV void kx_ldmatrix4(u32 d[4], const void* row) { kx_sim.ldmatrix(kx_sim.worker, d, row, 4, 0); }
KX_DEV void kx_ldmatrix4_trans(u32 d[4], const void* row) { kx_sim.ldmatrix(kx_sim.worker, d, row, 4, 1); }
KX_DEV void kx_ldmatrix2(u32 d[2], const void* row) { kx_sim.ldmatrix(kx_sim.worker, d, row, 2, 0); }
KX_DEV void kx_ldmatrix2_trans(u32 d[2], const void* row) { kx_sim.ldmatrix(kx_sim.worker, d, row, 2, 1); }
#endif

KX_DEV void kx_wait_for_previous() {}
KX_DEV void kx_let_next_start() {}
