// What a step is, as kernels see it: crates/refrain-gpu/src/step_block.rs writes it, one copy a step brings it over.
// Kernel arguments hold pointers into it and never change from step to step.
#pragma once
#include "kx.h"

// Tokens of a KV block, and of the pieces in which sequences are worked on.
#define KX_BLOCK 16
#define KX_PIECE 64

struct StepHeader {
    u32 tokens;         // T: rows of the step
    u32 segments;       // R: sequences
    u32 logit_rows;     // S
    u32 prefill_pieces; // pieces of sequences with more than one token; they come first
    u32 pieces;         // all pieces
    u32 chunks;         // pieces that the chunked scan takes
    u32 scans;          // sequences that have chunks
    u32 recurrent;      // sequences that have tokens for the one-token recurrence
    u32 sampled;        // S where tokens are chosen, 0 where the logits are wanted
    u32 adjustments;    // where the first adjustment lies in Step.adjustments: behind what is used of the block table
    u32 reserved[6];
};

// One sequence's part of the step.
struct Segment {
    u32 row;        // first row
    u32 len;        // rows
    u32 position;   // of the first of them in the sequence; 0: there is no state yet, don't read any
    u32 scan;       // leading rows for the chunked scan; the rest goes through the recurrence
    u32 slot;       // of the GDN states
    u32 blocks;     // first entry of its block table in Step.block_table; entry i holds positions 16 i .. 16 i + 16
    u32 num_blocks;
    u32 reserved;
};

// Consecutive rows of one segment. Cut where the position is a multiple of KX_PIECE.
struct Piece {
    u32 row;
    u32 len;      // at most KX_PIECE, except in `recurrent`, where it is all rows behind `scan`
    u32 position; // of the first row
    u32 segment;
};

// The chunks of one sequence.
struct Scan {
    u32 segment;
    u32 first_chunk; // index into chunks
    u32 chunks;
    u32 reserved;
};

// What is wanted of one logit row; crates/refrain-device/src/sampling.rs says what each field means.
struct RowSampling {
    double uniform;      // in [0, 1)
    f32 temperature;     // 0: the best token, no draw
    u32 top_k;           // 0: all
    f32 top_p;
    f32 min_p;
    f32 repetition;
    f32 presence;
    u32 adjustments;     // its first one, counted from that of the step
    u32 num_adjustments;
    u32 flags;           // KX_ROW_*
    u32 given;           // the token, where KX_ROW_GIVEN
    u32 top;             // so many best tokens, where KX_ROW_LOGPROBS
    u32 reserved[3];
};
#define KX_ROW_ONLY_ADJUSTED 1
#define KX_ROW_GIVEN 2
#define KX_ROW_LOGPROBS 4

// A change of one logit before the choice. Those of a row are ascending by token.
struct KX_ALIGN(16) Adjustment {
    u32 token;
    u32 flags;     // KX_TOKEN_*
    f32 bias;
    f32 frequency; // the penalty times the number of times
};
#define KX_TOKEN_FORBIDDEN 1
#define KX_TOKEN_OCCURRED 2
#define KX_TOKEN_GENERATED 4

// What is chosen for a logit row, as the host reads it.
struct SampleChosen {
    u32 token; // 0 where none can be chosen
    u32 status;
    f32 logprob;
    u32 rank; // counted up from 0: one less
};

// A token that has this bit is still to be put in: the rest is the logit row of the step before in which it was chosen.
#define KX_CARRIED 0x80000000u
KX_DEV u32 kx_token(u32 token, const SampleChosen* chosen) {
    return token & KX_CARRIED ? chosen[token & ~KX_CARRIED].token : token;
}

// Pointers that the arguments of most kernels begin with.
struct Step {
    const StepHeader* header;
    const u32* tokens;       // [T] ids, or KX_CARRIED: only for kx_token
    const u32* row_segment;  // [T] which segment a row belongs to
    const u32* row_position; // [T] its position in its sequence
    const Segment* segments; // [R]
    const u32* block_table;  // block ids of all segments
    const u32* logit_rows;   // [S] rows whose logits are wanted
    const Piece* pieces;     // of all rows: those of prefills, then those of single tokens
    const Piece* chunks;     // of the rows of scans, grouped by segment, in order
    const Scan* scans;
    const Piece* recurrent;  // one for each segment with rows behind `scan`
    const RowSampling* sampling;   // [S]
    const Adjustment* adjustments; // from StepHeader.adjustments on
};
