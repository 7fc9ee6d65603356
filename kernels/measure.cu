// What a device can do: a kernel that only reads, and one that does nothing.
#include "kx.h"

struct ReadArgs {
    const u32x4* from;
    u32* out; // one word; written only if the sum is one that no data has by design, so that nothing is optimised away
    u64 count; // of 16 bytes
};

// Four independent loads in flight for each thread, neighbours read neighbours. Any grid.
KX_KERNEL(read_all, ReadArgs, THREADS) {
    kx_let_next_start();
    kx_wait_for_previous();
    const u64 stride = (u64)kx_blocks_x() * THREADS;
    u32 sum = 0;
    for (u64 i = (u64)kx_block_x() * THREADS + kx_tid(); i < args.count; i += 4 * stride) {
        KX_UNROLL
        for (int j = 0; j < 4; j++) {
            const u64 at = i + j * stride;
            if (at < args.count) {
                const u32x4 words = kx_load_stream(args.from + at);
                sum ^= words.x ^ words.y ^ words.z ^ words.w;
            }
        }
    }
    if (sum == 0x9e3779b9u) *args.out = sum;
}

struct NothingArgs {
    u64 unused;
};

KX_KERNEL(nothing, NothingArgs, THREADS) {
    kx_let_next_start();
    kx_wait_for_previous();
}
