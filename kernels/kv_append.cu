// Writes the keys and values of the step's rows into the blocks of their sequences.
//
// k, v: [T, KV_HEADS * HEAD_DIM] X_T; the cache is laid out as kv_cache.h says. Rounded to KV_T, nothing else.
// A thread copies eight neighbouring elements; a block takes ROWS rows.
#include "kv_append.h"

// Eights of a row: those of its keys, then those of its values.
#define EIGHTS (2 * KV_HEADS * HEAD_DIM / 8)

KX_KERNEL(kv_append, KvAppendArgs, THREADS) {
    kx_let_next_start();
    const u32 rows = args.step.header->tokens;
    KX_UNROLL
    for (u32 first = 0; first < ROWS * EIGHTS; first += THREADS) {
        const u32 item = first + kx_tid(), row = kx_block_x() * ROWS + item / EIGHTS;
        const bool exists = item < ROWS * EIGHTS && row < rows;
        const bool value = item % EIGHTS >= EIGHTS / 2;
        const u32 column = item % (EIGHTS / 2) * 8, head = column / HEAD_DIM;
        const X_T* from = value ? args.v + (u64)row * args.v_stride : args.k + (u64)row * args.k_stride;
        u32 position = 0, block = 0;
        if (exists) {
            position = args.step.row_position[row];
            const Segment* segment = args.step.segments + args.step.row_segment[row];
            block = kv_block(args.step.block_table + segment->blocks, position);
        }
        kx_wait_for_previous();
        if (!exists) continue;
        const u32 within = position % KX_BLOCK * HEAD_DIM + column % HEAD_DIM;
        kv_store(args.cache + kv_keys(block, head) + (value ? KV_VALUES : 0) + within, from + column);
    }
}
