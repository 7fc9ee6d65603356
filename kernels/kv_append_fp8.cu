// Writes the keys and values of the step's rows into the blocks of their sequences, in types that have scales.
//
// k, v: [T, KV_HEADS * HEAD_DIM] X_T; the cache is laid out as kv_cache.h says. LANES neighbouring lanes have the keys or
// the values of one row and head, eight dimensions each; a block takes ROWS rows.
#include "kv_append.h"

// Of a row: those of its keys, then those of its values.
#define ROW_HEADS (2 * KV_HEADS)

KX_KERNEL(kv_append_fp8, KvAppendArgs, THREADS) {
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 rows = args.step.header->tokens, column = kx_tid() % LANES * 8;
    KX_UNROLL
    for (u32 first = 0; first < ROWS * ROW_HEADS * LANES; first += THREADS) {
        const u32 item = (first + kx_tid()) / LANES, head = item % ROW_HEADS, row = kx_block_x() * ROWS + item / ROW_HEADS;
        const bool write = column < HEAD_DIM && item < ROWS * ROW_HEADS && row < rows;
        f32 numbers[8];
        KX_UNROLL
        for (int i = 0; i < 8; i++) numbers[i] = 0.0f;
        KvPlace place = {0, 0, 0};
        if (write) {
            const X_T* from = head < KV_HEADS ? args.k + (u64)row * args.k_stride + head * HEAD_DIM
                                              : args.v + (u64)row * args.v_stride + (head - KV_HEADS) * HEAD_DIM;
            const u32 position = args.step.row_position[row];
            const Segment* segment = args.step.segments + args.step.row_segment[row];
            place = KvPlace{kv_block(args.step.block_table + segment->blocks, position), head, position % KX_BLOCK};
            kx_load8(numbers, from + column);
        }
        kv_put<LANES>(args.cache, place, column, numbers, write);
    }
}
