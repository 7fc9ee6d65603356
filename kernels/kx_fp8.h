// Floats of eight bits, and the scales of the rows that are kept in them: crates/refrain-program/src/fp8.rs says the same
// in Rust, and why a row has a scale of its own.
//
//   e4m3   four bits of exponent, three of mantissa, up to 448; no infinities
//   e5m2   five bits of exponent, two of mantissa: the upper byte of f16
//
// Codes come in pairs, the first in the low byte. Rounded to nearest even; what is too large becomes the largest number,
// NaN stays NaN. Every number of both types is one of f16.
#pragma once
#include "kx.h"

struct e4m3 { u8 bits; };
struct e5m2 { u8 bits; };

#ifndef KX_FP8
// The code of a number: MANTISSA bits are kept, exponents have BIAS added to them.
template <int MANTISSA, int BIAS> KX_DEV u32 kx_fp8_code(f32 value, f32 largest) {
    const u32 bits = kx_bits(value), sign = bits >> 24 & 0x80u;
    const f32 magnitude = kx_min(kx_from_bits(bits & 0x7fffffffu), largest);
    const u32 kept = kx_bits(magnitude);
    // What is subnormal is rounded by adding a number whose last place is the smallest code.
    const f32 one = kx_from_bits((u32)(151 - BIAS - MANTISSA) << 23);
    const u32 small = kx_bits(magnitude + one) - kx_bits(one);
    const u32 rounded = (kept + (1u << (22 - MANTISSA)) - 1u + (kept >> (23 - MANTISSA) & 1u)) >> (23 - MANTISSA);
    const u32 code = kept < (u32)(128 - BIAS) << 23 ? small : rounded - ((u32)(127 - BIAS) << MANTISSA);
    return sign | (value != value ? 0x7fu : code);
}
KX_DEV u32 kx_fp8_pair(f32 low, f32 high, e4m3) {
    return kx_fp8_code<3, 7>(low, 448.0f) | kx_fp8_code<3, 7>(high, 448.0f) << 8;
}
KX_DEV u32 kx_fp8_pair(f32 low, f32 high, e5m2) {
    return kx_fp8_code<2, 15>(low, 57344.0f) | kx_fp8_code<2, 15>(high, 57344.0f) << 8;
}

KX_DEV void kx_fp8_floats(f32 out[2], u32 codes, e4m3) {
    // In the places of f16, where numbers are 256 times smaller: exponents have 8 more added to them.
    const u32 magnitude = (codes & 0x7fu) | (codes & 0x7f00u) << 8, sign = (codes & 0x80u) << 8 | (codes & 0x8000u) << 16;
    const u32 nan = ((magnitude + 0x00010001u) & 0x00800080u) * 0xf8u;
    const u32 halves = magnitude << 7 | sign | nan;
    out[0] = kx_f16_to_f32((u16)halves) * 256.0f;
    out[1] = kx_f16_to_f32((u16)(halves >> 16)) * 256.0f;
}
KX_DEV void kx_fp8_floats(f32 out[2], u32 codes, e5m2) {
    out[0] = kx_f16_to_f32((u16)(codes << 8));
    out[1] = kx_f16_to_f32((u16)(codes & 0xff00u));
}
KX_DEV u32 kx_fp8_halves(u32 codes, e4m3) {
    f32 floats[2];
    kx_fp8_floats(floats, codes, e4m3());
    return kx_f16_pair(floats[0], floats[1]);
}
KX_DEV u32 kx_fp8_halves(u32 codes, e5m2) { return (codes & 0xffu) << 8 | (codes & 0xff00u) << 16; }
#else
KX_DEV u32 kx_fp8_pair(f32 low, f32 high, e4m3) { return kx_e4m3_pair(low, high); }
KX_DEV u32 kx_fp8_pair(f32 low, f32 high, e5m2) { return kx_e5m2_pair(low, high); }
KX_DEV u32 kx_fp8_halves(u32 codes, e4m3) { return kx_e4m3_halves(codes); }
KX_DEV u32 kx_fp8_halves(u32 codes, e5m2) { return kx_e5m2_halves(codes); }
template <class T> KX_DEV void kx_fp8_floats(f32 out[2], u32 codes, T) {
    const u32 halves = kx_fp8_halves(codes, T());
    out[0] = kx_f16_to_f32((u16)halves);
    out[1] = kx_f16_to_f32((u16)(halves >> 16));
}
#endif

#ifndef KX_BYTES
// Four bytes of eight, counted from the lowest of `low`.
template <int A, int B, int C, int D> KX_DEV u32 kx_bytes(u32 low, u32 high) {
    const u64 all = (u64)high << 32 | low;
    return (u32)((all >> 8 * A & 0xffu) | (all >> 8 * B & 0xffu) << 8 | (all >> 8 * C & 0xffu) << 16 |
                 (all >> 8 * D & 0xffu) << 24);
}
#endif

// Four numbers of a word of codes.
template <class T> KX_DEV void kx_fp8_four(f32 out[4], u32 codes, T) {
    kx_fp8_floats(out, codes & 0xffffu, T());
    kx_fp8_floats(out + 2, codes >> 16, T());
}
KX_DEV void kx_load8(f32 out[8], const e4m3* from) {
    const u32x2 codes = kx_load((const u32x2*)from);
    kx_fp8_four(out, codes.x, e4m3());
    kx_fp8_four(out + 4, codes.y, e4m3());
}
KX_DEV void kx_load8(f32 out[8], const e5m2* from) {
    const u32x2 codes = kx_load((const u32x2*)from);
    kx_fp8_four(out, codes.x, e5m2());
    kx_fp8_four(out + 4, codes.y, e5m2());
}
template <class T> KX_DEV u32 kx_fp8_word(const f32 in[4], T) {
    return kx_fp8_pair(in[0], in[1], T()) | kx_fp8_pair(in[2], in[3], T()) << 16;
}
KX_DEV void kx_store8(e4m3* to, const f32 in[8]) {
    *(u32x2*)to = u32x2{kx_fp8_word(in, e4m3()), kx_fp8_word(in + 4, e4m3())};
}
KX_DEV void kx_store8(e5m2* to, const f32 in[8]) {
    *(u32x2*)to = u32x2{kx_fp8_word(in, e5m2()), kx_fp8_word(in + 4, e5m2())};
}

// The scale of a row by its largest absolute value (NaN aside): the smallest power of two, 2^(scale - 127), with which
// nothing is too large. The mantissa of the largest number is 1.75. At least 2^-64.
KX_DEV u32 kx_scale(f32 largest, u32 exponent_of_most) {
    const u32 exponent = (kx_bits(kx_min(largest, 3.402823466e38f)) + 0x1fffffu) >> 23, scale = exponent - exponent_of_most;
    return exponent < 63 + exponent_of_most ? 63 : scale;
}
KX_DEV u32 kx_scale_of(f32 largest, e4m3) { return kx_scale(largest, 8); }
KX_DEV u32 kx_scale_of(f32 largest, e5m2) { return kx_scale(largest, 15); }
KX_DEV f32 kx_scale_factor(u32 scale) { return kx_from_bits(scale << 23); }
KX_DEV f32 kx_scale_inverse(u32 scale) { return kx_from_bits((254u - scale) << 23); }
