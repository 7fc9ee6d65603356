// How ops that take element by element divide their work; also of kernels whose text is made when a model is loaded
// (crates/refrain-gpu/src/kernels/generated.rs).
//
// A block takes a tile of TILE_ROWS rows and TILE_COLUMNS columns, grid (row tiles, column tiles); a thread takes VECTOR
// neighbouring elements of two rows, both loaded before the first is stored. VECTOR is 8 where every row of every
// operand begins at a multiple of 16 bytes and the width is a multiple of 8, else 1.
//
// Defines: VECTOR, THREADS = 4 * 64.
#pragma once
#include "kx.h"

#define TILE_ROWS 8
#define TILE_LANES 64
#define TILE_COLUMNS (TILE_LANES * VECTOR)
#define ROW_LANES (THREADS / TILE_LANES)
#define ROWS_EACH (TILE_ROWS / ROW_LANES)

// Where a thread works: elements `column` and the next of rows `row`, `row` + ROW_LANES, ...
struct Place {
    u32 row, column;
};
KX_DEV Place place() {
    return Place{kx_block_x() * TILE_ROWS + kx_tid() / TILE_LANES,
                 kx_block_y() * TILE_COLUMNS + kx_tid() % TILE_LANES * VECTOR};
}
