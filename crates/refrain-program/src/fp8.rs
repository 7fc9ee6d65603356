//! Floats of eight bits, and the scales with which rows of keys and values are kept in them.
//!
//! A row, the `head_dim` keys or values of one token and head, is kept as codes and one scale, a power of two: the
//! smallest with which the largest number of the row is not beyond the range of the type. A token so is rounded by
//! itself. One scale for a whole block would have to grow as tokens are appended, and what a query sees of the tokens
//! before it would depend on those behind it, hence on how a sequence was cut into steps.

use half::f16;
use std::fmt;

/// A float type of eight bits, after Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp8 {
    /// Four bits of exponent, three of mantissa, up to 448; it has no infinities.
    E4m3,
    /// Five bits of exponent, two of mantissa, up to 57344: the upper byte of an IEEE half.
    E5m2,
}

/// The smallest scale as its byte, 2^-64: of rows of zeros, too.
const LEAST_SCALE: u32 = 63;

impl Fp8 {
    /// Bits of the mantissa.
    pub const fn mantissa_bits(self) -> u32 {
        match self {
            Fp8::E4m3 => 3,
            Fp8::E5m2 => 2,
        }
    }

    /// What is added to exponents.
    pub const fn bias(self) -> u32 {
        match self {
            Fp8::E4m3 => 7,
            Fp8::E5m2 => 15,
        }
    }

    /// The largest number.
    pub const fn largest(self) -> f32 {
        match self {
            Fp8::E4m3 => 448.0,
            Fp8::E5m2 => 57344.0,
        }
    }

    /// The nearest code, ties to even; of what is larger than the largest number, that one. NaN stays NaN.
    pub fn encode(self, value: f32) -> u8 {
        let sign = (value.to_bits() >> 24) as u8 & 0x80;
        if value.is_nan() {
            return sign | 0x7f;
        }
        let (kept, bias) = (self.mantissa_bits(), self.bias());
        let magnitude = value.abs().min(self.largest());
        let bits = magnitude.to_bits();
        let code = if bits < (128 - bias) << 23 {
            // Subnormal: a float is added whose last place is the smallest of the codes.
            let one = f32::from_bits((127 + 24 - bias - kept) << 23);
            (magnitude + one).to_bits() - one.to_bits()
        } else {
            let dropped = 23 - kept;
            let rounded = bits + (1 << (dropped - 1)) - 1 + (bits >> dropped & 1);
            (rounded >> dropped) - ((127 - bias) << kept)
        };
        sign | code as u8
    }

    /// The number of a code.
    pub fn decode(self, code: u8) -> f32 {
        match self {
            Fp8::E5m2 => f16::from_bits(u16::from(code) << 8).to_f32(),
            Fp8::E4m3 if code & 0x7f == 0x7f => f32::NAN,
            // In the place of an f16, whose exponents have 8 more added to them.
            Fp8::E4m3 => {
                let bits = u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7;
                f16::from_bits(bits).to_f32() * 256.0
            }
        }
    }

    /// The scale of a row whose largest absolute value is `largest` (infinities and NaN aside), as a byte: see
    /// [`scale_factor`].
    pub fn scale(self, largest: f32) -> u8 {
        let bits = largest.min(f32::MAX).to_bits();
        // The largest number is 1.75 times a power of two: a larger mantissa takes the next exponent.
        let exponent = (bits + 0x1f_ffff) >> 23;
        let most = self.largest().to_bits() >> 23;
        (exponent + 127).saturating_sub(most).max(LEAST_SCALE) as u8
    }
}

/// The power of two that a scale stands for, `2^(scale - 127)` (as in the E8M0 type of the OCP Microscaling Formats).
pub fn scale_factor(scale: u8) -> f32 {
    f32::from_bits(u32::from(scale) << 23)
}

/// One over [`scale_factor`], of scales that [`Fp8::scale`] gives.
pub fn scale_inverse(scale: u8) -> f32 {
    f32::from_bits((254 - u32::from(scale)) << 23)
}

impl fmt::Display for Fp8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fp8::E4m3 => "fp8_e4m3",
            Fp8::E5m2 => "fp8_e5m2",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Fp8; 2] = [Fp8::E4m3, Fp8::E5m2];

    /// What the bits mean, by the paper.
    fn meaning(format: Fp8, code: u8) -> f64 {
        let (kept, bias) = (format.mantissa_bits(), format.bias() as i32);
        let (exponent, mantissa) = (i32::from(code & 0x7f) >> kept, i32::from(code) & ((1 << kept) - 1));
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        let unit = 0.5f64.powi(kept as i32);
        match (format, exponent) {
            (Fp8::E4m3, 15) if mantissa == 7 => f64::NAN,
            (Fp8::E5m2, 31) if mantissa > 0 => f64::NAN,
            (Fp8::E5m2, 31) => sign * f64::INFINITY,
            (_, 0) => sign * f64::from(mantissa) * unit * 2f64.powi(1 - bias),
            _ => sign * (1.0 + f64::from(mantissa) * unit) * 2f64.powi(exponent - bias),
        }
    }

    #[test]
    fn every_code_means_what_the_paper_says_and_comes_back() {
        for format in BOTH {
            for code in 0..=255 {
                let (value, meaning) = (format.decode(code), meaning(format, code));
                assert!(f64::from(value) == meaning || value.is_nan() && meaning.is_nan(), "{format} {code:#x}");
                if value.is_finite() {
                    assert_eq!(format.encode(value), code, "{format} {value}");
                } else {
                    assert_eq!(format.decode(format.encode(value)).is_nan(), value.is_nan(), "{format} {code:#x}");
                }
            }
        }
    }

    #[test]
    fn numbers_between_two_codes_go_to_the_nearer_and_ties_to_the_even_one() {
        for format in BOTH {
            let most = format.encode(f32::MAX);
            assert_eq!(format.decode(most), format.largest());
            assert_eq!(format.encode(f32::INFINITY), most);
            for code in 0..most {
                let (low, high) = (format.decode(code), format.decode(code + 1));
                let middle = (low + high) / 2.0;
                let even = if code % 2 == 0 { code } else { code + 1 };
                for (value, want) in [(middle.next_down(), code), (middle, even), (middle.next_up(), code + 1)] {
                    assert_eq!(format.encode(value), want, "{format} {value}");
                    assert_eq!(format.encode(-value), want | 0x80, "{format} -{value}");
                }
            }
        }
    }

    #[test]
    fn a_scale_is_the_smallest_that_saturates_nothing() {
        for format in BOTH {
            for largest in [1e-12, 0.3, 1.0, 1.75, 1.75f32.next_up(), 1.99, 448.0, 449.0, 57344.0, 1e30, f32::MAX] {
                let scale = format.scale(largest);
                assert_eq!(scale_factor(scale) * scale_inverse(scale), 1.0);
                let scaled = largest * scale_inverse(scale);
                assert!(scaled <= format.largest() && scaled > format.largest() / 2.0, "{format} {largest}: {scaled}");
            }
            assert_eq!(format.scale(0.0), LEAST_SCALE as u8);
            assert_eq!(format.scale(f32::INFINITY), format.scale(f32::MAX));
        }
    }
}
