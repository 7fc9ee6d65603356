// Draws a token of each row whose temperature is not 0, one block of THREADS threads for each row.
//
// The weight of a logit x is w = e^((x - best) / temperature), 0 where w < min-p. min-p, top-k and top-p each keep a head of
// the list sorted best first (the larger logit, then the smaller id), in this order; top-p keeps the shortest head that
// reaches its part of the weight of what the others keep. The draw is the inverse of the distribution function over the
// kept tokens, best first; by id where neither top-k nor top-p is on. Three ways lead there:
//   a list    what can be kept is few: sort it, and walk along it
//   by id     everything is kept: sums of stretches of the row, then a walk within one of them
//   by key    else: the token at which the weight of all better ones crosses a number is found digit by digit of its key
// All sums are made in a fixed order: the same row gives the same token alone and in any batch.
// One block holds a processor alone: it may use all registers.
#define KX_RESIDENT 1
#include "sample_list.h"

// A head of at most so many is looked for in a list.
#define MOST_HEAD 1024
// What top-p looks at first, if it stands alone: models rarely want more.
#define FIRST_HEAD 256
// Elements that a wave sums together.
#define STRETCH (KX_WAVE * 4)
#define STRETCHES ((VOCAB + STRETCH - 1) / STRETCH)
#define PLACES (STRETCHES > LIST ? STRETCHES : LIST)
#define GROUP 16
// A digit of a key above 0: three bits.
#define DIGITS 7
#define GROUPS (THREADS / GROUP)

struct Room : ListRoom {
    f32 weights[PLACES];
    double parts[THREADS];
    double groups[GROUPS];
    f32 digits[WAVES][DIGITS];
    double before;
    u32 place;
};

struct Weight {
    f32 best, scale, min_p;
    KX_DEV_MEMBER f32 operator()(f32 value) const {
        const f32 weight = kx_exp2((value - best) * scale);
        return weight >= min_p ? weight : 0.0f;
    }
};
struct IsKey {
    u32 key;
    KX_DEV_MEMBER f32 operator()(f32 value) const { return key_of(value) == key ? 1.0f : 0.0f; }
};
struct IsFinite {
    KX_DEV_MEMBER f32 operator()(f32 value) const { return value > -infinity() ? 1.0f : 0.0f; }
};
struct HasWeight {
    Weight weight;
    KX_DEV_MEMBER bool operator()(f32 value) const { return weight(value) > 0.0f; }
};

// Sums parts and groups of the first `count` of room.weights; gives the sum of all.
KX_DEV double add_up(Room& room, u32 count) {
    const u32 each = (count + THREADS - 1) / THREADS;
    kx_sync();
    double part = 0.0;
    for (u32 i = kx_tid() * each; i < (kx_tid() + 1) * each && i < count; i++) part += (double)room.weights[i];
    room.parts[kx_tid()] = part;
    kx_sync();
    if (kx_tid() < GROUPS) {
        double group = 0.0;
        for (u32 i = 0; i < GROUP; i++) group += room.parts[kx_tid() * GROUP + i];
        room.groups[kx_tid()] = group;
    }
    kx_sync();
    double total = 0.0;
    for (u32 i = 0; i < GROUPS; i++) total += room.groups[i];
    return total;
}

// One level of the walk: the first of `count` numbers at which the sum, with `before`, is past the target; failing that
// the last that isn't 0. With `reach`, the target itself is past.
template <class Number>
KX_DEV u32 step_along(const Number* numbers, u32 count, double target, bool reach, double& before) {
    u32 last = 0;
    double before_last = before;
    for (u32 i = 0; i < count; i++) {
        const double number = (double)numbers[i];
        if (!(number > 0.0)) continue;
        last = i, before_last = before;
        const double sum = before + number;
        if (reach ? sum >= target : sum > target) return i;
        before = sum;
    }
    before = before_last;
    return last;
}

// The first of the weights that were added up at which their sum is past the target; the sum of those before it goes to
// room.before. Every thread gets it.
KX_DEV u32 walk(Room& room, u32 count, double target, bool reach) {
    kx_sync();
    if (kx_tid() == 0) {
        const u32 each = (count + THREADS - 1) / THREADS;
        double before = 0.0;
        const u32 group = step_along(room.groups, GROUPS, target, reach, before);
        const u32 part = group * GROUP + step_along(room.parts + group * GROUP, GROUP, target, reach, before);
        const u32 begin = part * each, left = begin < count ? count - begin : 0;
        room.place = begin + step_along(room.weights + begin, left < each ? left : each, target, reach, before);
        room.before = before;
    }
    kx_sync();
    return room.place;
}

// Weights of all stretches of the row; gives the sum.
template <class Of> KX_DEV double add_up_row(Room& room, const Elements& elements, Of of) {
    kx_sync();
    const u32 stretches = (elements.count + STRETCH - 1) / STRETCH;
    for (u32 stretch = kx_tid() / KX_WAVE; stretch < stretches; stretch += WAVES) {
        f32 values[4];
        elements.load4(values, stretch * STRETCH + kx_tid() % KX_WAVE * 4);
        const f32 sum = kx_wave_sum((of(values[0]) + of(values[1])) + (of(values[2]) + of(values[3])));
        if (kx_tid() % KX_WAVE == 0) room.weights[stretch] = sum;
    }
    return add_up(room, stretches);
}

// The element at which the sum of weights in the order of the ids is past the target. After add_up_row.
template <class Of> KX_DEV u32 find_in_row(Room& room, const Elements& elements, double target, Of of) {
    const u32 stretch = walk(room, (elements.count + STRETCH - 1) / STRETCH, target, false);
    const double before = room.before;
    kx_sync();
    if (kx_tid() < STRETCH / 4) {
        f32 values[4];
        elements.load4(values, stretch * STRETCH + kx_tid() * 4);
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) room.weights[kx_tid() * 4 + i] = of(values[i]);
    }
    add_up(room, STRETCH);
    return stretch * STRETCH + walk(room, STRETCH, target - before, false);
}

// A class of equal logits, and the sum of what is better.
struct Class {
    u32 key;
    double above;
};

// The best class with which the sum over it and all better ones is past the target; key 0 if there is none.
template <class Of> KX_DEV Class find_class(Room& room, const Elements& elements, double target, bool reach, Of of) {
    Class found = {0, 0.0};
    for (u32 shift = 33; shift > 0;) {
        shift -= 3;
        f32 sums[DIGITS];
        KX_UNROLL
        for (u32 d = 0; d < DIGITS; d++) sums[d] = 0.0f;
        for (u32 index = kx_tid() * 4; index < elements.count; index += THREADS * 4) {
            f32 values[4];
            elements.load4(values, index);
            KX_UNROLL
            for (u32 i = 0; i < 4; i++) {
                const u32 key = key_of(values[i]);
                const f32 amount = key >= found.key ? of(values[i]) : 0.0f;
                const u32 digit = (key - found.key) >> shift;
                KX_UNROLL
                for (u32 d = 0; d < DIGITS; d++) sums[d] += digit > d ? amount : 0.0f;
            }
        }
        kx_sync();
        KX_UNROLL
        for (u32 d = 0; d < DIGITS; d++) {
            sums[d] = kx_wave_sum(sums[d]);
            if (kx_tid() % KX_WAVE == 0) room.digits[kx_tid() / KX_WAVE][d] = sums[d];
        }
        kx_sync();
        // A larger digit keeps less: the largest that is past the target.
        u32 digit = 0;
        for (u32 d = DIGITS; d > 0 && digit == 0; d--) {
            double sum = 0.0;
            for (u32 wave = 0; wave < WAVES; wave++) sum += (double)room.digits[wave][d - 1];
            if (reach ? sum >= target : sum > target) {
                digit = d;
            } else {
                found.above = sum;
            }
        }
        found.key |= digit << shift;
    }
    return found;
}

// The sum over all better than a key.
template <class Of> KX_DEV double sum_above(Room& room, const Elements& elements, u32 key, Of of) {
    f32 sum = 0.0f;
    for (u32 index = kx_tid() * 4; index < elements.count; index += THREADS * 4) {
        f32 values[4];
        elements.load4(values, index);
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) sum += key_of(values[i]) > key ? of(values[i]) : 0.0f;
    }
    sum = kx_wave_sum(sum);
    kx_sync();
    if (kx_tid() % KX_WAVE == 0) room.sums[kx_tid() / KX_WAVE] = sum;
    kx_sync();
    double total = 0.0;
    for (u32 wave = 0; wave < WAVES; wave++) total += (double)room.sums[wave];
    return total;
}

// Below the sum itself, whatever was rounded.
KX_DEV double target_of(double uniform, double total) {
    const double target = uniform * total, most = total * (1.0 - 1e-12);
    return target < most ? target : most;
}

KX_DEV u32 choose_by_key(Room& room, const Elements& elements, const RowSampling& want, const Weight& weight) {
    // What is kept: all that is better than the class `last`, and the first `take` of that class.
    u32 last = KEY_OF_NOTHING;
    f32 take = 0.0f;
    if (want.top_k > 0 && want.top_k < elements.count) {
        const Class found = find_class(room, elements, (double)want.top_k, true, IsFinite());
        if (found.key > KEY_OF_NOTHING) last = found.key, take = (f32)((double)want.top_k - found.above);
    }
    double total = sum_above(room, elements, last, weight);
    if (take > 0.0f) total += (double)take * (double)weight(value_of(last));
    if (want.top_p < 1.0f) {
        const double enough = (double)want.top_p * total;
        const Class found = find_class(room, elements, enough, true, weight);
        if (found.key > last || (found.key == last && take > 0.0f)) {
            const f32 members = (f32)add_up_row(room, elements, IsKey{found.key});
            const double each = (double)weight(value_of(found.key));
            const double needed = (enough - found.above) / each;
            f32 some = (f32)(u32)needed;
            if ((double)some < needed) some += 1.0f;
            some = kx_min(kx_max(some, 1.0f), members);
            take = found.key == last ? kx_min(take, some) : some;
            last = found.key;
            total = found.above + (double)take * each;
        }
    }
    const double target = target_of(want.uniform, total);
    Class found = find_class(room, elements, target, false, weight);
    f32 number = take - 1.0f;
    if (found.key > last || (found.key == last && take > 0.0f)) {
        const f32 drawn = (f32)(u32)((target - found.above) / (double)weight(value_of(found.key)));
        number = found.key == last ? kx_min(drawn, number) : drawn;
    } else {
        found.key = last;
    }
    // Where rounding has drawn more members than there are, the walk ends at the last.
    add_up_row(room, elements, IsKey{found.key});
    return find_in_row(room, elements, (double)number, IsKey{found.key});
}

KX_DEV u32 choose_from_list(Room& room, const RowSampling& want, const Weight& weight, u32 count, bool by_index, double whole) {
    for (u32 i = kx_tid(); i < count; i += THREADS) room.weights[i] = weight(value_of(entry_key(room.list[i], by_index)));
    double total = add_up(room, count);
    u32 kept = count;
    if (want.top_p < 1.0f) {
        kept = walk(room, count, (double)want.top_p * (whole > 0.0 ? whole : total), true) + 1;
        total = room.before + (double)room.weights[kept - 1];
    }
    const u32 place = walk(room, count, target_of(want.uniform, total), false);
    return entry_index(room.list[place < kept ? place : kept - 1], by_index);
}

KX_DEV u32 choose(const SampleArgs& args, Room& room, u32 row, const RowSampling& want) {
    const Elements elements = adjusted_elements(args, row, want);
    const f32* maxima = args.maxima + (u64)row * SEGMENTS;
    const Weight weight = {args.rows[row].best, 1.0f / want.temperature * KX_LOG2E, want.min_p};
    const bool cut = want.top_k > 0 && want.top_k < elements.count;
    const bool by_index = !cut && want.top_p >= 1.0f;

    double whole = 0.0;
    u32 head = cut ? want.top_k : 0;
    if (!cut && want.min_p == 0.0f && elements.count > LIST) {
        whole = add_up_row(room, elements, weight);
        if (by_index) return find_in_row(room, elements, target_of(want.uniform, whole), weight);
        head = FIRST_HEAD;
    }
    if (head <= MOST_HEAD || want.min_p > 0.0f || elements.count <= LIST) {
        const u32 least = head > 0 && head <= MOST_HEAD ? key_of_best(maxima, head, room.sums) : KEY_OF_NOTHING;
        if (make_list(room, elements, maxima, least, by_index, HasWeight{weight})) {
            u32 count = room.count;
            if (cut && want.top_k < count) count = want.top_k;
            // A head of the whole row that top-p isn't satisfied with says nothing.
            bool enough = true;
            if (whole > 0.0) {
                for (u32 i = kx_tid(); i < count; i += THREADS) room.weights[i] = weight(value_of(entry_key(room.list[i], false)));
                enough = add_up(room, count) >= (double)want.top_p * whole;
            }
            if (enough) return choose_from_list(room, want, weight, count, by_index, whole);
        }
    }
    if (by_index) {
        const double total = add_up_row(room, elements, weight);
        return find_in_row(room, elements, target_of(want.uniform, total), weight);
    }
    return choose_by_key(room, elements, want, weight);
}

KX_KERNEL(sample_choose, SampleArgs, THREADS) {
    KX_SHARED Room room;
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 row = kx_block_x();
    if (row >= args.step.header->sampled) return;
    const RowSampling want = args.step.sampling[row];
    if (want.temperature == 0.0f || want.flags & KX_ROW_GIVEN || args.rows[row].status != STATUS_FINE) return;
    const u32 index = choose(args, room, row, want);
    if (kx_tid() == 0) args.chosen[row].token = adjusted_elements(args, row, want).token(index);
}
