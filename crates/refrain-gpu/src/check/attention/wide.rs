//! Activations that are some columns of wider rows, as the program's views are.

use crate::Rows;
use crate::check::{Buffer, Rig};
use refrain_device::DeviceError;
use refrain_program::Dtype;

/// Columns before the view, and behind it.
const BEFORE: usize = 8;
const BEHIND: usize = 16;

/// `[rows, width]` within wider rows of NaN.
pub(super) struct Wide {
    buffer: Buffer,
    rows: usize,
    width: usize,
    dtype: Dtype,
}

impl Wide {
    /// With values, `[rows, width]`.
    pub fn upload(rig: &Rig, values: &[f32], width: usize, dtype: Dtype) -> Result<Wide, DeviceError> {
        let rows = values.len() / width;
        let stride = BEFORE + width + BEHIND;
        let mut wide = vec![f32::NAN; rows * stride];
        for (from, to) in values.chunks_exact(width).zip(wide.chunks_exact_mut(stride)) {
            to[BEFORE..BEFORE + width].copy_from_slice(from);
        }
        Ok(Wide { buffer: rig.upload_as(&wide, dtype)?, rows, width, dtype })
    }

    /// To be written.
    pub fn poisoned(rig: &Rig, rows: usize, width: usize, dtype: Dtype) -> Result<Wide, DeviceError> {
        let buffer = rig.poisoned(rows * (BEFORE + width + BEHIND), dtype)?;
        Ok(Wide { buffer, rows, width, dtype })
    }

    /// The operand.
    pub fn view(&self) -> Rows {
        Rows {
            base: self.buffer.ptr().offset(BEFORE * self.dtype.bytes()),
            stride: (BEFORE + self.width + BEHIND) as u32,
            width: self.width as u32,
            dtype: self.dtype,
        }
    }

    /// The values, `[rows, width]`: all NaN when something beside the view was written.
    pub fn download(&self, rig: &Rig) -> Result<Vec<f32>, DeviceError> {
        let stride = BEFORE + self.width + BEHIND;
        let wide = rig.download_as(&self.buffer, self.rows * stride, self.dtype)?;
        let beside = |row: &[f32]| row[..BEFORE].iter().chain(&row[BEFORE + self.width..]).all(|value| value.is_nan());
        if !wide.chunks_exact(stride).all(beside) {
            return Ok(vec![f32::NAN; self.rows * self.width]);
        }
        Ok(wide.chunks_exact(stride).flat_map(|row| &row[BEFORE..BEFORE + self.width]).copied().collect())
    }
}
