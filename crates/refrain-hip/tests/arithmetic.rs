//! The functions that `kx_hip.h` computes itself, run on the CPU against double precision.

mod support;

use libloading::os::unix::{Library, Symbol};

fn arithmetic() -> Library {
    // GCC does not know the attributes of HIP; they have no meaning here.
    let path =
        support::shared_object("arithmetic", &[("arithmetic.cpp", include_str!("support/arithmetic.cpp"))], &["-w"]);
    // SAFETY: it has no initialisers.
    unsafe { Library::new(path) }.unwrap()
}

fn function<F>(library: &Library, name: &str) -> Symbol<F> {
    // SAFETY: the types below are those of arithmetic.cpp.
    unsafe { library.get::<F>(name) }.unwrap()
}

/// Units in the last place of the exact value by which a value is off.
fn ulps(value: f32, exact: f64) -> f64 {
    let rounded = (exact as f32).abs().max(f32::MIN_POSITIVE);
    (f64::from(value) - exact).abs() / (f64::from(rounded.next_up()) - f64::from(rounded))
}

#[test]
fn sine_and_cosine_are_exact_up_to_the_largest_positions() {
    let library = arithmetic();
    let sin: Symbol<extern "C" fn(f32) -> f32> = function(&library, "hip_sin");
    let cos: Symbol<extern "C" fn(f32) -> f32> = function(&library, "hip_cos");
    for step in 0..400_000_u32 {
        // Small angles densely, then whole positions of the longest sequences and what lies between.
        let x = match step % 3 {
            0 => step as f32 * 1e-5,
            1 => step as f32 * 2.7,
            _ => -(step as f32) * 0.37,
        };
        let exact = f64::from(x).sin_cos();
        let (s, c) = (sin(x), cos(x));
        // Near a zero the error is that of the angle, far below an ulp of 1.
        assert!(ulps(s, exact.0) <= 2.0 || (f64::from(s) - exact.0).abs() < 1e-9, "sin({x}) = {s}, not {}", exact.0);
        assert!(ulps(c, exact.1) <= 2.0 || (f64::from(c) - exact.1).abs() < 1e-9, "cos({x}) = {c}, not {}", exact.1);
    }
}

#[test]
fn powers_are_exact() {
    let library = arithmetic();
    let pow: Symbol<extern "C" fn(f32, f32) -> f32> = function(&library, "hip_pow");
    for base in [1e7_f32, 1e4, 1e6, 5e5, 10.0, 2.0, 1.0, 0.999, 0.5, 1e-3, 1e-20, 1e-40, 3.3e38] {
        for step in -2000..=2000 {
            let y = step as f32 / 256.0;
            let exact = f64::from(base).powf(f64::from(y));
            let value = pow(base, y);
            if exact > f64::from(f32::MAX) {
                assert_eq!(value, f32::INFINITY, "{base}^{y}");
            } else {
                assert!(ulps(value, exact) <= 1.0, "{base}^{y} = {value}, not {exact}");
            }
        }
    }
    for (x, y, exact) in [(0.0, 2.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, f32::INFINITY), (2.0, 3000.0, f32::INFINITY)] {
        assert_eq!(pow(x, y), exact);
    }
    assert_eq!(pow(2.0, -3000.0), 0.0);
}

#[test]
fn halves_are_rounded_to_the_nearest_even() {
    let library = arithmetic();
    let to: Symbol<extern "C" fn(f32) -> u16> = function(&library, "hip_f32_to_f16");
    let from: Symbol<extern "C" fn(u16) -> f32> = function(&library, "hip_f16_to_f32");
    let cases = [
        (1.0, 0x3c00),
        (-2.0, 0xc000),
        (65504.0, 0x7bff),
        (65520.0, 0x7c00),
        (6e-8, 1),
        (2049.0, 0x6800),
        (2051.0, 0x6802),
    ];
    for (value, bits) in cases {
        assert_eq!(to(value), bits, "{value}");
    }
    for bits in 0..=u16::MAX {
        let value = from(bits);
        assert!(value.is_nan() || to(value) == bits, "{bits:#06x}");
    }
}

#[test]
fn pairs_are_rounded_as_single_values_are() {
    let library = arithmetic();
    let bf16_pair: Symbol<extern "C" fn(f32, f32) -> u32> = function(&library, "hip_bf16_pair");
    let f16_pair: Symbol<extern "C" fn(f32, f32) -> u32> = function(&library, "hip_f16_pair");
    for step in 0..1_000_000_u32 {
        let value = f32::from_bits(step.wrapping_mul(2_654_435_761));
        let (low, high) = (value, -value * 1.37);
        let both = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
        let expected = both(half::bf16::from_f32(low).to_bits(), half::bf16::from_f32(high).to_bits());
        assert_eq!(bf16_pair(low, high), expected, "{low} {high}");
        let finite = |value: f32| {
            let bits = half::f16::from_f32(value.clamp(-65504.0, 65504.0)).to_bits();
            // Which NaN does not matter.
            if value.is_nan() { 0x7e00 } else { bits }
        };
        let got = f16_pair(low, high);
        let same = |got: u32, value: f32| value.is_nan() && got & 0x7c00 == 0x7c00 || got as u16 == finite(value);
        assert!(same(got & 0xffff, low) && same(got >> 16, high), "{low} {high}: {got:#010x}");
    }
}
