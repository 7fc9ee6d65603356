// What the kernels of decode attention share: the parts into which contexts are cut, and how they become one again.
//
//   out = sum_t p_t v_t / sum_t p_t,   p_t = exp(scale q . k_t)
//
// q: [T, HEADS * HEAD_DIM] X_T; out: the same in OUT_T; cache: kv_cache.h. The context of a sequence that has one row
// in the step is cut into at most SPLITS parts, by its length alone, so that a sequence gives the same bits whatever
// else is in the step. A block works on a part for the QUERIES query heads of one key and value head (a unit), for
// which keys and values are read once; blocks go round over all parts of the step, so that grids don't depend on
// lengths. The sums of parts (maximum, sum, weighted values: the running softmax of Milakov and Gimelshein, arXiv
// 1805.02867) go to the workspace, and the block that is done last with a sequence puts them together, in order.
//
// A kernel defines GROUPS (groups of threads that have sums of their own) and RUN (keys that are worked on at once),
// and leaves the maximum and sum of every group in Room.maxima and totals, the weighted values of every wave in
// Room.values.
#pragma once
#include "attention.h"

#define WAVES (THREADS / KX_WAVE)
#define UNITS (HEADS / QUERIES)
#define PADDED (QUERIES > 4 ? 8 : QUERIES > 2 ? 4 : QUERIES)

// What the parts of a sequence leave for the heads of a unit.
struct KX_ALIGN(16) Record {
    f32 values[SPLITS][QUERIES * HEAD_DIM];
    f32x2 sums[SPLITS][QUERIES]; // maximum and sum
    u32 done;                    // parts that are there; 0 before and after a launch
};

struct AttentionDecodeArgs {
    Step step;
    const X_T* q;
    const KV_T* cache;
    OUT_T* out;
    Record* records; // [sequences, UNITS]
    u32 q_stride;
    u32 out_stride;
    f32 scale; // times log2(e)
    u32 reserved;
    GATE_ARGS
};

// What a block works on.
struct Part {
    u32 sequence; // index among the sequences with one row
    u32 row;
    u32 unit;
    u32 split;
    u32 splits;
    u32 begin; // positions
    u32 end;
    const u32* blocks;
};

struct Room {
    Part part;
    f32 maxima[GROUPS][PADDED];
    f32 totals[GROUPS][PADDED];
    KX_ALIGN(16) f32 values[WAVES][QUERIES][HEAD_DIM]; // against the maximum over all groups
    f32 shares[SPLITS][QUERIES];
    u32 last;
};

// Maximum of a query over the groups of the block.
KX_DEV f32 maximum_of(const Room& room, u32 query) {
    f32 maximum = NO_MAXIMUM;
    KX_UNROLL
    for (u32 n = 0; n < GROUPS; n++) maximum = kx_max(maximum, room.maxima[n][query]);
    return maximum;
}

// Maximum and sum.
KX_DEV f32x2 softmax_of(const Room& room, u32 query) {
    f32x2 sum = {maximum_of(room, query), 0.0f};
    KX_UNROLL
    for (u32 n = 0; n < GROUPS; n++) {
        sum.y = kx_fma(room.totals[n][query], kx_exp2(room.maxima[n][query] - sum.x), sum.y);
    }
    return sum;
}

KX_DEV void add_scaled(f32x4& sum, f32 factor, f32x4 value) {
    sum.x = kx_fma(factor, value.x, sum.x);
    sum.y = kx_fma(factor, value.y, sum.y);
    sum.z = kx_fma(factor, value.z, sum.z);
    sum.w = kx_fma(factor, value.w, sum.w);
}

// The heads of a unit lie side by side, so an item's place in the unit is its place in the row.
KX_DEV u32 column_of(const Part& part, u32 item) { return part.unit * QUERIES * HEAD_DIM + item * 4; }

KX_DEV void store_out(const AttentionDecodeArgs& args, const Part& part, u32 item, f32x4 value, const f32 gate[4]) {
    OUT_T* to = args.out + (u64)part.row * args.out_stride + column_of(part, item);
    kx_store(to, value.x * gate[0]);
    kx_store(to + 1, value.y * gate[1]);
    kx_store(to + 2, value.z * gate[2]);
    kx_store(to + 3, value.w * gate[3]);
}

// Writes what the block has of its part: the result, when the part is the whole context, else sums to the workspace.
KX_DEV void write_part(const AttentionDecodeArgs& args, const Room& room, const Part& part, Record& record) {
    for (u32 item = kx_tid(); item < QUERIES * HEAD_DIM / 4; item += THREADS) {
        const u32 query = item / (HEAD_DIM / 4), column = item % (HEAD_DIM / 4) * 4;
        f32x4 value = {0.0f, 0.0f, 0.0f, 0.0f};
        const f32 factor = part.splits == 1 ? 1.0f / softmax_of(room, query).y : 1.0f;
        KX_UNROLL
        for (u32 wave = 0; wave < WAVES; wave++) {
            add_scaled(value, factor, *(const f32x4*)&room.values[wave][query][column]);
        }
        if (part.splits == 1) {
            f32 gate[4];
            load_gate<4>(gate, args, part.row, column_of(part, item));
            store_out(args, part, item, value, gate);
        } else {
            ((f32x4*)record.values[part.split])[item] = value;
        }
    }
    if (part.splits > 1 && kx_tid() < QUERIES) record.sums[part.split][kx_tid()] = softmax_of(room, kx_tid());
}

// Puts the parts of a sequence together, in their order.
KX_DEV void combine(const AttentionDecodeArgs& args, Room& room, const Part& part, const Record& record) {
    const u32 lane = kx_tid() % KX_WAVE;
    for (u32 query = kx_tid() / KX_WAVE; query < QUERIES; query += WAVES) {
        f32x2 sums[(SPLITS + KX_WAVE - 1) / KX_WAVE];
        f32 maximum = NO_MAXIMUM;
        KX_UNROLL
        for (u32 n = 0; n * KX_WAVE < SPLITS; n++) {
            const u32 split = n * KX_WAVE + lane;
            sums[n] = split < part.splits ? kx_load(&record.sums[split][query]) : f32x2{NO_MAXIMUM, 0.0f};
            maximum = kx_max(maximum, sums[n].x);
        }
        maximum = kx_wave_max(maximum);
        f32 total = 0.0f;
        KX_UNROLL
        for (u32 n = 0; n * KX_WAVE < SPLITS; n++) total = kx_fma(sums[n].y, kx_exp2(sums[n].x - maximum), total);
        total = kx_wave_sum(total);
        KX_UNROLL
        for (u32 n = 0; n * KX_WAVE < SPLITS; n++) {
            const u32 split = n * KX_WAVE + lane;
            if (split < part.splits) room.shares[split][query] = kx_exp2(sums[n].x - maximum) / total;
        }
    }
    kx_sync();
    for (u32 item = kx_tid(); item < QUERIES * HEAD_DIM / 4; item += THREADS) {
        const u32 query = item / (HEAD_DIM / 4), last = part.splits - 1;
        const f32x4* from = (const f32x4*)record.values[0] + item;
        f32x4 value = {0.0f, 0.0f, 0.0f, 0.0f};
        f32 gate[4];
        load_gate<4>(gate, args, part.row, column_of(part, item));
        // Sixteen loads on their way at once; behind the last part, that part with no share.
        for (u32 split = 0; split <= last; split += 16) {
            f32x4 values[16];
            KX_UNROLL
            for (u32 n = 0; n < 16; n++) {
                values[n] = kx_load(from + (split + n < last ? split + n : last) * (QUERIES * HEAD_DIM / 4));
            }
            KX_UNROLL
            for (u32 n = 0; n < 16; n++) {
                add_scaled(value, split + n <= last ? room.shares[split + n][query] : 0.0f, values[n]);
            }
        }
        store_out(args, part, item, value, gate);
    }
}

// What is to be done once the sums of a part are in the room.
KX_DEV void finish(const AttentionDecodeArgs& args, Room& room) {
    const Part& part = room.part;
    Record& record = args.records[part.sequence * UNITS + part.unit];
    write_part(args, room, part, record);
    if (part.splits > 1) {
        kx_fence();
        kx_sync();
        if (kx_tid() == 0) room.last = kx_atomic_add(&record.done, 1) + 1 == part.splits;
        kx_sync();
        if (room.last) {
            kx_fence();
            if (kx_tid() == 0) record.done = 0;
            combine(args, room, part, record);
        }
    }
    kx_sync();
}

// Finds the part that is `index` parts behind the first of a sequence; one of no splits when there are no more. The
// parts of a sequence follow one another split by split. One thread does this, so that it costs the others no
// registers.
KX_DEV void find_part(const AttentionDecodeArgs& args, Part& part, u32 sequence, u32 index) {
    const u32 first = args.step.header->prefill_pieces, count = args.step.header->pieces - first;
    part.splits = 0;
    for (; sequence < count; sequence++) {
        const Piece token = args.step.pieces[first + sequence];
        const u32 context = token.position + 1;
        // Whole runs, so that none reaches over the end of a block.
        u32 length = ((context + SPLITS - 1) / SPLITS + RUN - 1) / RUN * RUN;
        if (length < LEAST_PART) length = LEAST_PART;
        const u32 splits = (context + length - 1) / length;
        if (index < splits * UNITS) {
            const u32 begin = index / UNITS * length, end = begin + length < context ? begin + length : context;
            const u32* blocks = args.step.block_table + args.step.segments[token.segment].blocks;
            part = Part{sequence, token.row, index % UNITS, index / UNITS, splits, begin, end, blocks};
            return;
        }
        index -= splits * UNITS;
    }
}

// The first part of this block, and the one after that in the room; none when part.splits is 0.
KX_DEV void first_part(const AttentionDecodeArgs& args, Room& room) {
    if (kx_tid() == 0) find_part(args, room.part, 0, kx_block_x());
    kx_sync();
}
KX_DEV void next_part(const AttentionDecodeArgs& args, Room& room) {
    const u32 next = room.part.split * UNITS + room.part.unit + kx_blocks_x();
    if (kx_tid() == 0) find_part(args, room.part, room.part.sequence, next);
    kx_sync();
}

// The kernel: attends to the parts of this block one after another. Each kernel has `attend` for a part, which leaves sums of
// its own kind, and `gather`, which brings them into the room.
template <class Sums, class Weights> KX_DEV void attend_to_parts(const AttentionDecodeArgs& args, Room& room, Weights& shared) {
    kx_let_next_start();
    first_part(args, room);
    kx_wait_for_previous();
    for (; room.part.splits > 0; next_part(args, room)) {
        Sums sums;
        attend(args, shared, room.part, sums);
        gather(room, sums);
        finish(args, room);
    }
}
