// What the kernels of the chunked scan share: what the first leaves for the second, and the products of 16-bit types.
//
// A chunk is at most 64 tokens of a sequence, cut where the position is a multiple of 64 (Yang et al., arXiv 2412.06464).
// With K, Q, V the rows of a chunk, b its betas, c the running sum of its log-decays (c_n the last), S the state
// [value_dim, key_dim] before it:
//
//   L_ij = e^(c_i - c_j), j <= i         T = (I + tril(diag(b) K K^T .* L, -1))^-1 diag(b)        P = tril(Q K^T .* L)
//   D    = T (V - diag(e^c) K S^T)     out = diag(e^c) Q S^T + P D     S <- e^c_n S + D^T diag(e^(c_n - c)) K
//
// Only differences of c that are at most 0 are exponentiated, so that strong decay underflows to 0 and nothing overflows.
// T, P and the exponentials of a chunk depend on nothing before it: the first kernel makes them for all chunks at once
// (gdn_chunk_prepare.cu). The second goes through the chunks of a sequence (gdn_chunk_scan.cu, gdn_chunk_scan_mma.cu).
#pragma once
#include "step.h"

#define CHUNK KX_PIECE

// Of one chunk and value head. Tokens that a short chunk lacks have beta 0, decay 0 and zeros for q, k and v.
struct GdnChunk {
    f32 since_start[CHUNK]; // e^c
    f32 to_end[CHUNK];      // e^(c_n - c)
    // Rows of T and P. With tensor cores 16 x 16 blocks above the diagonal are not written, without they are zeros.
    W_T solve[CHUNK * CHUNK];
    W_T scores[CHUNK * CHUNK];
};

#if KX_MMA
// Arithmetic of the 16-bit types: d += a b on tensor cores, two values rounded to a word, and the two of a word.
template <class X> struct Half;
template <> struct Half<bf16> {
    KX_DEV_MEMBER static void mma(f32 d[4], const u32 a[4], const u32 b[2]) { kx_mma_bf16(d, a, b); }
    KX_DEV_MEMBER static u32 pair(f32 low, f32 high) { return kx_bf16_pair(low, high); }
    KX_DEV_MEMBER static f32 low(u32 word) { return kx_from_bits(word << 16); }
    KX_DEV_MEMBER static f32 high(u32 word) { return kx_from_bits(word & 0xffff0000u); }
};
template <> struct Half<f16> {
    KX_DEV_MEMBER static void mma(f32 d[4], const u32 a[4], const u32 b[2]) { kx_mma_f16(d, a, b); }
    KX_DEV_MEMBER static u32 pair(f32 low, f32 high) { return kx_f16_pair_finite(low, high); }
    KX_DEV_MEMBER static f32 low(u32 word) { return kx_f16_to_f32((u16)word); }
    KX_DEV_MEMBER static f32 high(u32 word) { return kx_f16_to_f32((u16)(word >> 16)); }
};
#endif
