#include "step.h"

struct Args {
    const f32* in;
    f32* out;
    const bf16* halves;
    u32* counters;
    u32 n;
    u32 lane;
};

// The sum over all distances of what comes from there.
template <int M> struct EveryDistance {
    static KX_DEV_MEMBER f32 of(f32 v) { return kx_shuffle_xor<M>(v) + EveryDistance<M - 1>::of(v); }
};
template <> struct EveryDistance<0> {
    static KX_DEV_MEMBER f32 of(f32 v) { return v; }
};

KX_KERNEL(everything, Args, 256) {
    KX_SHARED f32 room[256 / KX_WAVE];
    KX_SHARED KX_ALIGN(16) f32 staged[4 * 256];
    KX_DYNAMIC_SHARED(f32, dynamic);
    kx_wait_for_previous();
    const u32 i = (kx_block_z() * kx_blocks_y() + kx_block_y()) * kx_blocks_x() + kx_block_x();
    const u32 at = (i * 256 + kx_tid()) * 4;
    kx_copy_async16(staged + 4 * kx_tid(), args.in + at, at < args.n);
    kx_copy_commit();
    kx_copy_wait<0>();
    kx_sync();
    f32 v = staged[(4 * kx_tid() + 1024 - 4) % 1024];
    v = kx_exp2(v) + kx_log2(v) + kx_exp(v) + kx_sin(v) + kx_cos(v) + kx_pow(v, 2.5f) + kx_silu(v) + kx_sigmoid(v);
    v = kx_fma(v, kx_rsqrt(v), kx_sqrt(v)) + kx_rcp(kx_max(v, 1.0f)) + kx_min(v, 0.5f);
    f32 eight[8];
    kx_load8(eight, args.halves + 8 * kx_tid());
    KX_UNROLL
    for (int j = 0; j < 8; j++) v += kx_rounded(eight[j], bf16()) * kx_rounded(v, f16());
    const f32 sum = kx_block_sum<256>(v, room) + kx_wave_sum(v) + kx_wave_max(v) + kx_group_sum<8>(v) + kx_group_max<16>(v);
    dynamic[kx_tid()] = sum;
    kx_sync_wave();
    kx_sync();
    v = dynamic[255 - kx_tid()] + EveryDistance<KX_WAVE - 1>::of(v) + kx_shuffle(v, args.lane);
    const u32 before = kx_atomic_add(args.counters, 1u) + kx_atomic_max(args.counters + 1, kx_bits(v));
    kx_fence();
    kx_let_next_start();
    kx_store8((bf16*)args.out + 8 * kx_tid(), eight);
    kx_store8((f16*)args.out + 8 * kx_tid(), eight);
    args.counters[2] = kx_f16_pair_finite(eight[0], kx_saturated(eight[1], f16()));
    const u32x4 words = kx_load_stream((const u32x4*)args.halves);
    if (at < args.n) args.out[at] = v + (f32)(before + words.x + kx_load_once((const u32x4*)args.halves).y);
}
