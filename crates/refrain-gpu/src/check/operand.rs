//! Operands that are views, as a program has them: some columns of some rows of a wider buffer, whose remainder a kernel
//! must neither use nor change.

use super::{Buffer, Outcome, Rig};
use crate::{Rows, StepCounts, StepPointers};
use refrain_device::{DeviceError, Segment, Step, StepLimits};
use refrain_program::Dtype;

/// Where the columns of a view lie in the rows of its buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// Columns before the view.
    pub before: usize,
    /// Columns of the view.
    pub width: usize,
    /// Columns after it.
    pub after: usize,
}

impl Columns {
    /// The whole buffer.
    pub fn all(width: usize) -> Columns {
        Columns { before: 0, width, after: 0 }
    }

    /// Between others: 8 columns begin and end it, so that it keeps its alignment where the width allows one.
    pub fn among(width: usize) -> Columns {
        Columns { before: 8, width, after: 8 }
    }

    /// Between others, never aligned.
    pub fn askew(width: usize) -> Columns {
        Columns { before: 3, width, after: 2 }
    }

    fn stride(&self) -> usize {
        self.before + self.width + self.after
    }
}

/// A view with a row more than the step has; all that isn't a value is NaN.
pub(super) struct Operand {
    buffer: Buffer,
    rows: usize,
    columns: Columns,
    dtype: Dtype,
}

impl Operand {
    /// Random values with deviation `scale`, and what they are.
    pub fn random(
        rig: &Rig,
        rows: usize,
        columns: Columns,
        dtype: Dtype,
        scale: f32,
    ) -> Result<(Operand, Vec<f32>), DeviceError> {
        let values = rig.random(rows * columns.width, scale, dtype);
        let mut all = vec![f32::NAN; (rows + 1) * columns.stride()];
        for (row, values) in values.chunks_exact(columns.width).enumerate() {
            let at = row * columns.stride() + columns.before;
            all[at..at + columns.width].copy_from_slice(values);
        }
        let buffer = rig.upload_as(&all, dtype)?;
        Ok((Operand { buffer, rows, columns, dtype }, values))
    }

    /// What a kernel must write.
    pub fn poisoned(rig: &Rig, rows: usize, columns: Columns, dtype: Dtype) -> Result<Operand, DeviceError> {
        let buffer = rig.poisoned((rows + 1) * columns.stride(), dtype)?;
        Ok(Operand { buffer, rows, columns, dtype })
    }

    /// The view, as kernels are given it.
    pub fn view(&self) -> Rows {
        Rows {
            base: self.buffer.ptr().offset(self.columns.before * self.dtype.bytes()),
            stride: self.columns.stride() as u32,
            width: self.columns.width as u32,
            dtype: self.dtype,
        }
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        (self.rows * self.columns.width * self.dtype.bytes()) as u64
    }

    /// The values now. When anything beside them has changed, all are NaN, which no comparison passes.
    pub fn read(&self, rig: &Rig) -> Result<Vec<f32>, DeviceError> {
        let stride = self.columns.stride();
        let all = rig.download_as(&self.buffer, (self.rows + 1) * stride, self.dtype)?;
        let inside = |at: usize| {
            let (row, column) = (at / stride, at % stride);
            row < self.rows && (self.columns.before..self.columns.before + self.columns.width).contains(&column)
        };
        let untouched = all.iter().enumerate().all(|(at, value)| inside(at) || value.is_nan());
        let values = all.iter().enumerate().filter(|(at, _)| inside(*at));
        Ok(values.map(|(_, &value)| if untouched { value } else { f32::NAN }).collect())
    }

    /// Compares some values, and demands of the others that they are numbers. `sample` gives row, column and value.
    pub fn compare_some(
        &self,
        rig: &Rig,
        sample: impl IntoIterator<Item = (usize, usize, f64)>,
    ) -> Result<Outcome, DeviceError> {
        let values = self.read(rig)?;
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for (row, column, value) in sample {
            got.push(values[row * self.columns.width + column]);
            want.push(value);
        }
        if !values.iter().all(|value| value.is_finite()) {
            got[0] = f32::NAN;
        }
        Ok(Outcome::compare(&got, &want, tolerance(self.dtype)))
    }
}

/// The error that a type allows: sums in f32 of a few thousand products lose some 1e-6, and rounding the result once
/// costs up to half a unit in its last place, of which a fifth to a third remains in the norm over many values.
pub(super) fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 4e-6,
        Dtype::F16 => 5e-4,
        Dtype::Bf16 => 4e-3,
    }
}

/// A step of one sequence with these tokens and logit rows.
pub(super) fn step_of(
    rig: &Rig,
    tokens: Vec<u32>,
    logit_rows: Vec<u32>,
) -> Result<(Buffer, StepPointers, StepCounts), DeviceError> {
    let rows = tokens.len();
    let limits =
        StepLimits { max_tokens: rows, max_segments: 1, max_logit_rows: logit_rows.len(), max_model_len: rows };
    let segment =
        Segment { row: 0, len: rows as u32, position: 0, scan: rows as u32, slot: 0, blocks: 0, num_blocks: 0 };
    let step = Step { tokens, segments: vec![segment], logit_rows, ..Step::default() };
    rig.step(&step, &limits)
}

/// Some rows of many: all of few, else one of each sixteenth, and the last one.
pub(super) fn some_rows(rows: usize) -> impl Iterator<Item = usize> + Clone {
    one_of_each(rows, rows.div_ceil(16), 0).chain((rows > 16).then_some(rows - 1))
}

/// One of each `stride` consecutive numbers below `count`, at no regular distance: kernels cut what they compute into
/// tiles, and no place in a tile may be left out. Another `salt` gives others.
pub(super) fn one_of_each(count: usize, stride: usize, salt: usize) -> impl Iterator<Item = usize> + Clone {
    let of = move |first: usize| {
        let mixed = (first as u32 ^ (salt as u32).wrapping_mul(0x85EB_CA6B)).wrapping_mul(0x9E37_79B1) >> 8;
        first + mixed as usize % stride.min(count - first)
    };
    (0..count).step_by(stride).map(of)
}
