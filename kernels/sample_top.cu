// The best tokens of a row of raw logits with their log-probabilities, best first. One block of THREADS threads for each row.
#include "sample_list.h"

// When too many elements are equal for the list: the best one behind `before`, by a look at the whole row.
KX_DEV u64 next_best(ListRoom& room, const Elements& elements, u64 before) {
    u64 best = 0;
    for (u32 index = kx_tid() * 4; index < elements.count; index += THREADS * 4) {
        f32 values[4];
        elements.load4(values, index);
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) {
            const u64 entry = entry_of(key_of(values[i]), index + i, false);
            if (values[i] > -infinity() && entry < before && entry > best) best = entry;
        }
    }
    kx_sync();
    room.list[kx_tid()] = best;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        kx_sync();
        if (kx_tid() < half && room.list[kx_tid() + half] > room.list[kx_tid()]) {
            room.list[kx_tid()] = room.list[kx_tid() + half];
        }
    }
    kx_sync();
    return room.list[0];
}

KX_DEV void write_top(const SampleArgs& args, u32 row, u32 place, u64 entry) {
    const f32 logit = value_of(entry_key(entry, false));
    args.top[(u64)row * MOST_TOP + place] = SampleTop{entry_index(entry, false), logprob_of(args.rows[row], logit)};
}

struct KeepAll {
    KX_DEV_MEMBER bool operator()(f32) const { return true; }
};

KX_KERNEL(sample_top, SampleArgs, THREADS) {
    KX_SHARED ListRoom room;
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 row = kx_block_x();
    if (row >= args.step.header->sampled) return;
    const RowSampling want = args.step.sampling[row];
    u32 top = want.top < VOCAB ? want.top : VOCAB;
    if (top > MOST_TOP) top = MOST_TOP;
    if (!(want.flags & KX_ROW_LOGPROBS) || top == 0 || args.rows[row].status != STATUS_FINE) return;
    const Elements elements = raw_elements(args, row);
    const f32* maxima = args.maxima + (u64)row * SEGMENTS;
    const u32 least = key_of_best(maxima, top, room.sums);
    if (make_list(room, elements, maxima, least, false, KeepAll())) {
        for (u32 place = kx_tid(); place < top; place += THREADS) write_top(args, row, place, room.list[place]);
        return;
    }
    u64 entry = ~(u64)0;
    for (u32 place = 0; place < top; place++) {
        entry = next_best(room, elements, entry);
        if (kx_tid() == 0) write_top(args, row, place, entry);
        kx_sync();
    }
}
