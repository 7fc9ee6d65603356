use super::*;
use crate::kernels::kv_cache::{KvAppend, kv_append};
use crate::kernels::testing::{Matrix, Random, assert_close};
use crate::simd::SimdLevel;
use proptest::prelude::*;
use refrain_device::BLOCK_TOKENS;
use refrain_program::{scale_factor, scale_inverse};

const WHOLE: PlanLimits = PlanLimits { workers: 1, partial_floats: 0 };
const ALL: [KvElement; 5] =
    [KvElement::F32, KvElement::Bf16, KvElement::F16, KvElement::Fp8(Fp8::E4m3), KvElement::Fp8(Fp8::E5m2)];
const SPLIT_UP: PlanLimits = PlanLimits { workers: 32, partial_floats: 1 << 20 };

fn shape(num_kv_heads: usize, group: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { num_heads: num_kv_heads * group, num_kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5) }
}

/// Queries, keys and values of one sequence.
struct Sequence {
    q: Matrix,
    k: Matrix,
    v: Matrix,
}

impl Sequence {
    /// Large queries make sharp softmaxes, whose maximum moves.
    fn random(shape: &AttentionShape, tokens: usize, random: &mut Random) -> Self {
        let kv_width = shape.num_kv_heads * shape.head_dim;
        Self {
            q: Matrix::random(tokens, shape.num_heads * shape.head_dim, 6.0, random),
            k: Matrix::random(tokens, kv_width, 2.0, random),
            v: Matrix::random(tokens, kv_width, 2.0, random),
        }
    }

    /// The output row of one token in double precision, with the cache rounded to its type.
    fn reference(&self, shape: &AttentionShape, element: KvElement, token: usize) -> Vec<f64> {
        let rounded = |row: &[f32]| -> Vec<f64> {
            let each = |round: &dyn Fn(f32) -> f64| row.iter().map(|&x| round(x)).collect();
            match element {
                KvElement::F32 => each(&|x| f64::from(x)),
                KvElement::Bf16 => each(&|x| bf16::from_f32(x).to_f64()),
                KvElement::F16 => each(&|x| f16::from_f32(x).to_f64()),
                KvElement::Fp8(format) => {
                    let scale = format.scale(row.iter().fold(0.0, |largest: f32, x| largest.max(x.abs())));
                    let code = |x: f32| format.encode(x * scale_inverse(scale));
                    each(&|x| f64::from(format.decode(code(x))) * f64::from(scale_factor(scale)))
                }
            }
        };
        let q = self.q.row64(token);
        let mut out = vec![];
        for (head, q) in q.chunks(shape.head_dim).enumerate() {
            let columns = head / group(shape) * shape.head_dim..(head / group(shape) + 1) * shape.head_dim;
            let score = |t: usize| {
                let k = rounded(&self.k.row(t)[columns.clone()]);
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * f64::from(shape.scale)
            };
            let scores: Vec<f64> = (0..=token).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let values: Vec<Vec<f64>> = (0..=token).map(|t| rounded(&self.v.row(t)[columns.clone()])).collect();
            out.extend(
                (0..shape.head_dim)
                    .map(|d| weights.iter().zip(&values).map(|(weight, value)| weight * value[d]).sum::<f64>() / sum),
            );
        }
        out
    }
}

/// A cache with the block tables of some sequences: `tables[s]` are the blocks of sequence `s`.
struct Cache {
    layout: KvLayout,
    bytes: Vec<u8>,
    tables: Vec<Vec<u32>>,
}

impl Cache {
    /// Blocks in random order, all bytes set so that whatever isn't written is NaN.
    fn new(shape: &AttentionShape, element: KvElement, lengths: &[usize], random: &mut Random) -> Self {
        let layout = KvLayout { kv_heads: shape.num_kv_heads, head_dim: shape.head_dim, element };
        let needed: Vec<usize> = lengths.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).collect();
        let blocks = needed.iter().sum::<usize>() + 3;
        let mut order = random.permutation(blocks).into_iter();
        let tables = needed.iter().map(|&count| order.by_ref().take(count).collect()).collect();
        Self { layout, bytes: vec![0xff; blocks * layout.block_bytes()], tables }
    }
}

/// One step of `(sequence, first token, tokens)`: appends keys and values, attends, gives the rows of each.
fn step(
    level: SimdLevel,
    shape: &AttentionShape,
    sequences: &[Sequence],
    cuts: &[(usize, usize, usize)],
    cache: &mut Cache,
    limits: PlanLimits,
) -> Vec<Matrix> {
    let rows = cuts.iter().map(|cut| cut.2).sum();
    let gather = |pick: &dyn Fn(&Sequence) -> &Matrix| {
        let of =
            |&(s, first, len): &(usize, usize, usize)| (first..first + len).map(move |t| pick(&sequences[s]).row(t));
        let all: Vec<&[f32]> = cuts.iter().flat_map(of).collect();
        Matrix::from_fn(rows, all[0].len(), |row, column| all[row][column])
    };
    let (mut q, mut k, mut v) = (gather(&|s| &s.q), gather(&|s| &s.k), gather(&|s| &s.v));
    let mut out = Matrix::new(rows, shape.num_heads * shape.head_dim);
    let (mut segments, mut block_table, mut row) = (vec![], vec![], 0);
    for &(s, first, len) in cuts {
        let blocks = &cache.tables[s];
        segments.push(Segment {
            row,
            len: len as u32,
            position: first as u32,
            scan: 0,
            slot: 0,
            blocks: block_table.len() as u32,
            num_blocks: blocks.len() as u32,
        });
        block_table.extend(blocks);
        row += len as u32;
    }
    let shared = Shared(cache.bytes.as_mut_ptr());
    let append = KvAppend {
        k: k.view(),
        v: v.view(),
        cache: shared,
        layout: cache.layout,
        segments: &segments,
        block_table: &block_table,
    };
    // SAFETY: the level is available, rows and blocks are inside their buffers.
    unsafe { kv_append(level, &append, 0..rows) };
    let mut partials = vec![f32::NAN; limits.partial_floats];
    let args = Attention {
        q: q.view(),
        cache: shared,
        layout: cache.layout,
        shape: *shape,
        segments: &segments,
        block_table: &block_table,
        partials: Shared(partials.as_mut_ptr()),
        gate: None,
        out: out.view(),
    };
    let mut plan = AttentionPlan::default();
    plan.plan(&segments, shape, limits);
    let mut scratch = vec![f32::NAN; attention_scratch_floats(shape)];
    // SAFETY: as above; scratch and partials have the sizes asked for.
    unsafe {
        plan.items.iter().rev().for_each(|item| attention(level, &args, item, scratch.as_mut_ptr()));
        plan.merges.iter().for_each(|merge| attention_merge(level, &args, merge));
    }
    out.bits();
    segments.iter().map(|segment| out.part(segment.row as usize, segment.len as usize)).collect()
}

/// One sequence alone, in steps of the given lengths.
fn alone(
    level: SimdLevel,
    shape: &AttentionShape,
    element: KvElement,
    sequence: &Sequence,
    steps: &[usize],
    limits: PlanLimits,
) -> Vec<Vec<f32>> {
    let mut cache = Cache::new(shape, element, &[steps.iter().sum()], &mut Random(9));
    let mut rows = vec![];
    for &len in steps {
        let cut = [(0, rows.len(), len)];
        let out = step(level, shape, std::slice::from_ref(sequence), &cut, &mut cache, limits);
        rows.extend((0..len).map(|row| out[0].row(row).to_vec()));
    }
    rows
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn attention_agrees_with_double_precision() {
    let mut random = Random(1);
    for level in SimdLevel::available() {
        for (kv_heads, group, head_dim) in
            [(1, 1, 32), (3, 1, 40), (2, 3, 64), (1, 7, 80), (3, 5, 96), (2, 4, 128), (2, 4, 256), (1, 80, 33)]
        {
            let shape = shape(kv_heads, group, head_dim);
            for element in ALL {
                let sequence = Sequence::random(&shape, 70, &mut random);
                let rows = alone(level, &shape, element, &sequence, &[70], WHOLE);
                for token in [0, 1, 14, 15, 16, 17, 63, 64, 69] {
                    let expected = sequence.reference(&shape, element, token);
                    assert_close(&rows[token], &expected, 1e-5, &format!("{level:?} {shape:?} {element:?} at {token}"));
                }
            }
        }
        let shape = shape(1, 2, 32);
        let sequence = Sequence::random(&shape, 1600, &mut random);
        let rows = alone(level, &shape, KvElement::F32, &sequence, &[1600], WHOLE);
        for token in [130, 200, 511, 512, 513, 1023, 1024, 1599] {
            let expected = sequence.reference(&shape, KvElement::F32, token);
            assert_close(&rows[token], &expected, 1e-5, &format!("{level:?} at {token}"));
        }
    }
}

#[test]
fn splitting_the_context_changes_no_bit() {
    let mut random = Random(2);
    for level in SimdLevel::available() {
        let shape = shape(1, 3, 40);
        let sequence = Sequence::random(&shape, 1300, &mut random);
        for steps in [&[1280, 1, 1, 18][..], &[500, 20, 780], &[1300]] {
            let whole = alone(level, &shape, KvElement::Bf16, &sequence, steps, WHOLE);
            let split = alone(level, &shape, KvElement::Bf16, &sequence, steps, SPLIT_UP);
            assert_eq!(bits(&whole), bits(&split), "{level:?} {steps:?}");
        }
    }
}

#[test]
fn later_values_can_be_infinite() {
    let shape = shape(1, 1, 32);
    let mut sequence = Sequence::random(&shape, 20, &mut Random(3));
    let finite = sequence.v.clone();
    sequence.v = Matrix::from_fn(20, 32, |row, column| if row >= 10 { f32::INFINITY } else { finite.row(row)[column] });
    for level in SimdLevel::available() {
        let rows = alone(level, &shape, KvElement::F32, &sequence, &[20], WHOLE);
        assert!(rows[..10].iter().flatten().all(|y| y.is_finite()), "{level:?}");
    }
}

#[test]
fn long_items_are_split_only_where_there_is_room() {
    let shape = shape(2, 4, 64);
    let segment = |position, len| Segment { row: 0, len, position, scan: 0, slot: 0, blocks: 0, num_blocks: 0 };
    let mut plan = AttentionPlan::default();
    plan.plan(&[segment(2000, 1)], &shape, SPLIT_UP);
    assert_eq!((plan.items.len(), plan.merges.len()), (8, 2));
    let room = 4 * Sums::floats(&shape, 4);
    plan.plan(&[segment(2000, 1)], &shape, PlanLimits { partial_floats: room, ..SPLIT_UP });
    assert_eq!((plan.items.len(), plan.merges.len()), (5, 1));
    plan.plan(&[segment(2000, 1)], &shape, PlanLimits { partial_floats: room - 1, ..SPLIT_UP });
    assert_eq!((plan.items.len(), plan.merges.len()), (2, 0));
    let many: Vec<Segment> = (0..64).map(|_| segment(2000, 1)).collect();
    plan.plan(&many, &shape, PlanLimits { workers: 8, ..SPLIT_UP });
    assert_eq!((plan.items.len(), plan.merges.len()), (128, 0), "enough items for all workers as it is");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn cuts_neighbours_and_blocks_change_no_bit(
        kv_heads in 1usize..4,
        group in 1usize..8,
        head_dim in 1usize..70,
        element in prop::sample::select(ALL.to_vec()),
        cuts in prop::collection::vec(prop::collection::vec(1usize..90, 1..4), 1..4),
        seed: u64,
    ) {
        let mut random = Random(seed);
        let shape = shape(kv_heads, group, head_dim);
        let lengths: Vec<usize> = cuts.iter().map(|cuts| cuts.iter().sum()).collect();
        let sequences: Vec<Sequence> =
            lengths.iter().map(|&len| Sequence::random(&shape, len, &mut random)).collect();
        for level in SimdLevel::available() {
            let mut cache = Cache::new(&shape, element, &lengths, &mut random);
            let mut rows: Vec<Vec<Vec<f32>>> = vec![vec![]; sequences.len()];
            for turn in 0..cuts.iter().map(Vec::len).max().unwrap() {
                let now: Vec<(usize, usize, usize)> = (0..sequences.len())
                    .filter_map(|s| cuts[s].get(turn).map(|&len| (s, rows[s].len(), len)))
                    .collect();
                let out = step(level, &shape, &sequences, &now, &mut cache, SPLIT_UP);
                for (&(s, _, len), out) in now.iter().zip(out) {
                    rows[s].extend((0..len).map(|row| out.row(row).to_vec()));
                }
            }
            for (s, sequence) in sequences.iter().enumerate() {
                let whole = alone(level, &shape, element, sequence, &[lengths[s]], WHOLE);
                prop_assert_eq!(bits(&rows[s]), bits(&whole));
                let single = vec![1; lengths[s]];
                prop_assert_eq!(bits(&alone(level, &shape, element, sequence, &single, WHOLE)), bits(&whole));
            }
        }
    }
}
