//! Element types of the KV cache.

use crate::simd::{LANES, Simd};
use half::{bf16, f16};
use refrain_program::{CacheDtype, Dtype, Fp8};

/// Element type of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvElement {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
    /// 2 bytes, IEEE half.
    F16,
    /// A byte, and a scale for every row.
    Fp8(Fp8),
}

impl From<CacheDtype> for KvElement {
    fn from(dtype: CacheDtype) -> Self {
        match dtype {
            CacheDtype::Plain(Dtype::F32) => KvElement::F32,
            CacheDtype::Plain(Dtype::Bf16) => KvElement::Bf16,
            CacheDtype::Plain(Dtype::F16) => KvElement::F16,
            CacheDtype::Fp8(format) => KvElement::Fp8(format),
        }
    }
}

/// How elements of the cache are read and written.
#[allow(clippy::missing_safety_doc)] // as for `Simd`: the processor has the level, pointers are good for the lanes
pub(crate) trait Element: Copy {
    /// Set where rows are kept with scales: what is stored is then the row over its scale.
    const FP8: Option<Fp8> = None;
    /// Sixteen elements, widened.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// Sixteen elements, rounded to nearest even.
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V);
    /// One element, rounded to nearest even.
    fn round(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by contract.
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V) {
        // SAFETY: by contract.
        unsafe { S::store(to, value) }
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by contract.
        unsafe { S::load_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V) {
        // SAFETY: by contract.
        unsafe { S::store_bf16(to.cast(), value) }
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by contract.
        unsafe { S::load_f16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V) {
        // SAFETY: by contract.
        unsafe { S::store_f16(to.cast(), value) }
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// [`Fp8::E4m3`].
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct E4m3(u8);

impl Element for E4m3 {
    const FP8: Option<Fp8> = Some(Fp8::E4m3);

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by contract.
        unsafe { S::load_e4m3(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V) {
        // SAFETY: by contract.
        unsafe { store_codes::<S, Self>(to, value) }
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        Self(Fp8::E4m3.encode(value))
    }
}

/// [`Fp8::E5m2`].
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct E5m2(u8);

impl Element for E5m2 {
    const FP8: Option<Fp8> = Some(Fp8::E5m2);

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by contract.
        unsafe { S::load_e5m2(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V) {
        // SAFETY: by contract.
        unsafe { store_codes::<S, Self>(to, value) }
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        Self(Fp8::E5m2.encode(value))
    }
}

/// Sixteen codes, one after another: the compiler makes lanes of them.
#[inline(always)]
unsafe fn store_codes<S: Simd, E: Element>(to: *mut E, value: S::V) {
    let mut numbers = [0.0f32; LANES];
    // SAFETY: sixteen elements by contract.
    unsafe {
        S::store(numbers.as_mut_ptr(), value);
        to.cast::<[E; LANES]>().write(numbers.map(E::round));
    }
}
