#include "kx.h"

struct Args {
    f32* data;
    f32 value;
    u32 n;
};

KX_KERNEL(add, Args, 256) {
    const u32 i = kx_block_x() * 256 + kx_tid();
    if (i < args.n) args.data[i] += args.value;
}

KX_KERNEL(scale, Args, 256) {
    const u32 i = kx_block_x() * 256 + kx_tid();
    if (i < args.n) args.data[i] *= args.value;
}

// Turns each 256 numbers around, and adds to each the sum of its wave. n must be a multiple of 256.
KX_KERNEL(reverse, Args, 256) {
    KX_SHARED f32 fixed[256];
    KX_DYNAMIC_SHARED(f32, dynamic);
    const u32 t = kx_tid(), i = kx_block_x() * 256 + t;
    const f32 v = args.data[i], sum = kx_wave_sum(v);
    fixed[t] = v;
    dynamic[t] = sum;
    kx_sync();
    args.data[i] = fixed[255 - t] + dynamic[255 - t];
}
