//! The shapes of Qwen3.5-4B, timed: 16 query and 4 key and value heads of 256, 64 dimensions rotated. Types are those
//! of a bf16 program: projections and results in f32, queries and the cache in bf16, or the cache in eight bits.

use super::attend::{Operands, Setting, reference};
use super::rope::{self, Heads};
use super::sequences::{Sequences, values_offset};
use super::wide::Wide;
use super::{caches, name, rounding, shape};
use crate::LaunchSpec;
use crate::check::{Case, Outcome, Rig};
use crate::kernels::kv_append::KvAppend;
use crate::kernels::qk_norm_rope::{QkNormRope, frequencies};
use refrain_device::DeviceError;
use refrain_program::{CacheDtype, Dtype, Fp8};

const DTYPE: Dtype = Dtype::Bf16;
const HEADS: usize = 16;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 256;
const ROTARY_DIM: usize = 64;
/// More than any cache of a device holds, so that a kernel that is timed again and again reads from memory.
const COLD_BYTES: usize = 160 << 20;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for rows in [1, 8192] {
        for (heads, out) in [(HEADS, DTYPE), (KV_HEADS, Dtype::F32)] {
            let name = format!("T {rows}, {heads} heads");
            cases.push(Case::new("qk_norm_rope", name, move |rig| norm_rope(rig, heads, rows, out)));
        }
    }
    for cached in [DTYPE.into(), Fp8::E4m3.into()] {
        for rows in [1, 8192] {
            let name = format!("T {rows} to {}", name(cached));
            cases.push(Case::new("kv_append", name, move |rig| append(rig, rows, cached)));
        }
    }
    for cached in [DTYPE.into(), Fp8::E4m3.into(), Fp8::E5m2.into()] {
        // One of both types of eight bits at every shape; of the other, where most is read and where most is computed.
        let all = cached != Fp8::E5m2.into();
        for (batch, context) in
            [(1, 32_768), (1, 1024), (32, 1024), (64, 200)].into_iter().take(if all { 4 } else { 1 })
        {
            let name = format!("decode over {}, batch {batch}, context {context}", name(cached));
            cases.push(Case::new("attention", name, move |rig| attend(rig, &vec![(context - 1, 1); batch], cached)));
        }
        for (rows, position) in [(8192, 0), (1024, 0), (8192, 24_576)].into_iter().take(if all { 3 } else { 1 }) {
            let name = format!("prefill over {}, T {rows} at {position}", name(cached));
            cases.push(Case::new("attention", name, move |rig| attend(rig, &[(position, rows)], cached)));
        }
    }
    cases
}

fn norm_rope(rig: &Rig, heads: usize, rows: usize, out_dtype: Dtype) -> Result<Outcome, DeviceError> {
    let heads = Heads { heads, head_dim: HEAD_DIM, rotary_dim: ROTARY_DIM };
    let width = heads.heads * HEAD_DIM;
    let sequences = Sequences::new(rig, &[(262_144 - rows, rows)]);
    let x = rig.random(rows * width, 1.5, Dtype::F32);
    let weight = rig.random(HEAD_DIM, 0.2, Dtype::F32);
    let want = rope::reference(&sequences, heads, &x, &weight);

    let (_block, pointers, counts) = sequences.upload(rig)?;
    let x = Wide::upload(rig, &x, width, Dtype::F32)?;
    let out = Wide::poisoned(rig, rows, width, out_dtype)?;
    let weight = rig.upload(&weight)?;
    let frequencies = rig.upload(&frequencies(ROTARY_DIM, rope::THETA))?;
    let op = QkNormRope {
        x: x.view(),
        weight: weight.ptr(),
        frequencies: frequencies.ptr(),
        heads: heads.heads as u32,
        rotary_dim: ROTARY_DIM as u32,
        eps: rope::EPS,
        out: out.view(),
    };
    let launches = op.launches(&rig.target, &pointers);
    let seconds = rig.time(&launches, &counts)?;
    rig.launch(&launches, &counts)?;
    let bytes = rows * width * (Dtype::F32.bytes() + out_dtype.bytes());
    Ok(Outcome::compare(&out.download(rig)?, &want, rounding(out_dtype)).timed(bytes as u64, 0, seconds))
}

fn append(rig: &Rig, rows: usize, cached: CacheDtype) -> Result<Outcome, DeviceError> {
    let shape = shape(HEADS, KV_HEADS, HEAD_DIM);
    let width = KV_HEADS * HEAD_DIM;
    let sequences = Sequences::new(rig, &[(0, rows)]);
    let [k, v] = [(), ()].map(|()| rig.random(rows * width, 1.0, Dtype::F32));
    let (_block, pointers, counts) = sequences.upload(rig)?;
    let [wide_k, wide_v] = [Wide::upload(rig, &k, width, Dtype::F32)?, Wide::upload(rig, &v, width, Dtype::F32)?];
    let cache = caches::poisoned(rig, sequences.cache_len(&shape), &shape, cached)?;
    let op = KvAppend { k: wide_k.view(), v: wide_v.view(), cache: cache.ptr(), dtype: cached, shape };
    let launches = op.launches(&rig.target, &pointers);
    let seconds = rig.time(&launches, &counts)?;
    rig.launch(&launches, &counts)?;
    let mut want = vec![f32::NAN; sequences.cache_len(&shape)];
    for (row, (segment, position)) in sequences.rows().enumerate() {
        for head in 0..KV_HEADS {
            let key = sequences.key_at(&shape, segment, position, head);
            for (at, values) in [(key, &k), (key + values_offset(&shape), &v)] {
                want[at..at + HEAD_DIM].copy_from_slice(&values[row * width + head * HEAD_DIM..][..HEAD_DIM]);
            }
        }
    }
    let count = caches::differences(rig, &cache, &want, &shape, cached)?;
    let scales = 2 * rows * KV_HEADS * cached.scale_bytes();
    let bytes = 2 * rows * width * (Dtype::F32.bytes() + cached.bytes()) + scales;
    Ok(super::bits::wrong(count).timed(bytes as u64, 0, seconds))
}

fn attend(rig: &Rig, parts: &[(usize, usize)], cached: CacheDtype) -> Result<Outcome, DeviceError> {
    let setting = Setting::new(DTYPE, cached, (HEADS, KV_HEADS, HEAD_DIM)).to(Dtype::F32);
    let width = setting.width();
    let sequences = Sequences::new(rig, parts);
    let q = rig.random(sequences.len() * width, 1.0, DTYPE);
    let cache = sequences.random_cache(rig, &setting.shape, 2.0, cached);

    let (_block, pointers, counts) = sequences.upload(rig)?;
    // As many layers as make each of them cold when its turn comes again; prefill reads its cache many times anyway.
    let layers = match parts.iter().all(|(_, len)| *len == 1) {
        true => COLD_BYTES.div_ceil(cache.len() * cached.bytes()),
        false => 1,
    };
    let operands =
        (0..layers).map(|_| Operands::upload(rig, setting, &sequences, &q, &cache)).collect::<Result<Vec<_>, _>>()?;
    let out = Wide::poisoned(rig, sequences.len(), width, setting.out)?;
    let launches: Vec<LaunchSpec> =
        operands.iter().flat_map(|operands| operands.op(&out).launches(&rig.target, &pointers)).collect();
    let seconds = rig.time(&launches, &counts)?.map(|seconds| seconds / layers as f64);
    let got = operands[0].run(rig, &sequences)?;

    // Every value must be a number; those of some rows are compared, the last and those around ends of tiles among them.
    let mut outcome = super::bits::wrong(got.iter().filter(|value| !value.is_finite()).count());
    let rows = sequences.len();
    let mut sample = vec![0, 1, 63, 64, 1000, rows / 2, rows - 2.min(rows), rows - 1];
    sample.retain(|row| *row < rows);
    for row in sample {
        let (segment, position) = sequences.rows().nth(row).expect("it is below the number of rows");
        let of_row = &q[row * width..][..width];
        let mut want = Vec::with_capacity(width);
        for head in 0..HEADS {
            want.extend(reference(&sequences, &setting.shape, &cache, of_row, segment, position, head));
        }
        outcome = outcome.and(Outcome::compare(&got[row * width..][..width], &want, setting.tolerance()));
    }
    let keys: usize = sequences.rows().map(|(_, position)| position + 1).sum();
    let context: usize = sequences.step.segments.iter().map(|segment| segment.context()).sum();
    let rows = sequences.len() * width * (DTYPE.bytes() + setting.out.bytes());
    let bytes = 2 * context * KV_HEADS * (HEAD_DIM * cached.bytes() + cached.scale_bytes()) + rows;
    Ok(outcome.timed(bytes as u64, (4 * keys * HEADS * HEAD_DIM) as u64, seconds))
}
