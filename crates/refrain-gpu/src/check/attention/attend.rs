//! [`Attention`] against double precision.

use super::sequences::{Sequences, values_offset};
use super::wide::Wide;
use super::{caches, name, rounding, shape};
use crate::check::{Buffer, Case, Outcome, Rig};
use crate::kernels::attention::Attention;
use refrain_device::{DeviceError, Segment};
use refrain_program::{AttentionShape, CacheDtype, Dtype, Fp8};

/// Types and heads of one case.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    /// Of queries.
    pub dtype: Dtype,
    /// Of keys and values.
    pub cached: CacheDtype,
    /// Of the result.
    pub out: Dtype,
    pub shape: AttentionShape,
}

impl Setting {
    pub fn new(dtype: Dtype, cached: impl Into<CacheDtype>, heads: (usize, usize, usize)) -> Setting {
        Setting { dtype, cached: cached.into(), out: dtype, shape: shape(heads.0, heads.1, heads.2) }
    }

    /// With another type of the result: programs take f32, for the gate that follows.
    pub fn to(self, out: Dtype) -> Setting {
        Setting { out, ..self }
    }

    /// Elements of a row of queries.
    pub fn width(&self) -> usize {
        self.shape.num_heads * self.shape.head_dim
    }

    /// On tensor cores, weights are rounded to the type once more than the result.
    pub fn tolerance(&self) -> f64 {
        match self.dtype {
            Dtype::F32 => 1e-5,
            dtype => 1.5 * rounding(dtype),
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    use Dtype::{Bf16, F16, F32};
    // Single rows at every kind of end of runs, blocks, parts and tiles.
    let single = vec![(0, 1), (5, 1), (63, 1), (64, 1), (71, 1), (129, 1), (300, 1)];
    // Rows that begin and end within pieces, and behind what is cached.
    let several = vec![(0, 3), (0, 65), (70, 60), (61, 2), (128, 66)];
    let mixed = vec![(40, 1), (3, 70), (16, 1), (0, 1), (200, 5)];
    [
        (Setting::new(Bf16, Bf16, (4, 2, 64)), single.clone()),
        (Setting::new(Bf16, Bf16, (4, 2, 64)).to(F32), several.clone()),
        (Setting::new(F32, F32, (2, 1, 40)), single.clone()),
        (Setting::new(F32, F32, (2, 1, 40)), several.clone()),
        (Setting::new(F16, F16, (6, 1, 32)).to(F32), mixed.clone()),
        (Setting::new(F16, F16, (6, 1, 32)), several.clone()),
        (Setting::new(Bf16, Bf16, (3, 3, 16)), mixed.clone()),
        (Setting::new(Bf16, Bf16, (8, 1, 80)), mixed.clone()),
        (Setting::new(Bf16, Bf16, (8, 1, 128)).to(F32), vec![(16, 1), (130, 1), (63, 3)]),
        (Setting::new(F32, Bf16, (7, 1, 24)), mixed.clone()),
        (Setting::new(F32, F32, (1, 1, 8)), mixed.clone()),
        (Setting::new(F16, F32, (5, 1, 72)), mixed.clone()),
        (Setting::new(F32, F32, (4, 1, 128)), vec![(90, 1), (2, 17)]),
        (Setting::new(Bf16, Bf16, (4, 1, 256)).to(F32), vec![(90, 1), (2, 17)]),
        (Setting::new(F16, F16, (2, 1, 256)), vec![(130, 1), (63, 3)]),
        (Setting::new(F32, F32, (12, 1, 32)), single.clone()),
        (Setting::new(F16, F16, (7, 1, 64)), single.clone()),
        // Of eight bits: on tensor cores with values read 16 and 8 codes at a time, and without.
        (Setting::new(Bf16, Fp8::E4m3, (4, 2, 64)).to(F32), single.clone()),
        (Setting::new(Bf16, Fp8::E4m3, (4, 1, 256)).to(F32), vec![(90, 1), (2, 17), (147, 1)]),
        (Setting::new(F16, Fp8::E4m3, (8, 1, 128)), mixed.clone()),
        (Setting::new(Bf16, Fp8::E5m2, (5, 1, 128)).to(F32), single.clone()),
        (Setting::new(F16, Fp8::E5m2, (4, 2, 64)), several.clone()),
        (Setting::new(Bf16, Fp8::E4m3, (3, 3, 80)).to(F32), several.clone()),
        (Setting::new(F32, Fp8::E4m3, (4, 1, 128)), mixed.clone()),
        (Setting::new(F32, Fp8::E5m2, (2, 1, 40)), single),
        (Setting::new(F32, Fp8::E4m3, (7, 1, 24)), several.clone()),
        // Parts longer than the shortest, and more of them than a wave has lanes, if the device is large enough.
        (Setting::new(Bf16, Bf16, (8, 8, 64)), vec![(299, 1), (1001, 1)]),
        (Setting::new(F32, Bf16, (8, 8, 16)), vec![(299, 1), (132, 1), (1001, 1)]),
        (Setting::new(F16, F32, (2, 1, 8)), vec![(2500, 1)]),
    ]
    .into_iter()
    .map(|(setting, parts)| {
        let Setting { dtype, cached, out, shape } = setting;
        let heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim);
        let types = (name(dtype), name(cached), name(out));
        let case = format!("{types:?}, {}/{} heads of {}, {parts:?}", heads.0, heads.1, heads.2);
        Case::new("attention", case, move |rig| run(rig, setting, &parts))
    })
    .collect()
}

/// Operands on the device.
pub(super) struct Operands {
    setting: Setting,
    q: Wide,
    cache: Buffer,
    workspace: Buffer,
}

impl Operands {
    pub fn upload(rig: &Rig, setting: Setting, of: &Sequences, q: &[f32], cache: &[f32]) -> Result<Self, DeviceError> {
        let Setting { dtype, cached, shape, .. } = setting;
        let workspace = Attention::workspace_bytes(&of.limits, &shape, dtype, &rig.target);
        Ok(Operands {
            setting,
            q: Wide::upload(rig, q, setting.width(), dtype)?,
            cache: caches::upload(rig, cache, &shape, cached)?,
            workspace: rig.zeroed(workspace)?,
        })
    }

    pub fn op(&self, out: &Wide) -> Attention {
        Attention {
            q: self.q.view(),
            cache: self.cache.ptr(),
            dtype: self.setting.cached,
            shape: self.setting.shape,
            workspace: self.workspace.ptr(),
            gate: None,
            out: out.view(),
        }
    }

    /// The result, `[T, heads * head_dim]`.
    pub fn run(&self, rig: &Rig, sequences: &Sequences) -> Result<Vec<f32>, DeviceError> {
        let (_block, pointers, counts) = sequences.upload(rig)?;
        let out = Wide::poisoned(rig, sequences.len(), self.setting.width(), self.setting.out)?;
        rig.launch(&self.op(&out).launches(&rig.target, &pointers), &counts)?;
        out.download(rig)
    }
}

fn run(rig: &Rig, setting: Setting, parts: &[(usize, usize)]) -> Result<Outcome, DeviceError> {
    let sequences = Sequences::new(rig, parts);
    // Scores with a deviation of 2: neither all weights alike nor one alone, and maxima that grow along the way.
    let q = rig.random(sequences.len() * setting.width(), 1.0, setting.dtype);
    let cache = sequences.random_cache(rig, &setting.shape, 2.0, setting.cached);
    let got = Operands::upload(rig, setting, &sequences, &q, &cache)?.run(rig, &sequences)?;
    let mut want = Vec::with_capacity(got.len());
    for (row, (segment, position)) in sequences.rows().enumerate() {
        let q = &q[row * setting.width()..][..setting.width()];
        for head in 0..setting.shape.num_heads {
            want.extend(reference(&sequences, &setting.shape, &cache, q, segment, position, head));
        }
    }
    Ok(Outcome::compare(&got, &want, setting.tolerance()))
}

/// One head of one row, `[head_dim]`.
pub(super) fn reference(
    sequences: &Sequences,
    shape: &AttentionShape,
    cache: &[f32],
    q: &[f32],
    segment: &Segment,
    position: usize,
    head: usize,
) -> Vec<f64> {
    let width = shape.head_dim;
    let kv_head = head / (shape.num_heads / shape.num_kv_heads);
    let q = &q[head * width..][..width];
    let keys: Vec<usize> = (0..=position).map(|key| sequences.key_at(shape, segment, key, kv_head)).collect();
    let score = |&at: &usize| {
        let dot: f64 = q.iter().zip(&cache[at..at + width]).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        dot * f64::from(shape.scale)
    };
    let scores: Vec<f64> = keys.iter().map(score).collect();
    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; width];
    for (weight, at) in weights.iter().zip(keys) {
        let values = &cache[at + values_offset(shape)..][..width];
        for (out, &value) in out.iter_mut().zip(values) {
            *out += weight / total * f64::from(value);
        }
    }
    out
}
