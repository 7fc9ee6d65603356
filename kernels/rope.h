// Rotary embedding, of heads of which a thread has eight neighbouring dimensions (qk_norm_rope.cu).
// Defines: HEAD_DIM, ROTARY_DIM.
#pragma once
#include "step.h"

#define HALF (ROTARY_DIM / 2)

// Sine and cosine of an angle in 0 .. 2^22, to 1e-7. Whole quarter turns are taken off with pi / 2 in three parts (Cody
// and Waite), which is exact as long as their number has 22 bits; the rest goes through the polynomials of Cephes'
// sinf. The library's functions take angles above 1e5 through local memory.
KX_DEV void sine_cosine(f32 angle, f32* sine, f32* cosine) {
    const u32 quarters = (u32)kx_fma(angle, 0.636619772367581f, 0.5f);
    const f32 n = (f32)quarters;
    f32 r = kx_fma(-n, 1.5703125f, angle);
    r = kx_fma(-n, 4.837512969970703125e-4f, r);
    r = kx_fma(-n, 7.549789948768648e-8f, r);
    const f32 z = r * r;
    const f32 s = kx_fma(kx_fma(kx_fma(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f) * z, r, r);
    const f32 tail = kx_fma(kx_fma(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
    const f32 c = kx_fma(tail, z * z, kx_fma(-0.5f, z, 1.0f));
    const bool swap = quarters & 1;
    *sine = swap ? c : s;
    *cosine = swap ? s : c;
    if (quarters & 2) *sine = -*sine;
    if ((quarters + 1) & 2) *cosine = -*cosine;
}

// The other halves of the pairs that dimensions first .. first + 8 belong to; zeros for those that are not rotated.
template <class T> KX_DEV void load_partners(f32 out[8], const T* head, u32 first) {
    KX_UNROLL
    for (int i = 0; i < 8; i++) out[i] = 0.0f;
    if constexpr (HALF % 8 == 0) {
        if (first < ROTARY_DIM) kx_load8(out, head + (first < HALF ? first + HALF : first - HALF));
    } else {
        KX_UNROLL
        for (u32 i = 0; i < 8; i++) {
            const u32 j = first + i;
            if (j < ROTARY_DIM) out[i] = kx_float(head[j < HALF ? j + HALF : j - HALF]);
        }
    }
}

// Of dimensions first .. first + 8: what each and its partner are multiplied with, the norm's weights included.
KX_DEV void factors(f32 own[8], f32 other[8], const f32 weight[8], const f32 partner_weight[8], u32 first,
                    const f32* sines, const f32* cosines) {
    KX_UNROLL
    for (u32 i = 0; i < 8; i++) {
        const u32 j = first + i, angle = j < HALF ? j : j - HALF;
        const bool rotated = j < ROTARY_DIM;
        own[i] = (1.0f + weight[i]) * (rotated ? cosines[angle] : 1.0f);
        other[i] = rotated ? (1.0f + partner_weight[i]) * (j < HALF ? -sines[angle] : sines[angle]) : 0.0f;
    }
}
