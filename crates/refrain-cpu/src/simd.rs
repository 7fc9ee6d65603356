//! Sixteen f32 lanes on whatever the processor has. Kernels are written once, generic over [`Simd`], and
//! [`simd_dispatch!`] compiles them for each level behind one safe-to-name entry point.
//!
//! Every method is `unsafe` for one reason: the caller must run on a processor that has the level's instructions, and
//! pointers must be good for the lanes that are touched. All are `inline(always)`, so that they take on the target
//! features of the dispatched function around them.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Lanes of [`Simd::V`].
pub(crate) const LANES: usize = 16;

/// Which implementation of `Simd` the processor can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimdLevel {
    /// Plain Rust; any processor.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
}

impl std::fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SimdLevel::Portable => "portable code",
            SimdLevel::Avx2 => "avx2",
            SimdLevel::Avx512 => "avx512",
        })
    }
}

/// Sixteen f32 lanes.
#[allow(clippy::missing_safety_doc)] // one reason for all of them, in the module's documentation
pub(crate) trait Simd: Copy + 'static {
    /// The register.
    type V: Copy;
    /// How many [`Simd::V`] the processor's registers hold.
    const REGISTERS: usize;
    /// All lanes the same.
    unsafe fn splat(value: f32) -> Self::V;
    /// 16 floats, unaligned.
    unsafe fn load(from: *const f32) -> Self::V;
    /// 16 floats, unaligned.
    unsafe fn store(to: *mut f32, value: Self::V);
    /// The first `count` (1 to 16) floats, zeros after them. Touches no memory beyond.
    unsafe fn load_part(from: *const f32, count: usize) -> Self::V;
    /// The first `count` (1 to 16) lanes. Touches no memory beyond.
    unsafe fn store_part(to: *mut f32, value: Self::V, count: usize);
    /// 16 bf16.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// 16 bf16, rounded to nearest even.
    unsafe fn store_bf16(to: *mut u16, value: Self::V);
    /// 16 pairs of bf16, unaligned: the first of every pair and the second of every pair.
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self::V, Self::V);
    /// 16 IEEE half floats.
    unsafe fn load_f16(from: *const u16) -> Self::V;
    /// 16 IEEE half floats, rounded to nearest even.
    unsafe fn store_f16(to: *mut u16, value: Self::V);
    /// 16 FP8 of [`Fp8::E4m3`](refrain_program::Fp8).
    unsafe fn load_e4m3(from: *const u8) -> Self::V;
    /// 16 FP8 of [`Fp8::E5m2`](refrain_program::Fp8).
    unsafe fn load_e5m2(from: *const u8) -> Self::V;
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the processor can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of two, lane by lane.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `e^x`, relative error below 2e-7 where the result is a normal number; 0 below -104, infinite above 88.8, NaN of NaN.
    unsafe fn exp(x: Self::V) -> Self::V;
    /// Sum of all lanes, in a fixed order.
    unsafe fn sum(x: Self::V) -> f32;
    /// Largest lane.
    unsafe fn largest(x: Self::V) -> f32;

    /// `1 / (1 + e^-x)`.
    #[inline(always)]
    unsafe fn sigmoid(x: Self::V) -> Self::V {
        // SAFETY: the caller's promise covers every operation.
        unsafe {
            let one = Self::splat(1.0);
            Self::div(one, Self::add(one, Self::exp(Self::sub(Self::splat(0.0), x))))
        }
    }

    /// `x * sigmoid(x)`.
    #[inline(always)]
    unsafe fn silu(x: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe {
            let one = Self::splat(1.0);
            Self::div(x, Self::add(one, Self::exp(Self::sub(Self::splat(0.0), x))))
        }
    }
}

/// Compiles a generic kernel `unsafe fn generic<S: Simd>(args)` for every level:
/// `simd_dispatch!(pub(crate) fn name(a: A, b: B) -> R = generic);` gives `unsafe fn name(level: SimdLevel, a: A, b: B) -> R`.
/// The kernel must be `#[inline(always)]`.
macro_rules! simd_dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The processor must have `level`, and the arguments must be what the kernel asks for.
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(level: $crate::simd::SimdLevel, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function has the features that the implementation needs.
                unsafe { $generic::<$crate::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: as above.
                unsafe { $generic::<$crate::simd::Avx2>($($arg),*) }
            }
            // SAFETY: the caller promises that the processor has `level`.
            unsafe {
                match level {
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::SimdLevel::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::SimdLevel::Avx2 => avx2($($arg),*),
                    _ => $generic::<$crate::simd::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use simd_dispatch;

impl SimdLevel {
    /// The best level of this processor.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
            {
                return SimdLevel::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                return SimdLevel::Avx2;
            }
        }
        SimdLevel::Portable
    }

    /// Every level of this processor, plainest first.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512]
            .into_iter()
            .filter(|&level| level <= Self::detect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_program::Fp8;

    #[inline(always)]
    unsafe fn exp_all<S: Simd>(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
            // SAFETY: both chunks have `x.len()` elements.
            unsafe { S::store_part(out.as_mut_ptr(), S::exp(S::load_part(x.as_ptr(), x.len())), x.len()) };
        }
    }
    simd_dispatch!(fn run_exp(x: &[f32], out: &mut [f32]) = exp_all);

    #[inline(always)]
    unsafe fn round_trips<S: Simd>(x: &[f32; 16]) -> [[f32; 16]; 2] {
        let mut halves = [[0u16; 16]; 2];
        let mut out = [[0.0; 16]; 2];
        // SAFETY: every array has 16 elements.
        unsafe {
            S::store_bf16(halves[0].as_mut_ptr(), S::load(x.as_ptr()));
            S::store_f16(halves[1].as_mut_ptr(), S::load(x.as_ptr()));
            S::store(out[0].as_mut_ptr(), S::load_bf16(halves[0].as_ptr()));
            S::store(out[1].as_mut_ptr(), S::load_f16(halves[1].as_ptr()));
        }
        out
    }
    simd_dispatch!(fn run_round_trips(x: &[f32; 16]) -> [[f32; 16]; 2] = round_trips);

    #[inline(always)]
    unsafe fn reductions<S: Simd>(x: &[f32; 16]) -> (f32, f32) {
        // SAFETY: 16 elements.
        unsafe { (S::sum(S::load(x.as_ptr())), S::largest(S::load(x.as_ptr()))) }
    }
    simd_dispatch!(fn run_reductions(x: &[f32; 16]) -> (f32, f32) = reductions);

    #[test]
    fn exp_is_accurate_and_saturates() {
        let x: Vec<f32> = (-87_000..88_600).step_by(7).map(|i| i as f32 * 1e-3).collect();
        let mut out = vec![0.0; x.len()];
        for level in SimdLevel::available() {
            // SAFETY: the level is available.
            unsafe { run_exp(level, &x, &mut out) };
            for (&x, &y) in x.iter().zip(&out) {
                let exact = f64::from(x).exp();
                assert!((f64::from(y) - exact).abs() <= 2e-7 * exact, "{level:?}: exp({x}) = {y}, not {exact}");
            }
            let input = [f32::NEG_INFINITY, -200.0, 0.0, 200.0, f32::INFINITY, f32::NAN];
            let mut edge = [0.5; 6];
            // SAFETY: as above.
            unsafe { run_exp(level, &input, &mut edge) };
            assert_eq!(edge[..5], [0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY], "{level:?}");
            assert!(edge[5].is_nan(), "{level:?}: a NaN is lost");
        }
    }

    #[test]
    fn conversions_round_to_nearest_even() {
        let x: [f32; 16] = std::array::from_fn(|i| match i {
            0 => 1.003_906_3,
            1 => 1.011_718_8,
            2 => -0.0,
            3 => 65504.0,
            4 => 3.0e-6,
            _ => (i as f32 - 8.3) * 1.234_567,
        });
        for level in SimdLevel::available() {
            // SAFETY: the level is available.
            let [bf16, f16] = unsafe { run_round_trips(level, &x) };
            for i in 0..16 {
                assert_eq!(bf16[i].to_bits(), half::bf16::from_f32(x[i]).to_f32().to_bits(), "{level:?} lane {i}");
                assert_eq!(f16[i].to_bits(), half::f16::from_f32(x[i]).to_f32().to_bits(), "{level:?} lane {i}");
            }
        }
    }

    #[inline(always)]
    unsafe fn load_codes<S: Simd>(codes: &[u8; 16]) -> [[f32; 16]; 2] {
        let mut out = [[0.0; 16]; 2];
        // SAFETY: every array has 16 elements.
        unsafe {
            S::store(out[0].as_mut_ptr(), S::load_e4m3(codes.as_ptr()));
            S::store(out[1].as_mut_ptr(), S::load_e5m2(codes.as_ptr()));
        }
        out
    }
    simd_dispatch!(fn run_load_codes(codes: &[u8; 16]) -> [[f32; 16]; 2] = load_codes);

    #[test]
    fn every_code_of_eight_bits_is_read_right() {
        for level in SimdLevel::available() {
            for first in (0..=255u8).step_by(16) {
                let codes = std::array::from_fn(|i| first + i as u8);
                // SAFETY: the level is available.
                let got = unsafe { run_load_codes(level, &codes) };
                for (got, format) in got.iter().zip([Fp8::E4m3, Fp8::E5m2]) {
                    for (got, want) in got.iter().zip(codes.map(|code| format.decode(code))) {
                        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                        assert!(same, "{level:?} {format}: {got}, not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn reductions_see_every_lane() {
        for level in SimdLevel::available() {
            for lane in 0..16 {
                let mut x = [-1.0f32; 16];
                x[lane] = 100.0;
                // SAFETY: the level is available.
                assert_eq!(unsafe { run_reductions(level, &x) }, (85.0, 100.0), "{level:?} lane {lane}");
            }
        }
    }
}
