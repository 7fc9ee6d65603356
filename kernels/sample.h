// Choosing tokens from logits [S, VOCAB] f32: what the kernels of sample_*.cu share.
//
// A row is cut into slices of SLICE elements, a slice among the THREADS_SCAN threads of a block, so that each thread has
// ITEMS groups of 4 neighbours. The elements of one thread are a segment. The scan writes the largest of each segment: the
// k-th largest of those is at most the k-th largest logit, so that everything above it lies in few segments, and the best
// tokens are found without another look at the whole row.
//
// With only_adjusted, the elements of the adjusted row are its adjustments instead of the vocabulary. Either way their
// order is that of the token ids.
#pragma once
#include "step.h"

#define THREADS_SCAN 256
#define ITEMS 8
#define SLICE (THREADS_SCAN * ITEMS * 4)
#define SLICES ((VOCAB + SLICE - 1) / SLICE)
#define SEGMENTS (SLICES * THREADS_SCAN)
// Best tokens of a row that can be asked for.
#define MOST_TOP 20

#define STATUS_FINE 0
#define STATUS_NOT_FINITE 1
#define STATUS_NONE_ALLOWED 2

// What a slice of a row comes to.
struct KX_ALIGN(16) SampleSlice {
    f32 best;
    u32 token;
    f32 sum;   // of e^(logit - best), where wanted
    u32 wrong; // something is not a finite number
};

// What is known of a row from kernel to kernel.
struct SampleRow {
    f32 best;         // of the adjusted logits, where there are adjustments
    u32 token;        // the first that has it
    f32 raw_best;     // of the raw logits
    f32 raw_log_sum;  // ln of the sum of e^(logit - raw_best)
    u32 status;
    u32 done;         // slices that the scan has finished; 0 between kernels
    u32 reserved[2];
};

// One of the best tokens of a row, as the host reads it.
struct SampleTop {
    u32 token;
    f32 logprob;
};

struct SampleArgs {
    Step step;
    f32* logits;          // [S, VOCAB]; adjusted in place and put back
    SampleRow* rows;      // [S]
    SampleSlice* slices;  // [S, SLICES]
    f32* maxima;          // [S, SEGMENTS]
    f32* raw;             // raw logits of adjusted tokens, as the adjustments lie
    SampleChosen* chosen; // [S]
    SampleTop* top;       // [S, MOST_TOP]
};

KX_DEV f32 infinity() { return kx_from_bits(0x7f800000u); }

// Order-preserving: the larger logit has the larger key, -0 before +0. Never 0 for what is above -infinity.
KX_DEV u32 key_of(f32 value) {
    const u32 bits = kx_bits(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
KX_DEV f32 value_of(u32 key) { return kx_from_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key); }
#define KEY_OF_NOTHING 0x007fffffu // of -infinity

KX_DEV const Adjustment* adjustments_of(const SampleArgs& args, const RowSampling& want) {
    return args.step.adjustments + args.step.header->adjustments + want.adjustments;
}
KX_DEV bool is_adjusted(const RowSampling& want) {
    return want.num_adjustments > 0 || want.flags & KX_ROW_ONLY_ADJUSTED;
}

// The elements of a row.
struct Elements {
    const f32* logits;
    const Adjustment* list; // where they are those of the list
    u32 count;

    KX_DEV_MEMBER u32 token(u32 index) const { return list ? list[index].token : index; }
    // Four neighbours; -infinity beyond the end.
    KX_DEV_MEMBER void load4(f32 out[4], u32 index) const {
        if (!list && VOCAB % 4 == 0) {
            f32x4 v = {-infinity(), -infinity(), -infinity(), -infinity()};
            if (index < count) v = kx_load((const f32x4*)(logits + index));
            out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
            return;
        }
        KX_UNROLL
        for (u32 i = 0; i < 4; i++) out[i] = index + i < count ? logits[token(index + i)] : -infinity();
    }
};

KX_DEV Elements raw_elements(const SampleArgs& args, u32 row) {
    return Elements{args.logits + (u64)row * VOCAB, (const Adjustment*)0, VOCAB};
}
KX_DEV Elements adjusted_elements(const SampleArgs& args, u32 row, const RowSampling& want) {
    Elements elements = raw_elements(args, row);
    if (want.flags & KX_ROW_ONLY_ADJUSTED) {
        elements.list = adjustments_of(args, want);
        elements.count = want.num_adjustments;
    }
    return elements;
}

// The first element of group `item` of a segment.
KX_DEV u32 segment_index(u32 segment, u32 item) {
    return segment / THREADS_SCAN * SLICE + (item * THREADS_SCAN + segment % THREADS_SCAN) * 4;
}

KX_DEV f32 logprob_of(const SampleRow& row, f32 logit) {
    const f32 value = (logit - row.raw_best) - row.raw_log_sum;
    return value < -3.402823466e38f ? -3.402823466e38f : value > 0.0f ? 0.0f : value;
}
