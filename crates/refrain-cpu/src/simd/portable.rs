//! The lanes in plain Rust, for processors without AVX2 and for other architectures.

use super::{LANES, Simd};
use half::{bf16, f16};
use refrain_program::Fp8;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

// SAFETY: nothing here needs a special instruction; pointers are good for the lanes touched, as the trait asks.
impl Simd for Portable {
    type V = [f32; LANES];
    const REGISTERS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: 16 readable floats by contract.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: 16 writable floats by contract.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self::V {
        let mut out = [0.0; LANES];
        // SAFETY: `count <= 16` readable floats by contract.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), count) };
        out
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, value: Self::V, count: usize) {
        // SAFETY: `count <= 16` writable floats by contract.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), to, count) };
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: 16 readable values by contract.
        std::array::from_fn(|i| bf16::from_bits(unsafe { from.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, value: Self::V) {
        for (i, x) in value.into_iter().enumerate() {
            // SAFETY: 16 writable values by contract.
            unsafe { to.add(i).write_unaligned(bf16::from_f32(x).to_bits()) };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self::V, Self::V) {
        // SAFETY: 32 readable values by contract.
        let value = |i: usize| bf16::from_bits(unsafe { from.add(i).read_unaligned() }).to_f32();
        (std::array::from_fn(|i| value(2 * i)), std::array::from_fn(|i| value(2 * i + 1)))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        // SAFETY: 16 readable values by contract.
        std::array::from_fn(|i| f16::from_bits(unsafe { from.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, value: Self::V) {
        for (i, x) in value.into_iter().enumerate() {
            // SAFETY: 16 writable values by contract.
            unsafe { to.add(i).write_unaligned(f16::from_f32(x).to_bits()) };
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> Self::V {
        // SAFETY: 16 readable values by contract.
        std::array::from_fn(|i| Fp8::E4m3.decode(unsafe { *from.add(i) }))
    }
    #[inline(always)]
    unsafe fn load_e5m2(from: *const u8) -> Self::V {
        // SAFETY: 16 readable values by contract.
        std::array::from_fn(|i| Fp8::E5m2.decode(unsafe { *from.add(i) }))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `mul_add`: without the instruction that is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, f32::max)
    }
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        x.map(f32::exp)
    }
    #[inline(always)]
    unsafe fn sum(x: Self::V) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn largest(x: Self::V) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}
