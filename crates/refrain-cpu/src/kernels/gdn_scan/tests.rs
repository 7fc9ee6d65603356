use super::*;
use crate::kernels::testing::{Matrix, Random, assert_close};
use crate::simd::SimdLevel;
use proptest::prelude::*;

/// The inputs of one sequence.
#[derive(Clone)]
struct Sequence {
    shape: GdnShape,
    tokens: usize,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    beta: Matrix,
    decay: Matrix,
}

fn shape(num_key_heads: usize, ratio: usize, key_head_dim: usize, value_head_dim: usize) -> GdnShape {
    GdnShape { num_key_heads, num_value_heads: num_key_heads * ratio, key_head_dim, value_head_dim }
}

impl Sequence {
    /// Unit keys, queries scaled as the layer scales them, decays down to `strongest`.
    fn random(shape: GdnShape, tokens: usize, strongest: f32, random: &mut Random) -> Self {
        let GdnShape { num_key_heads, num_value_heads, key_head_dim, value_head_dim } = shape;
        let mut unit = |scale: f32| {
            let mut x = random.floats(tokens * num_key_heads * key_head_dim, 1.0);
            // Keys of real models are far from orthogonal; a common part makes the triangular system work.
            x.iter_mut().for_each(|x| *x += 0.3);
            for head in x.chunks_mut(key_head_dim) {
                let norm = head.iter().map(|x| x * x).sum::<f32>().sqrt();
                head.iter_mut().for_each(|x| *x *= scale / norm);
            }
            let width = num_key_heads * key_head_dim;
            Matrix::from_fn(tokens, width, |row, column| x[row * width + column])
        };
        Self {
            q: unit((key_head_dim as f32).powf(-0.5)),
            k: unit(1.0),
            v: Matrix::random(tokens, num_value_heads * value_head_dim, 2.0, random),
            beta: Matrix::from_fn(tokens, num_value_heads, |_, _| 0.5 + random.float(0.5)),
            decay: Matrix::from_fn(tokens, num_value_heads, |_, _| strongest * (0.5 + random.float(0.5)).powi(4)),
            shape,
            tokens,
        }
    }

    /// Output rows and final state of the token recurrence in double precision.
    fn reference(&self) -> (Vec<Vec<f64>>, Vec<f64>) {
        let GdnShape { num_value_heads, num_key_heads, key_head_dim: dk, value_head_dim: dv } = self.shape;
        let width = padded(dv);
        let mut out = vec![vec![0.0; num_value_heads * dv]; self.tokens];
        let mut states = vec![0.0; slot_floats(&self.shape)];
        for (head, state) in states.chunks_mut(dk * width).enumerate() {
            let from = head / (num_value_heads / num_key_heads) * dk;
            for (t, out) in out.iter_mut().enumerate() {
                let (q, k) = (&self.q.row64(t)[from..from + dk], &self.k.row64(t)[from..from + dk]);
                let decay = f64::from(self.decay.row(t)[head]).exp();
                state.iter_mut().for_each(|s| *s *= decay);
                for j in 0..dv {
                    let sk: f64 = (0..dk).map(|i| state[i * width + j] * k[i]).sum();
                    let d = f64::from(self.beta.row(t)[head]) * (f64::from(self.v.row(t)[head * dv + j]) - sk);
                    (0..dk).for_each(|i| state[i * width + j] += k[i] * d);
                    out[head * dv + j] = (0..dk).map(|i| state[i * width + j] * q[i]).sum();
                }
            }
        }
        (out, states)
    }
}

/// One step: some tokens of some sequences, `(sequence, first token, tokens, scanned tokens, slot)`.
type Cut = (usize, usize, usize, usize, u32);

/// Runs one step on a pool; gives the output rows of each segment.
fn step(level: SimdLevel, sequences: &[Sequence], cuts: &[Cut], pool: &mut [f32]) -> Vec<Matrix> {
    let shape = sequences[0].shape;
    let rows = cuts.iter().map(|cut| cut.2).sum();
    let gather = |pick: &dyn Fn(&Sequence) -> &Matrix| {
        let all: Vec<&[f32]> = cuts
            .iter()
            .flat_map(|&(s, first, len, ..)| (first..first + len).map(move |t| pick(&sequences[s]).row(t)))
            .collect();
        Matrix::from_fn(rows, all[0].len(), |row, column| all[row][column])
    };
    let (mut q, mut k, mut v) = (gather(&|s| &s.q), gather(&|s| &s.k), gather(&|s| &s.v));
    let (mut beta, mut decay) = (gather(&|s| &s.beta), gather(&|s| &s.decay));
    let mut out = Matrix::new(rows, shape.num_value_heads * shape.value_head_dim);
    let args = GdnScan {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        beta: beta.view(),
        decay: decay.view(),
        state: Shared(pool.as_mut_ptr()),
        slot_stride: slot_floats(&shape),
        shape,
        out: out.view(),
    };
    let mut scratch = vec![f32::NAN; gdn_scan_scratch_floats(&shape)];
    let mut row = 0;
    let mut parts = vec![];
    for &(_, first, len, scan, slot) in cuts {
        let segment =
            Segment { row, len: len as u32, position: first as u32, scan: scan as u32, slot, blocks: 0, num_blocks: 0 };
        for head in 0..shape.num_value_heads {
            // SAFETY: the level is available, the segment's rows and slot are inside the buffers.
            unsafe { gdn_scan(level, &args, &segment, head, scratch.as_mut_ptr()) };
        }
        parts.push((row as usize, len));
        row += len as u32;
    }
    out.bits();
    parts.into_iter().map(|(row, len)| out.part(row, len)).collect()
}

/// One sequence alone, in the given steps of `(tokens, scanned tokens)`: output rows and final state.
fn alone(level: SimdLevel, sequence: &Sequence, steps: &[(usize, usize)]) -> (Vec<u32>, Vec<u32>) {
    let mut pool = vec![f32::NAN; slot_floats(&sequence.shape)];
    let mut position = 0;
    let mut bits = vec![];
    for &(len, scan) in steps {
        let out = step(level, std::slice::from_ref(sequence), &[(0, position, len, scan, 0)], &mut pool);
        bits.extend(out[0].bits());
        position += len;
    }
    (bits, pool.iter().map(|x| x.to_bits()).collect())
}

fn check(level: SimdLevel, sequence: &Sequence, steps: &[(usize, usize)], tolerance: f64) {
    let what = format!("{level:?} {:?} {steps:?}", sequence.shape);
    let (out, state) = alone(level, sequence, steps);
    let (expected, expected_state) = sequence.reference();
    let floats = |bits: &[u32]| bits.iter().map(|&x| f32::from_bits(x)).collect::<Vec<_>>();
    assert_close(&floats(&out), &expected.concat(), tolerance, &format!("{what} output"));
    assert_close(&floats(&state), &expected_state, tolerance, &format!("{what} state"));
}

#[test]
fn chunks_agree_with_the_recurrence_in_double_precision() {
    let mut random = Random(1);
    for level in SimdLevel::available() {
        for tokens in [1, 15, 16, 17, 63, 64, 65, 130, 200] {
            let sequence = Sequence::random(shape(1, 3, 32, 40), tokens, -2.0, &mut random);
            check(level, &sequence, &[(tokens, tokens)], 4e-6);
        }
        for (key_dim, value_dim) in [(32, 32), (40, 64), (64, 80), (96, 96), (128, 128), (256, 256), (80, 17), (7, 5)] {
            let sequence = Sequence::random(shape(3, 1, key_dim, value_dim), 70, -0.5, &mut random);
            check(level, &sequence, &[(70, 70)], 4e-6);
        }
    }
}

#[test]
fn single_tokens_agree_with_the_recurrence_in_double_precision() {
    let mut random = Random(2);
    for level in SimdLevel::available() {
        for (key_dim, value_dim) in [(32, 40), (128, 128), (64, 272), (7, 5)] {
            let sequence = Sequence::random(shape(2, 2, key_dim, value_dim), 20, -1.0, &mut random);
            check(level, &sequence, &[(20, 0)], 4e-6);
            check(level, &sequence, &[(10, 10), (4, 2), (5, 0), (1, 0)], 4e-6);
        }
    }
}

#[test]
fn strong_decay_gives_no_nan() {
    let mut random = Random(3);
    for level in SimdLevel::available() {
        for strongest in [-30.0, -1e3, -1e30, f32::NEG_INFINITY] {
            let mut sequence = Sequence::random(shape(1, 1, 32, 32), 130, -0.1, &mut random);
            let weak = sequence.decay.clone();
            sequence.decay = Matrix::from_fn(130, 1, |row, _| if row % 9 == 4 { strongest } else { weak.row(row)[0] });
            check(level, &sequence, &[(130, 130)], 4e-6);
            check(level, &sequence, &[(130, 0)], 4e-6);
        }
    }
}

#[test]
fn cuts_at_chunk_boundaries_change_no_bit() {
    let mut random = Random(4);
    for level in SimdLevel::available() {
        let sequence = Sequence::random(shape(1, 2, 48, 40), 200, -1.0, &mut random);
        let whole = alone(level, &sequence, &[(200, 200)]);
        assert_eq!(alone(level, &sequence, &[(64, 64), (136, 136)]), whole);
        assert_eq!(alone(level, &sequence, &[(128, 128), (64, 64), (8, 8)]), whole);
        let answered = alone(level, &sequence, &[(150, 150), (1, 0), (1, 0), (48, 0)]);
        assert_eq!(alone(level, &sequence, &[(200, 150)]), answered, "recomputed after preemption");
        assert_eq!(alone(level, &sequence, &[(64, 64), (136, 86)]), answered, "recomputed in two pieces");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_sequence_doesnt_notice_the_others(
        heads in 1usize..4,
        ratio in 1usize..4,
        key_dim in 1usize..50,
        value_dim in 1usize..70,
        lengths in prop::collection::vec((1usize..150, 0usize..4), 1..4),
        seed: u64,
    ) {
        let mut random = Random(seed);
        let shape = shape(heads, ratio, key_dim, value_dim);
        let sequences: Vec<Sequence> =
            lengths.iter().map(|(scan, rest)| Sequence::random(shape, scan + rest, -1.0, &mut random)).collect();
        let slots = random.permutation(lengths.len() + 2);
        for level in SimdLevel::available() {
            let mut pool = vec![f32::NAN; slots.len() * slot_floats(&shape)];
            let cuts: Vec<Cut> = lengths
                .iter()
                .enumerate()
                .map(|(index, &(scan, rest))| (index, 0, scan + rest, scan, slots[index]))
                .collect();
            let together = step(level, &sequences, &cuts, &mut pool);
            for (index, &(scan, rest)) in lengths.iter().enumerate() {
                let (out, state) = alone(level, &sequences[index], &[(scan + rest, scan)]);
                prop_assert_eq!(together[index].bits(), out);
                let slot = &pool[slots[index] as usize * slot_floats(&shape)..][..slot_floats(&shape)];
                prop_assert_eq!(slot.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), state);
            }
        }
    }
}
