// The state of one value head, [VALUE_DIM, KEY_DIM] f32, as the kernels of the one-token recurrence hold it: LANES
// neighbouring lanes have a row, each lane ITEMS times VECTOR elements of ROWS rows, elements `element` and LANES * VECTOR
// further each, of rows `value` and GROUPS further each. A block has a slice of SLICE rows.
//
// Defines: KEY_DIM, VALUE_DIM, LANES (8, 16 or 32), VECTOR (4 where KEY_DIM is a multiple of it, else 1), ROWS, THREADS.
#pragma once
#include "step.h"

#define ITEMS ((KEY_DIM + LANES * VECTOR - 1) / (LANES * VECTOR))
#define GROUPS (THREADS / LANES)
#define SLICE (GROUPS * ROWS)

// The product of two rows, of which each lane has its elements; every lane of the row gets it.
KX_DEV f32 dot(const f32 a[ITEMS][VECTOR], const f32 b[ITEMS][VECTOR]) {
    f32 sum = 0.0f;
    KX_UNROLL
    for (u32 item = 0; item < ITEMS; item++) {
        KX_UNROLL
        for (u32 i = 0; i < VECTOR; i++) sum = kx_fma(a[item][i], b[item][i], sum);
    }
    return kx_group_sum<LANES>(sum);
}

// The state at `rows` where there is one, else zeros.
KX_DEV void load_state(f32 state[ROWS][ITEMS][VECTOR], const f32* rows, u32 first_value, u32 first_element, bool exists) {
    KX_UNROLL
    for (u32 r = 0; r < ROWS; r++) {
        const u32 value = first_value + r * GROUPS;
        KX_UNROLL
        for (u32 item = 0; item < ITEMS; item++) {
            const u32 element = first_element + item * LANES * VECTOR;
            if (exists && value < VALUE_DIM && element < KEY_DIM) {
                kx_load_vector(state[r][item], rows + value * KEY_DIM + element);
            } else {
                KX_UNROLL
                for (u32 i = 0; i < VECTOR; i++) state[r][item][i] = 0.0f;
            }
        }
    }
}
