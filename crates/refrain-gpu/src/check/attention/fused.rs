//! Attention with its gate, and all that comes before it as one kernel, against double precision.

use super::attend::{Operands, Setting, reference};
use super::rope::{self, EPS, Heads, THETA};
use super::sequences::{Sequences, values_offset};
use super::wide::Wide;
use super::{name, rounding, shape};
use crate::check::{Case, Outcome, Rig, Scale, rounded};
use crate::kernels::kv_append::KvAppend;
use crate::kernels::qk_norm_rope::{QkNormRope, frequencies};
use crate::kernels::qk_norm_rope_append::QkNormRopeAppend;
use refrain_device::DeviceError;
use refrain_program::Dtype::{self, Bf16, F16, F32};
use refrain_program::Fp8;

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    gated(scale).into_iter().chain(appended(scale)).collect()
}

fn gated(scale: Scale) -> Vec<Case> {
    // Contexts of one part and of several, rows that begin and end within pieces.
    let mixed = vec![(40, 1), (3, 70), (300, 1), (0, 1), (200, 5)];
    let all = match scale {
        Scale::Ragged => vec![
            (Setting::new(Bf16, Bf16, (4, 2, 64)), mixed.clone()),
            (Setting::new(F32, F32, (2, 1, 40)), mixed.clone()),
            (Setting::new(F16, F16, (6, 1, 32)), mixed),
            (Setting::new(Bf16, Bf16, (4, 1, 256)), vec![(90, 1), (2, 17)]),
            (Setting::new(Bf16, Fp8::E4m3, (4, 2, 64)), vec![(300, 1), (2, 17)]),
        ],
        Scale::Model => {
            let setting = Setting::new(Bf16, Bf16, (16, 4, 256));
            [vec![(1023, 1)], vec![(32_767, 1)], vec![(0, 1024)]].map(|parts| (setting, parts)).into()
        }
    };
    let case = |(setting, parts): (Setting, Vec<(usize, usize)>)| {
        let Setting { dtype, shape, .. } = setting;
        let heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim);
        let case = format!("gated, {}, {}/{} heads of {}, {parts:?}", name(dtype), heads.0, heads.1, heads.2);
        Case::new("attention", case, move |rig| attend(rig, setting, &parts))
    };
    all.into_iter().map(case).collect()
}

fn attend(rig: &Rig, setting: Setting, parts: &[(usize, usize)]) -> Result<Outcome, DeviceError> {
    let (sequences, width) = (Sequences::new(rig, parts), setting.width());
    let rows = sequences.len();
    let q = rig.random(rows * width, 1.0, setting.dtype);
    let cache = sequences.random_cache(rig, &setting.shape, 2.0, setting.cached);
    let gates = rig.random(rows * width, 2.0, Dtype::F32);
    let operands = Operands::upload(rig, setting, &sequences, &q, &cache)?;
    let gate = Wide::upload(rig, &gates, width, Dtype::F32)?;
    let out = Wide::poisoned(rig, rows, width, setting.out)?;
    let (_block, pointers, counts) = sequences.upload(rig)?;
    let mut op = operands.op(&out);
    op.gate = Some(gate.view());
    let launches = op.launches(&rig.target, &pointers);
    rig.launch(&launches, &counts)?;

    let got = out.download(rig)?;
    let mut outcome = super::bits::wrong(got.iter().filter(|value| !value.is_finite()).count());
    for (row, (segment, position)) in sequences.rows().enumerate().filter(|(row, _)| rows < 128 || row % 97 == 5) {
        let of_row = row * width..(row + 1) * width;
        let mut want = Vec::with_capacity(width);
        for head in 0..setting.shape.num_heads {
            let q = &q[of_row.clone()];
            want.extend(reference(&sequences, &setting.shape, &cache, q, segment, position, head));
        }
        for (want, &gate) in want.iter_mut().zip(&gates[of_row.clone()]) {
            *want /= 1.0 + (-f64::from(gate)).exp();
        }
        outcome = outcome.and(Outcome::compare(&got[of_row], &want, setting.tolerance()));
    }
    let cached: usize = sequences.step.segments.iter().map(|segment| segment.context()).sum();
    let kv_width = setting.shape.num_kv_heads * setting.shape.head_dim;
    let bytes = 2 * cached * kv_width * 2 + rows * width * (2 + 4 + setting.out.bytes());
    Ok(outcome.timed(bytes as u64, 0, rig.time(&launches, &counts)?))
}

/// Types of the projections, of queries and of the cache, query and key heads, their width, rotated dimensions.
#[derive(Clone, Copy)]
struct Before {
    types: [Dtype; 3],
    heads: [usize; 2],
    head_dim: usize,
    rotary_dim: usize,
}

fn appended(scale: Scale) -> Vec<Case> {
    let before = |types, heads, head_dim, rotary_dim| Before { types, heads, head_dim, rotary_dim };
    let all = match scale {
        Scale::Ragged => {
            let parts = vec![(0, 1), (15, 2), (61, 70), (1021, 3)];
            vec![
                (before([F32, Bf16, Bf16], [4, 2], 64, 16), parts.clone()),
                (before([F32, F32, F32], [3, 1], 40, 10), parts.clone()),
                (before([F32, F16, F16], [16, 4], 256, 64), vec![(0, 2), (7, 1)]),
                (before([F32, Bf16, F32], [37, 37], 8, 0), parts.clone()),
                // Keys that are rounded twice, and all of one type.
                (before([Bf16, Bf16, F16], [4, 2], 32, 8), parts.clone()),
                (before([F16, F16, F16], [2, 1], 128, 128), parts),
            ]
        }
        Scale::Model => {
            let before = before([F32, Bf16, Bf16], [16, 4], 256, 64);
            [1, 8, 8192].map(|rows| (before, vec![(4096, rows)])).into()
        }
    };
    let case = |(before, parts): (Before, Vec<(usize, usize)>)| {
        let Before { types, heads, head_dim, rotary_dim } = before;
        let types = types.map(name).join(" ");
        let case = format!("{types}, {heads:?} heads of {head_dim}, {rotary_dim} rotated, {parts:?}");
        Case::new("qk_norm_rope_append", case, move |rig| append(rig, before, &parts))
    };
    all.into_iter().map(case).collect()
}

fn append(rig: &Rig, before: Before, parts: &[(usize, usize)]) -> Result<Outcome, DeviceError> {
    let Before { types: [dtype, out_type, cached], heads, head_dim, rotary_dim } = before;
    let shape = shape(heads[0], heads[1], head_dim);
    let sequences = Sequences::new(rig, parts);
    let rows = sequences.len();
    let widths = heads.map(|heads| heads * head_dim);
    let q = rig.random(rows * widths[0], 1.5, dtype);
    let [k, v] = [(), ()].map(|()| rig.random(rows * widths[1], 1.5, dtype));
    let weights = [(), ()].map(|()| rig.random(head_dim, 0.2, Dtype::F32));
    let of = |heads| Heads { heads, head_dim, rotary_dim };
    let want_q = rope::reference(&sequences, of(heads[0]), &q, &weights[0]);
    let want_k = rope::reference(&sequences, of(heads[1]), &k, &weights[1]);

    let (_block, pointers, counts) = sequences.upload(rig)?;
    let on_q = Wide::upload(rig, &q, widths[0], dtype)?;
    let [on_k, on_v] = [Wide::upload(rig, &k, widths[1], dtype)?, Wide::upload(rig, &v, widths[1], dtype)?];
    let out = Wide::poisoned(rig, rows, widths[0], out_type)?;
    let [q_weight, k_weight] = [rig.upload(&weights[0])?, rig.upload(&weights[1])?];
    let turns = frequencies(rotary_dim, THETA);
    let frequencies = rig.upload(if turns.is_empty() { &[0.0] } else { turns.as_slice() })?;
    let cache = rig.poisoned(sequences.cache_len(&shape), cached)?;
    let queries = QkNormRope {
        x: on_q.view(),
        weight: q_weight.ptr(),
        frequencies: frequencies.ptr(),
        heads: heads[0] as u32,
        rotary_dim: rotary_dim as u32,
        eps: EPS,
        out: out.view(),
    };
    let keys =
        QkNormRope { x: on_k.view(), weight: k_weight.ptr(), heads: heads[1] as u32, out: on_k.view(), ..queries };
    let append = KvAppend { k: on_k.view(), v: on_v.view(), cache: cache.ptr(), dtype: cached.into(), shape };
    let op = QkNormRopeAppend { queries, keys, append };
    let launches = op.launches(&rig.target, &pointers);
    rig.launch(&launches, &counts)?;

    let outcome = Outcome::compare(&out.download(rig)?, &want_q, rounding(out_type));
    let got = rig.download_as(&cache, sequences.cache_len(&shape), cached)?;
    let (mut keys, mut wrong, mut written) = (Vec::with_capacity(k.len()), 0, 0);
    for (row, (segment, position)) in sequences.rows().enumerate() {
        for head in 0..heads[1] {
            let key = sequences.key_at(&shape, segment, position, head);
            keys.extend_from_slice(&got[key..key + head_dim]);
            let value = key + values_offset(&shape);
            let of_row = &v[row * widths[1] + head * head_dim..][..head_dim];
            let pairs = got[value..value + head_dim].iter().zip(of_row);
            wrong += pairs.filter(|(got, want)| **got != rounded(**want, cached)).count();
            written += 2 * head_dim;
        }
    }
    // Beside them nothing is written.
    wrong += got.iter().filter(|value| !value.is_nan()).count().abs_diff(written);
    let tolerance = rounding(cached).max(1.2 * rounding(dtype));
    let bytes = rows * ((widths[0] + 2 * widths[1]) * dtype.bytes() + widths[0] * out_type.bytes())
        + rows * 2 * widths[1] * cached.bytes();
    let outcome = outcome.and(Outcome::compare(&keys, &want_k, tolerance)).and(super::bits::wrong(wrong));
    Ok(outcome.timed(bytes as u64, 0, rig.time(&launches, &counts)?))
}
