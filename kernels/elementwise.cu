// Ops that take element by element, and copies of rows:
//   add           out = a + b
//   sigmoid_gate  out = a * sigmoid(b)
//   silu_mul      out = silu(a) * b
//   embed         out[t] = table[tokens[t]], where tokens that are carried are those that the step before has chosen
//   gather_rows   out[s] = a[index[s]]
//
// Activations are [rows, width] X_T with row strides in elements, but `b` and `out` of the first three are B_T and OUT_T;
// the table is [vocab, width] W_T. Arithmetic is f32. `out` of the first three may be `a` or `b` where it has that type.
//
// elementwise.h says how the work is divided. The least a kernel can take is the time of its bytes: each input once, each
// output once.
//
// Defines: X_T, B_T and OUT_T (the first three), W_T (embed), VECTOR, THREADS = 4 * 64.
#include "elementwise.h"
#include "step.h"

#ifdef B_T
struct PairArgs {
    const u32* rows; // one number: how many rows there are
    const X_T* a;    // [rows, width]
    const B_T* b;    // [rows, width]
    OUT_T* out;      // [rows, width]
    u32 a_stride, b_stride, out_stride, width;
};

struct Sum {
    static KX_DEV_MEMBER f32 of(f32 a, f32 b) { return a + b; }
};
struct SigmoidGate {
    static KX_DEV_MEMBER f32 of(f32 a, f32 b) { return a * kx_sigmoid(b); }
};
struct SiluMul {
    static KX_DEV_MEMBER f32 of(f32 a, f32 b) { return kx_silu(a) * b; }
};

template <class Function> KX_DEV void pairwise(const PairArgs& args) {
    kx_let_next_start();
    const Place at = place();
    const u32 rows = *args.rows;
    kx_wait_for_previous();
    if (at.column >= args.width) return;
    f32 a[ROWS_EACH][VECTOR], b[ROWS_EACH][VECTOR];
    KX_UNROLL
    for (u32 i = 0; i < ROWS_EACH; i++) {
        const u64 row = at.row + i * ROW_LANES;
        if (row < rows) {
            kx_load_vector(a[i], args.a + row * args.a_stride + at.column);
            kx_load_vector(b[i], args.b + row * args.b_stride + at.column);
        }
    }
    KX_UNROLL
    for (u32 i = 0; i < ROWS_EACH; i++) {
        const u64 row = at.row + i * ROW_LANES;
        if (row < rows) {
            KX_UNROLL
            for (u32 j = 0; j < VECTOR; j++) a[i][j] = Function::of(a[i][j], b[i][j]);
            kx_store_vector(args.out + row * args.out_stride + at.column, a[i]);
        }
    }
}

KX_KERNEL(add, PairArgs, THREADS) { pairwise<Sum>(args); }
KX_KERNEL(sigmoid_gate, PairArgs, THREADS) { pairwise<SigmoidGate>(args); }
KX_KERNEL(silu_mul, PairArgs, THREADS) { pairwise<SiluMul>(args); }
#else
template <class From> struct PickArgs {
    const u32* rows;            // one number: how many rows there are
    const u32* index;           // [rows]: which row of `from` each of them is, by kx_token
    const SampleChosen* chosen; // what carried tokens name
    const From* from;           // [any, width]
    X_T* out;                   // [rows, width]
    u32 from_stride, out_stride, width, padding;
};

template <class From> KX_DEV void pick(const PickArgs<From>& args) {
    kx_let_next_start();
    const Place at = place();
    const u32 rows = *args.rows;
    kx_wait_for_previous();
    if (at.column >= args.width) return;
    f32 values[ROWS_EACH][VECTOR];
    KX_UNROLL
    for (u32 i = 0; i < ROWS_EACH; i++) {
        const u32 row = at.row + i * ROW_LANES;
        if (row >= rows) continue;
        const u64 picked = kx_token(args.index[row], args.chosen);
        kx_load_vector(values[i], args.from + picked * args.from_stride + at.column);
    }
    KX_UNROLL
    for (u32 i = 0; i < ROWS_EACH; i++) {
        const u64 row = at.row + i * ROW_LANES;
        if (row < rows) kx_store_vector(args.out + row * args.out_stride + at.column, values[i]);
    }
}

KX_KERNEL(embed, PickArgs<W_T>, THREADS) { pick(args); }
KX_KERNEL(gather_rows, PickArgs<X_T>, THREADS) { pick(args); }
#endif
