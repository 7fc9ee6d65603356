// Passes over whole rows of logits: the best token and the sum for log-probabilities (sample_scan), the changes before the
// choice and back (sample_adjust, sample_restore), and the rank of a token (sample_rank). Greedy rows without adjustments
// need the first pass only.
//
// sample_scan, sample_rank: SLICES x S blocks of THREADS_SCAN threads; sample_adjust, sample_restore: S blocks.
// Defines: VOCAB (width of a row), ADJUSTED (sample_scan: rows that have adjustments, after those are made; else all).
#include "sample.h"

#define WAVES (THREADS_SCAN / KX_WAVE)

struct Best {
    f32 value;
    u32 token;
};

// The larger value, among equals the smaller token.
KX_DEV Best better(Best a, Best b) {
    const bool second = b.value > a.value || (b.value == a.value && b.token < a.token);
    return second ? b : a;
}
template <int M> struct WaveBest {
    static KX_DEV_MEMBER Best of(Best best) {
        const Best other = {kx_shuffle_xor<M>(best.value), kx_shuffle_xor<M>(best.token)};
        return WaveBest<M / 2>::of(better(best, other));
    }
};
template <> struct WaveBest<0> {
    static KX_DEV_MEMBER Best of(Best best) { return best; }
};

struct Room {
    Best bests[WAVES];
    f32 sums[WAVES];
    u32 wrong;
    u32 last;
};

// Of the block; every thread gets it.
KX_DEV Best block_best(Best best, Room& room) {
    best = WaveBest<KX_WAVE / 2>::of(best);
    kx_sync();
    if (kx_tid() % KX_WAVE == 0) room.bests[kx_tid() / KX_WAVE] = best;
    kx_sync();
    best = room.bests[0];
    KX_UNROLL
    for (u32 i = 1; i < WAVES; i++) best = better(best, room.bests[i]);
    return best;
}

// Puts the slices of a row together, in their order.
KX_DEV void combine(const SampleArgs& args, const RowSampling& want, u32 row, Room& room) {
    const SampleSlice* slices = args.slices + (u64)row * SLICES;
    Best best = {-infinity(), 0xffffffffu};
    bool wrong = false;
    for (u32 i = kx_tid(); i < SLICES; i += THREADS_SCAN) {
        best = better(best, Best{slices[i].best, slices[i].token});
        wrong |= slices[i].wrong != 0;
    }
    if (kx_tid() == 0) room.wrong = 0;
    best = block_best(best, room);
    if (wrong) room.wrong = 1;
    f32 sum = 0.0f;
    if (!ADJUSTED && want.flags & KX_ROW_LOGPROBS) {
        for (u32 i = kx_tid(); i < SLICES; i += THREADS_SCAN) sum += slices[i].sum * kx_exp(slices[i].best - best.value);
    }
    sum = kx_block_sum<THREADS_SCAN>(sum, room.sums);
    if (kx_tid() > 0) return;

    SampleRow& state = args.rows[row];
    state.done = 0;
    state.best = best.value;
    state.token = best.token;
    if (ADJUSTED) {
        state.status = best.value > -infinity() ? STATUS_FINE : STATUS_NONE_ALLOWED;
    } else {
        state.status = room.wrong ? STATUS_NOT_FINITE : STATUS_FINE;
        state.raw_best = best.value;
        state.raw_log_sum = kx_log2(sum) * KX_LN2;
    }
    // Whatever comes later overwrites it.
    const u32 token = want.flags & KX_ROW_GIVEN ? want.given : best.token;
    args.chosen[row] = SampleChosen{state.status == STATUS_FINE ? token : 0, state.status, 0.0f, 0};
}

KX_KERNEL(sample_scan, SampleArgs, THREADS_SCAN) {
    KX_SHARED Room room;
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 row = kx_block_y(), slice = kx_block_x();
    if (row >= args.step.header->sampled) return;
    const RowSampling want = args.step.sampling[row];
    if (ADJUSTED && (!is_adjusted(want) || want.flags & KX_ROW_GIVEN || args.rows[row].status != STATUS_FINE)) return;
    const Elements elements = ADJUSTED ? adjusted_elements(args, row, want) : raw_elements(args, row);

    const u32 segment = slice * THREADS_SCAN + kx_tid();
    f32 values[ITEMS][4];
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) elements.load4(values[item], segment_index(segment, item));
    if (kx_tid() == 0) room.wrong = 0;

    Best best = {-infinity(), 0xffffffffu};
    f32 check = 0.0f;
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) {
            const u32 index = segment_index(segment, item) + i;
            const f32 value = values[item][i];
            if (value > best.value) best = Best{value, index};
            // NaN for NaN and infinities, zero for all else.
            if (!ADJUSTED) check += (index < elements.count ? value : 0.0f) * 0.0f;
        }
    }
    args.maxima[(u64)row * SEGMENTS + segment] = best.value;
    if (best.token != 0xffffffffu) best.token = elements.token(best.token);
    best = block_best(best, room);
    if (check != check) room.wrong = 1;

    f32 sum = 0.0f;
    if (!ADJUSTED && want.flags & KX_ROW_LOGPROBS && best.value > -infinity()) {
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) {
            KX_UNROLL
            for (u32 i = 0; i < 4; i++) sum += kx_exp(values[item][i] - best.value);
        }
    }
    sum = kx_block_sum<THREADS_SCAN>(sum, room.sums);
    if (kx_tid() == 0) {
        args.slices[(u64)row * SLICES + slice] = SampleSlice{best.value, best.token, sum, room.wrong};
        kx_fence();
        room.last = kx_atomic_add(&args.rows[row].done, 1) + 1 == SLICES;
    }
    kx_sync();
    if (room.last) {
        kx_fence();
        combine(args, want, row, room);
    }
}

// The rows that the adjustments change.
KX_DEV bool changes(const SampleArgs& args, u32 row, const RowSampling& want) {
    return !(want.flags & KX_ROW_GIVEN) && args.rows[row].status != STATUS_NOT_FINITE;
}

KX_KERNEL(sample_adjust, SampleArgs, THREADS_SCAN) {
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 row = kx_block_x();
    if (row >= args.step.header->sampled) return;
    const RowSampling want = args.step.sampling[row];
    if (!changes(args, row, want)) return;
    const f32 most = 3.402823466e38f;
    const Adjustment* list = adjustments_of(args, want);
    for (u32 i = kx_tid(); i < want.num_adjustments; i += THREADS_SCAN) {
        const Adjustment change = list[i];
        f32* logit = args.logits + (u64)row * VOCAB + change.token;
        args.raw[want.adjustments + i] = *logit;
        f32 value = kx_min(kx_max(*logit + change.bias, -most), most);
        if (change.flags & KX_TOKEN_OCCURRED) {
            value = value > 0.0f ? value / want.repetition : value * want.repetition;
            // The clamp also keeps the product from being fused with what follows, which would round otherwise than on
            // the host.
            value = kx_min(kx_max(value, -most), most);
        }
        if (change.flags & KX_TOKEN_GENERATED) value = (value - change.frequency) - want.presence;
        *logit = change.flags & KX_TOKEN_FORBIDDEN ? -infinity() : kx_min(kx_max(value, -most), most);
    }
}

KX_KERNEL(sample_restore, SampleArgs, THREADS_SCAN) {
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 row = kx_block_x();
    if (row >= args.step.header->sampled) return;
    const RowSampling want = args.step.sampling[row];
    if (!(want.flags & KX_ROW_LOGPROBS) || !changes(args, row, want)) return;
    const Adjustment* list = adjustments_of(args, want);
    for (u32 i = kx_tid(); i < want.num_adjustments; i += THREADS_SCAN) {
        args.logits[(u64)row * VOCAB + list[i].token] = args.raw[want.adjustments + i];
    }
}

// Log-probability and rank of the chosen token: counts the better ones of all slices.
KX_KERNEL(sample_rank, SampleArgs, THREADS_SCAN) {
    KX_SHARED Room room;
    kx_let_next_start();
    kx_wait_for_previous();
    const u32 row = kx_block_y(), slice = kx_block_x();
    if (row >= args.step.header->sampled) return;
    const RowSampling want = args.step.sampling[row];
    SampleChosen& chosen = args.chosen[row];
    if (!(want.flags & KX_ROW_LOGPROBS) || chosen.status != STATUS_FINE) return;
    const Elements elements = raw_elements(args, row);
    const u32 token = chosen.token;
    const f32 logit = elements.logits[token];
    f32 count = 0.0f;
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        const u32 index = segment_index(slice * THREADS_SCAN + kx_tid(), item);
        f32 values[4];
        elements.load4(values, index);
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) {
            if (values[i] > logit || (values[i] == logit && index + i < token)) count += 1.0f;
        }
    }
    count = kx_block_sum<THREADS_SCAN>(count, room.sums);
    if (kx_tid() > 0) return;
    if (count > 0.0f) kx_atomic_add(&chosen.rank, (u32)count);
    if (slice == 0) chosen.logprob = logprob_of(args.rows[row], logit);
}
