//! Views of activations: some columns of rows with a stride, in memory of their own.

use crate::check::{Buffer, Rig};
use crate::kernel::Rows;
use refrain_device::{DeviceError, DevicePtr};
use refrain_program::Dtype;

/// Where the columns of a view lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    pub first: usize,
    pub width: usize,
    /// Elements between the starts of two rows.
    pub stride: usize,
}

impl Columns {
    /// All columns of rows without gaps.
    pub fn whole(width: usize) -> Columns {
        Columns { first: 0, width, stride: width }
    }
}

/// A tensor on the device, of which a kernel may see some columns.
pub(super) struct Tensor {
    columns: Columns,
    dtype: Dtype,
    rows: usize,
    buffer: Buffer,
}

/// Rows behind those of the step, which no kernel may touch.
const MORE_ROWS: usize = 3;

impl Tensor {
    /// With these values, `[rows, width]`, and NaN around them.
    pub fn with(rig: &Rig, values: &[f32], columns: Columns, dtype: Dtype) -> Result<Tensor, DeviceError> {
        let rows = values.len() / columns.width;
        let mut all = vec![f32::NAN; (rows + MORE_ROWS) * columns.stride];
        for (row, values) in values.chunks_exact(columns.width).enumerate() {
            all[row * columns.stride + columns.first..][..columns.width].copy_from_slice(values);
        }
        Ok(Tensor { columns, dtype, rows, buffer: rig.upload_as(&all, dtype)? })
    }

    /// Full of NaN, for a kernel to write.
    pub fn poisoned(rig: &Rig, rows: usize, columns: Columns, dtype: Dtype) -> Result<Tensor, DeviceError> {
        let buffer = rig.poisoned((rows + MORE_ROWS) * columns.stride, dtype)?;
        Ok(Tensor { columns, dtype, rows, buffer })
    }

    /// What an op is given.
    pub fn view(&self) -> Rows {
        Rows {
            base: DevicePtr(self.buffer.ptr().0 + (self.columns.first * self.dtype.bytes()) as u64),
            stride: self.columns.stride as u32,
            width: self.columns.width as u32,
            dtype: self.dtype,
        }
    }

    /// The values, `[rows, width]`, now. All NaN when something else than them was written.
    pub fn read(&self, rig: &Rig) -> Result<Vec<f32>, DeviceError> {
        let all = rig.download_as(&self.buffer, (self.rows + MORE_ROWS) * self.columns.stride, self.dtype)?;
        let Columns { first, width, stride } = self.columns;
        let mut values = Vec::with_capacity(self.rows * width);
        for (row, elements) in all.chunks_exact(stride).enumerate() {
            let own = if row < self.rows { first..first + width } else { 0..0 };
            values.extend_from_slice(&elements[own.clone()]);
            if elements.iter().enumerate().any(|(column, value)| !own.contains(&column) && !value.is_nan()) {
                return Ok(vec![f32::NAN; self.rows * width]);
            }
        }
        Ok(values)
    }
}
