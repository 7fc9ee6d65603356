//! Caches as numbers, `[block, 2 (keys, values), kv_heads, 16 tokens, head_dim]` with NaN where nobody has written, and as
//! they lie on the device.

use crate::check::{Buffer, Rig, rounded};
use refrain_device::{BLOCK_TOKENS, DeviceError};
use refrain_program::{AttentionShape, CacheDtype, Dtype, Fp8, scale_factor, scale_inverse};

/// A row of keys or values after a trip through the type of a cache.
pub(super) fn rounded_row(row: &[f32], dtype: CacheDtype) -> Vec<f32> {
    match dtype {
        CacheDtype::Plain(dtype) => row.iter().map(|&value| rounded(value, dtype)).collect(),
        CacheDtype::Fp8(format) => {
            let (codes, scale) = coded(format, row);
            codes.into_iter().map(|code| format.decode(code) * scale_factor(scale)).collect()
        }
    }
}

/// A cache on the device, of numbers that its type has.
pub(super) fn upload(
    rig: &Rig,
    cache: &[f32],
    shape: &AttentionShape,
    dtype: CacheDtype,
) -> Result<Buffer, DeviceError> {
    match dtype {
        CacheDtype::Plain(dtype) => rig.upload_as(cache, dtype),
        CacheDtype::Fp8(format) => rig.upload(&image(cache, shape, format)),
    }
}

/// A cache on the device that nobody has written.
pub(super) fn poisoned(
    rig: &Rig,
    elements: usize,
    shape: &AttentionShape,
    dtype: CacheDtype,
) -> Result<Buffer, DeviceError> {
    upload(rig, &vec![f32::NAN; elements], shape, dtype)
}

/// How many elements, or bytes, of a cache on the device are not what rounding `want` gives.
pub(super) fn differences(
    rig: &Rig,
    cache: &Buffer,
    want: &[f32],
    shape: &AttentionShape,
    dtype: CacheDtype,
) -> Result<usize, DeviceError> {
    let differing = |got: &[f32], want: &[f32], dtype: Dtype| {
        let wrong = |(got, want): &(&f32, &f32)| match want.is_nan() {
            true => !got.is_nan(),
            false => got.to_bits() != rounded(**want, dtype).to_bits(),
        };
        got.iter().zip(want).filter(wrong).count()
    };
    Ok(match dtype {
        CacheDtype::Plain(dtype) => differing(&rig.download_as(cache, want.len(), dtype)?, want, dtype),
        CacheDtype::Fp8(format) => {
            let want = image(want, shape, format);
            let got: Vec<u8> = rig.download(cache, want.len())?;
            got.iter().zip(&want).filter(|(got, want)| got != want).count()
        }
    })
}

/// The codes and the scale of a row.
fn coded(format: Fp8, row: &[f32]) -> (Vec<u8>, u8) {
    let scale = format.scale(row.iter().fold(0.0, |largest: f32, value| largest.max(value.abs())));
    (row.iter().map(|value| format.encode(value * scale_inverse(scale))).collect(), scale)
}

/// The bytes of a cache of eight bits: codes of all rows of a block, then their scales. All ones where nobody has written.
fn image(cache: &[f32], shape: &AttentionShape, format: Fp8) -> Vec<u8> {
    let rows = 2 * shape.num_kv_heads * BLOCK_TOKENS;
    let mut bytes = Vec::with_capacity(cache.len() / shape.head_dim * (shape.head_dim + 1));
    for block in cache.chunks_exact(rows * shape.head_dim) {
        let mut scales = Vec::with_capacity(rows);
        for row in block.chunks_exact(shape.head_dim) {
            let unwritten = row.iter().all(|value| value.is_nan());
            let (codes, scale) = if unwritten { (vec![0xFF; row.len()], 0xFF) } else { coded(format, row) };
            bytes.extend(codes);
            scales.push(scale);
        }
        bytes.extend(scales);
    }
    bytes
}
