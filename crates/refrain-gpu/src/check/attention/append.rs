//! [`KvAppend`]: the rows are where they belong, rounded, with their scales if they have any, and nothing else is written.

use super::sequences::{Sequences, values_offset};
use super::wide::Wide;
use super::{caches, name, shape};
use crate::check::{Case, Outcome, Rig, rounded};
use crate::kernels::kv_append::KvAppend;
use refrain_device::DeviceError;
use refrain_program::{AttentionShape, CacheDtype, Dtype, Fp8};

pub(super) fn cases() -> Vec<Case> {
    let parts = vec![(0, 1), (15, 2), (16, 1), (40, 65), (127, 3)];
    [
        (Dtype::F32, Dtype::F32.into(), shape(1, 1, 40)),
        (Dtype::Bf16, Dtype::Bf16.into(), shape(4, 4, 256)),
        (Dtype::F16, Dtype::F16.into(), shape(2, 2, 64)),
        (Dtype::F32, Dtype::Bf16.into(), shape(3, 3, 72)),
        (Dtype::Bf16, Dtype::F16.into(), shape(1, 1, 8)),
        (Dtype::F16, Dtype::F32.into(), shape(2, 2, 32)),
        (Dtype::F32, Fp8::E4m3.into(), shape(4, 4, 256)),
        (Dtype::Bf16, Fp8::E4m3.into(), shape(3, 3, 40)),
        (Dtype::F32, Fp8::E5m2.into(), shape(2, 2, 64)),
        (Dtype::F16, Fp8::E5m2.into(), shape(1, 1, 8)),
    ]
    .into_iter()
    .map(|(dtype, cached, shape)| {
        let parts = parts.clone();
        let heads = (shape.num_kv_heads, shape.head_dim);
        let case = format!("{} to {}, {} heads of {}", name(dtype), name(cached), heads.0, heads.1);
        Case::new("kv_append", case, move |rig| run(rig, dtype, cached, shape, &parts))
    })
    .collect()
}

fn run(
    rig: &Rig,
    dtype: Dtype,
    cached: CacheDtype,
    shape: AttentionShape,
    parts: &[(usize, usize)],
) -> Result<Outcome, DeviceError> {
    let sequences = Sequences::new(rig, parts);
    let width = shape.num_kv_heads * shape.head_dim;
    // Sizes of rows differ, and with them their scales.
    let [k, v] = [(), ()].map(|()| {
        let mut values = rig.random(sequences.len() * width, 1.0, dtype);
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            let scale = 2f32.powi(row as i32 % 11 - 5);
            values.iter_mut().for_each(|value| *value = rounded(*value * scale, dtype));
        }
        values
    });
    let mut want = vec![f32::NAN; sequences.cache_len(&shape)];
    for (row, (segment, position)) in sequences.rows().enumerate() {
        for head in 0..shape.num_kv_heads {
            let at = sequences.key_at(&shape, segment, position, head);
            let from = row * width + head * shape.head_dim;
            for (at, values) in [(at, &k), (at + values_offset(&shape), &v)] {
                want[at..at + shape.head_dim].copy_from_slice(&values[from..from + shape.head_dim]);
            }
        }
    }

    let (_block, pointers, counts) = sequences.upload(rig)?;
    let [k, v] = [Wide::upload(rig, &k, width, dtype)?, Wide::upload(rig, &v, width, dtype)?];
    let cache = caches::poisoned(rig, want.len(), &shape, cached)?;
    let op = KvAppend { k: k.view(), v: v.view(), cache: cache.ptr(), dtype: cached, shape };
    rig.launch(&op.launches(&rig.target, &pointers), &counts)?;
    Ok(super::bits::wrong(caches::differences(rig, &cache, &want, &shape, cached)?))
}
