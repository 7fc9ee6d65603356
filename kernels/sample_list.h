// The best elements of a row as a sorted list in shared memory, for blocks of THREADS threads.
#pragma once
#include "sample.h"

#define WAVES (THREADS / KX_WAVE)
// Room in the list. Most rows that keep a head of the list need much less.
#define LIST 2048

struct ListRoom {
    u64 list[LIST];
    f32 sums[WAVES];
    u32 count; // elements that were found; more than LIST where they didn't fit
};

// Counts up to 2^24 are exact.
KX_DEV f32 block_sum(f32 value, f32* room) { return kx_block_sum<THREADS>(value, room); }

// A key with at least `k` segments whose largest element has it or a larger one, as large as may be; KEY_OF_NOTHING when
// there are fewer. So at least k elements have it, all in few segments.
KX_DEV u32 key_of_best(const f32* maxima, u32 k, f32* room) {
    constexpr u32 EACH = (SEGMENTS + THREADS - 1) / THREADS;
    u32 keys[EACH];
    KX_UNROLL
    for (u32 i = 0; i < EACH; i++) {
        const u32 segment = i * THREADS + kx_tid();
        keys[i] = segment < SEGMENTS ? key_of(maxima[segment]) : 0;
    }
    u32 found = 0;
    for (u32 bit = 0x80000000u; bit > 0; bit >>= 1) {
        const u32 key = found | bit;
        f32 count = 0.0f;
        KX_UNROLL
        for (u32 i = 0; i < EACH; i++) count += keys[i] >= key ? 1.0f : 0.0f;
        count = block_sum(count, room);
        if (count >= (f32)k) found = key;
        if (count == (f32)k) break;
    }
    return found > KEY_OF_NOTHING ? found : KEY_OF_NOTHING;
}

// What the list is sorted by, the largest first: the better logit, then the smaller index; or the smaller index.
KX_DEV u64 entry_of(u32 key, u32 index, bool by_index) {
    const u32 reversed = 0xffffffffu - index;
    return by_index ? (u64)reversed << 32 | key : (u64)key << 32 | reversed;
}
KX_DEV u32 entry_key(u64 entry, bool by_index) { return by_index ? (u32)entry : (u32)(entry >> 32); }
KX_DEV u32 entry_index(u64 entry, bool by_index) { return 0xffffffffu - (by_index ? (u32)(entry >> 32) : (u32)entry); }

// Puts all elements above -infinity with `least` or a larger key into the list for which `keep(value)`, and sorts it. The
// order in which they come doesn't matter then. False when there are too many.
template <class Keep>
KX_DEV bool make_list(ListRoom& room, const Elements& elements, const f32* maxima, u32 least, bool by_index, Keep keep) {
    kx_sync();
    if (kx_tid() == 0) room.count = 0;
    kx_sync();
    for (u32 segment = kx_tid(); segment < SEGMENTS; segment += THREADS) {
        const f32 best = maxima[segment];
        if (!(best > -infinity()) || key_of(best) < least || !keep(best)) continue;
        f32 values[ITEMS][4];
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) elements.load4(values[item], segment_index(segment, item));
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) {
            KX_UNROLL
            for (u32 i = 0; i < 4; i++) {
                const f32 value = values[item][i];
                const u32 key = key_of(value);
                if (value > -infinity() && key >= least && keep(value)) {
                    const u32 at = kx_atomic_add(&room.count, 1);
                    if (at < LIST) room.list[at] = entry_of(key, segment_index(segment, item) + i, by_index);
                }
            }
        }
    }
    kx_sync();
    const u32 count = room.count;
    if (count > LIST) return false;
    u32 size = 2;
    while (size < count) size *= 2;
    for (u32 i = count + kx_tid(); i < size; i += THREADS) room.list[i] = 0;
    // Bitonic sort, the largest first (Batcher 1968).
    for (u32 width = 2; width <= size; width *= 2) {
        for (u32 distance = width / 2; distance > 0; distance /= 2) {
            kx_sync();
            for (u32 pair = kx_tid(); pair < size / 2; pair += THREADS) {
                const u32 low = pair / distance * distance * 2 + pair % distance, high = low + distance;
                const u64 a = room.list[low], b = room.list[high];
                const bool ascending = low & width;
                if ((a < b) != ascending) {
                    room.list[low] = b;
                    room.list[high] = a;
                }
            }
        }
    }
    kx_sync();
    return true;
}
