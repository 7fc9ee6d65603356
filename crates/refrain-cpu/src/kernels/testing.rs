//! What the tests of the kernels share: random activations and comparisons.

use super::Rows;

/// A small generator (SplitMix64): tests need the same numbers everywhere, not good ones.
pub(crate) struct Random(pub u64);

impl Random {
    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in `-scale..scale`.
    pub fn float(&mut self, scale: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    }

    /// `count` floats in `-scale..scale`.
    pub fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(scale)).collect()
    }

    /// `0..count` in random order.
    pub fn permutation(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            order.swap(i, (self.bits() % (i as u64 + 1)) as usize);
        }
        order
    }
}

/// An activation between guard columns, so that a kernel that writes outside its view is found.
#[derive(Clone)]
pub(crate) struct Matrix {
    data: Vec<f32>,
    rows: usize,
    width: usize,
}

const GUARD: usize = 3;
const GUARD_VALUE: f32 = 12345.0;

impl Matrix {
    /// Rows of zeros.
    pub fn new(rows: usize, width: usize) -> Self {
        Self::from_fn(rows, width, |_, _| 0.0)
    }

    /// Rows of random floats in `-scale..scale`.
    pub fn random(rows: usize, width: usize, scale: f32, random: &mut Random) -> Self {
        Self::from_fn(rows, width, |_, _| random.float(scale))
    }

    /// Element by element.
    pub fn from_fn(rows: usize, width: usize, mut value: impl FnMut(usize, usize) -> f32) -> Self {
        let stride = width + 2 * GUARD;
        let mut data = vec![GUARD_VALUE; rows * stride];
        for row in 0..rows {
            for column in 0..width {
                data[row * stride + GUARD + column] = value(row, column);
            }
        }
        Self { data, rows, width }
    }

    /// The view that kernels get.
    pub fn view(&mut self) -> Rows {
        Rows { data: self.data[GUARD..].as_mut_ptr(), stride: self.width + 2 * GUARD }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * (self.width + 2 * GUARD) + GUARD..][..self.width]
    }

    /// One row as doubles.
    pub fn row64(&self, row: usize) -> Vec<f64> {
        self.row(row).iter().map(|&x| f64::from(x)).collect()
    }

    /// Rows `from..from + count` as a matrix of their own.
    pub fn part(&self, from: usize, count: usize) -> Self {
        Self::from_fn(count, self.width, |row, column| self.row(from + row)[column])
    }

    /// Bits of all elements, after checking that nothing was written outside the view.
    pub fn bits(&self) -> Vec<u32> {
        let stride = self.width + 2 * GUARD;
        for row in self.data.chunks(stride) {
            let guards = row[..GUARD].iter().chain(&row[GUARD + self.width..]);
            assert!(guards.copied().all(|x| x == GUARD_VALUE), "written outside the view");
        }
        (0..self.rows).flat_map(|row| self.row(row)).map(|x| x.to_bits()).collect()
    }
}

/// Asserts that every element is within `tolerance * (1 + |expected|)`.
#[track_caller]
pub(crate) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(error <= tolerance * (1.0 + expected.abs()), "{what}: [{i}] is {actual}, not {expected}");
    }
}

/// `1 / (1 + e^-x)`.
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
