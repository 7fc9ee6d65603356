//! [`KvAppend`]: the rows are where they belong, rounded, and nothing else is written.

use super::sequences::{Sequences, values_offset};
use super::wide::Wide;
use super::{name, shape};
use crate::check::{Case, Outcome, Rig, rounded};
use crate::kernels::kv_append::KvAppend;
use refrain_device::DeviceError;
use refrain_program::{AttentionShape, Dtype};

pub(super) fn cases() -> Vec<Case> {
    let parts = vec![(0, 1), (15, 2), (16, 1), (40, 65), (127, 3)];
    [
        (Dtype::F32, Dtype::F32, shape(1, 1, 40)),
        (Dtype::Bf16, Dtype::Bf16, shape(4, 4, 256)),
        (Dtype::F16, Dtype::F16, shape(2, 2, 64)),
        (Dtype::F32, Dtype::Bf16, shape(3, 3, 72)),
        (Dtype::Bf16, Dtype::F16, shape(1, 1, 8)),
        (Dtype::F16, Dtype::F32, shape(2, 2, 32)),
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
    cached: Dtype,
    shape: AttentionShape,
    parts: &[(usize, usize)],
) -> Result<Outcome, DeviceError> {
    let sequences = Sequences::new(rig, parts);
    let width = shape.num_kv_heads * shape.head_dim;
    let [k, v] = [(), ()].map(|()| rig.random(sequences.len() * width, 1.0, dtype));
    let mut want = vec![None; sequences.cache_len(&shape)];
    for (row, (segment, position)) in sequences.rows().enumerate() {
        for head in 0..shape.num_kv_heads {
            let at = sequences.key_at(&shape, segment, position, head);
            for i in 0..shape.head_dim {
                let from = row * width + head * shape.head_dim + i;
                want[at + i] = Some(rounded(k[from], cached));
                want[at + values_offset(&shape) + i] = Some(rounded(v[from], cached));
            }
        }
    }

    let (_block, pointers, counts) = sequences.upload(rig)?;
    let [k, v] = [Wide::upload(rig, &k, width, dtype)?, Wide::upload(rig, &v, width, dtype)?];
    let cache = rig.poisoned(want.len(), cached)?;
    let op = KvAppend { k: k.view(), v: v.view(), cache: cache.ptr(), dtype: cached, shape };
    rig.launch(&op.launches(&rig.target, &pointers), &counts)?;
    let got = rig.download_as(&cache, want.len(), cached)?;
    let wrong = got.iter().zip(&want).filter(|(got, want)| match want {
        Some(want) => got.to_bits() != want.to_bits(),
        None => !got.is_nan(),
    });
    Ok(super::bits::wrong(wrong.count()))
}
