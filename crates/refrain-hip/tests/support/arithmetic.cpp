// The arithmetic of kx_hip.h on the CPU: what it takes from the GPU is replaced by what that is defined to do.
#include <cmath>
#include <cstring>

#define __AMDGCN__ 1
#define __HIP_MEMORY_SCOPE_AGENT 0
#define __hip_atomic_fetch_add(at, value, order, scope) __atomic_fetch_add(at, value, order)
#define __hip_atomic_fetch_max(at, value, order, scope) (value)
static int exponent_of(float x) {
    int exponent;
    std::frexp(x, &exponent);
    return exponent;
}
static float mantissa_of(float x) {
    int exponent;
    return std::frexp(x, &exponent);
}
#define __builtin_amdgcn_frexp_mantf(x) mantissa_of(x)
#define __builtin_amdgcn_frexp_expf(x) exponent_of(x)
#define __builtin_amdgcn_ldexp(x, n) std::ldexp(x, n)
// Each byte of the selector names one of the eight of (high, low), counted from low's first.
static unsigned permuted(unsigned high, unsigned low, unsigned selector) {
    const unsigned long long both = (unsigned long long)high << 32 | low;
    unsigned result = 0;
    for (int byte = 0; byte < 4; byte++) result |= (unsigned)(both >> 8 * (selector >> 8 * byte & 7) & 0xff) << 8 * byte;
    return result;
}
#define __builtin_amdgcn_perm(high, low, selector) permuted(high, low, selector)
// Not used here.
#define __builtin_amdgcn_workitem_id_x() 0u
#define __builtin_amdgcn_workgroup_id_x() 0u
#define __builtin_amdgcn_workgroup_id_y() 0u
#define __builtin_amdgcn_workgroup_id_z() 0u
#define __builtin_amdgcn_dispatch_ptr() nullptr
#define __builtin_amdgcn_fence(order, scope)
#define __builtin_amdgcn_s_barrier()
#define __builtin_amdgcn_wave_barrier()
#define __builtin_amdgcn_mbcnt_lo(mask, base) 0u
#define __builtin_amdgcn_mbcnt_hi(mask, base) 0u
#define __builtin_amdgcn_ds_bpermute(lane, value) (value)
#define __builtin_amdgcn_ds_swizzle(value, pattern) (value)
#define __builtin_amdgcn_mov_dpp(value, control, rows, banks, bound) (value)
#define __builtin_amdgcn_rsqf(x) (x)
#define __builtin_amdgcn_sqrtf(x) (x)
#define __builtin_amdgcn_rcpf(x) (x)
#include "kx.h"

extern "C" {
#pragma GCC visibility push(default)
float hip_sin(float x) { return kx_sin(x); }
float hip_cos(float x) { return kx_cos(x); }
float hip_pow(float x, float y) { return kx_pow(x, y); }
unsigned short hip_f32_to_f16(float x) { return kx_f32_to_f16(x); }
unsigned hip_bf16_pair(float low, float high) { return kx_bf16_pair(low, high); }
unsigned hip_f16_pair(float low, float high) { return kx_f16_pair_finite(low, high); }
float hip_f16_to_f32(unsigned short x) { return kx_f16_to_f32(x); }
}
