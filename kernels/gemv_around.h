// What a product of few rows takes besides its operands where the ops around it are part of it: the op that makes x, its
// prologue, and the op that takes the products, its epilogue. Without either, the kernels are those of the product alone.
//
//   PROLOGUE  RMS_NORM        x rsqrt(mean(x^2) + eps) (1 + norm), over a row
//             GATED_RMS_NORM  norm x rsqrt(mean(x^2) + eps) silu(gate), over each of HEADS heads
//   EPILOGUE  ADD             out = residual + product; out may be the residual
//             SILU_MUL        of a matrix of 2 n rows: out[n] = silu(product[n]) product[n + outputs]
//
// x: [rows, INPUTS] X_T, gate: the same in GATE_T, norm: [INPUTS] or [INPUTS / HEADS] f32, residual: [rows, outputs]
// RESIDUAL_T, with row strides in elements. What a prologue makes is rounded to OPERAND_T, as between two ops. Every
// block makes all of it, and keeps it in shared memory: it comes from the L2 cache, and while it does the block's first
// weights are on their way from memory.
//
// Defines: PROLOGUE, X_T, GATE_T, HEADS, PROLOGUE_VECTOR (8 where all rows and `norm` begin at multiples of 16 bytes and
// INPUTS, and the size of heads where there are any, are multiples of 8; else 1), EPILOGUE, RESIDUAL_T.
// Dynamic shared memory of RMS_NORM with PROLOGUE_VECTOR 8: INPUTS f32.
#pragma once
#include "kx.h"

#define RMS_NORM 1
#define GATED_RMS_NORM 2
#define ADD 1
#define SILU_MUL 2

#ifndef PROLOGUE
#define PROLOGUE 0
#endif
#ifndef EPILOGUE
#define EPILOGUE 0
#endif
#ifndef GATE_T
#define GATE_T f32
#endif
#ifndef RESIDUAL_T
#define RESIDUAL_T f32
#endif

#if PROLOGUE || EPILOGUE
struct Around {
    const f32* norm;
    const GATE_T* gate;
    const RESIDUAL_T* residual;
    u32 gate_stride, residual_stride;
    f32 eps;
    u32 padding;
};
#endif
