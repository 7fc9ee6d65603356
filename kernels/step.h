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
    u32 reserved[8];
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

// Pointers that the arguments of most kernels begin with.
struct Step {
    const StepHeader* header;
    const u32* tokens;       // [T] ids
    const u32* row_segment;  // [T] which segment a row belongs to
    const u32* row_position; // [T] its position in its sequence
    const Segment* segments; // [R]
    const u32* block_table;  // block ids of all segments
    const u32* logit_rows;   // [S] rows whose logits are wanted
    const Piece* pieces;     // of all rows: those of prefills, then those of single tokens
    const Piece* chunks;     // of the rows of scans, grouped by segment, in order
    const Scan* scans;
    const Piece* recurrent;  // one for each segment with rows behind `scan`
};
