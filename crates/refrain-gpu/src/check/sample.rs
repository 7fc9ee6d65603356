//! Choosing tokens, against the definition in double precision.
//!
//! A draw is the inverse of a distribution function, so the uniform number must lie in the chosen token's stretch of it, or
//! nearly: the error is how far outside it is. Greedy choices, ranks and the best tokens are exact. Sweeps draw from the
//! same logits with evenly spaced uniform numbers: each token must come as often as its probability says.

mod reference;

use super::{Case, Outcome, Rig, Scale};
use crate::Target;
use crate::kernels::sample::{MOST_TOP, Sample, SampleSpace};
use reference::{row_error, share_error};
use refrain_device::{Adjustment, Chosen, DeviceError, RowSampling, Segment, Step, StepLimits};
use refrain_program::Dtype;

/// Sums in f32 of some hundred weights in a row lose 1e-6; the approximate exponential of small weights as much.
const TOLERANCE: f64 = 1e-5;

/// What the logits of a row are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Normal with this deviation.
    Normal(f32),
    /// Few different values: ties everywhere.
    Steps,
    /// All the same.
    Flat,
    /// With a value among them that isn't finite.
    Broken(f32),
    /// From the least to the largest number.
    Extreme,
}

fn logits(rig: &Rig, kind: Kind, vocab_size: usize) -> Vec<f32> {
    let scale = if let Kind::Normal(scale) = kind { scale } else { 2.0 };
    let mut row = rig.random(vocab_size, scale, Dtype::F32);
    match kind {
        Kind::Normal(_) => {}
        Kind::Steps => row.iter_mut().for_each(|value| *value = value.round()),
        Kind::Flat => row.fill(0.5),
        Kind::Broken(value) => row[vocab_size * 2 / 3] = value,
        Kind::Extreme => (row[0], row[vocab_size / 2]) = (f32::MIN, f32::MAX),
    }
    row
}

/// A row to choose from.
struct Wanted {
    kind: Kind,
    sampling: RowSampling,
    adjustments: Vec<Adjustment>,
    /// With the logits of the row before it.
    same: bool,
}

fn drawn(rig: &Rig, temperature: f32, top_k: u32, top_p: f32, min_p: f32) -> Wanted {
    let uniform = (rig.random_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let sampling = RowSampling { temperature, top_k, top_p, min_p, uniform, repetition: 1.0, ..RowSampling::default() };
    Wanted { kind: Kind::Normal(3.0), sampling, adjustments: Vec::new(), same: false }
}

impl Wanted {
    fn of(self, kind: Kind) -> Wanted {
        Wanted { kind, ..self }
    }

    fn with(mut self, change: impl FnOnce(&mut RowSampling)) -> Wanted {
        change(&mut self.sampling);
        self
    }

    fn logprobs(self, top: u32) -> Wanted {
        self.with(|sampling| sampling.logprobs = Some(top))
    }

    /// About one token in `every` is changed in some way.
    fn adjusted(mut self, rig: &Rig, vocab_size: usize, every: u64) -> Wanted {
        self.sampling.repetition = 1.3;
        self.sampling.presence = 0.5;
        for token in 0..vocab_size as u32 {
            let bits = rig.random_u64();
            if bits.is_multiple_of(every) {
                let bit = |shift: u32| bits >> shift & 1 == 1;
                let occurred = bit(40);
                let generated = occurred && bit(41);
                self.adjustments.push(Adjustment {
                    token,
                    forbidden: bit(42) && bit(43),
                    bias: if bit(44) { (bits >> 50 & 7) as f32 - 3.0 } else { 0.0 },
                    occurred,
                    generated,
                    frequency: if generated { (bits >> 53 & 3) as f32 * 0.25 } else { 0.0 },
                });
            }
        }
        self
    }
}

/// Rows that go every way through the kernels.
fn all_ways(rig: &Rig, vocab_size: usize) -> Vec<Wanted> {
    let size = vocab_size as u32;
    let mut rows = Vec::new();
    let kinds = [Kind::Normal(0.3), Kind::Normal(3.0), Kind::Steps, Kind::Flat, Kind::Extreme];
    for kind in kinds {
        rows.push(drawn(rig, 0.0, 3, 0.5, 0.1).of(kind));
        for temperature in [0.4, 1.0, 3.0] {
            rows.push(drawn(rig, temperature, 0, 1.0, 0.0).of(kind));
            rows.push(drawn(rig, temperature, 20, 0.95, 0.0).of(kind));
            rows.push(drawn(rig, temperature, 0, 0.9, 0.0).of(kind));
            rows.push(drawn(rig, temperature, 0, 1.0, 0.05).of(kind));
        }
        rows.push(drawn(rig, 1.0, 1, 1.0, 0.0).of(kind));
        rows.push(drawn(rig, 1.5, size / 2, 0.7, 0.0).of(kind));
        rows.push(drawn(rig, 1.5, size - 1, 1.0, 0.01).of(kind));
        rows.push(drawn(rig, 2.0, size + 7, 0.3, 0.02).of(kind).logprobs(3));
        for every in [2, 9] {
            rows.push(drawn(rig, 0.0, 0, 1.0, 0.0).of(kind).adjusted(rig, vocab_size, every).logprobs(2));
            rows.push(drawn(rig, 0.8, 0, 1.0, 0.0).of(kind).adjusted(rig, vocab_size, every));
            rows.push(drawn(rig, 0.8, 7, 0.9, 0.0).of(kind).adjusted(rig, vocab_size, every).logprobs(0));
            let only = drawn(rig, 1.0, 0, 0.95, 0.0).of(kind).adjusted(rig, vocab_size, every);
            rows.push(only.logprobs(5).with(|sampling| sampling.only_adjusted = true));
        }
        let given = (rig.random_u64() % vocab_size as u64) as u32;
        let last = size - 1;
        for (given, top) in [(given, MOST_TOP as u32), (0, 0), (last, 1)] {
            let row = drawn(rig, 0.0, 0, 1.0, 0.0).of(kind).logprobs(top);
            rows.push(row.with(|sampling| sampling.given = Some(given)));
        }
    }
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        rows.push(drawn(rig, 0.0, 0, 1.0, 0.0).of(Kind::Broken(broken)));
        rows.push(drawn(rig, 1.0, 5, 1.0, 0.0).of(Kind::Broken(broken)).adjusted(rig, vocab_size, 2).logprobs(2));
    }
    let mut none = drawn(rig, 1.0, 0, 1.0, 0.0).logprobs(1).with(|sampling| sampling.only_adjusted = true);
    none.adjustments = vec![Adjustment { token: size - 1, forbidden: true, bias: 9.0, ..Adjustment::default() }];
    rows.push(none);
    rows.push(drawn(rig, 0.0, 0, 1.0, 0.0).with(|sampling| sampling.only_adjusted = true));
    rows
}

/// Temperature, top-k, top-p, min-p.
type Filters = (f32, u32, f32, f32);

/// Filters alone and together, on lists of tokens and on whole rows.
const FILTERS: [Filters; 8] = [
    (1.0, 0, 1.0, 0.0),
    (0.6, 20, 0.95, 0.0),
    (2.0, 5, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.5, 0, 0.999, 0.0),
    (1.0, 0, 1.0, 0.05),
    (0.8, 40, 0.8, 0.02),
    (3.0, 60, 0.99, 0.001),
];

/// `draws` rows for each of the filters, their uniform numbers in the middle of as many equal parts of `[0, 1)`.
fn sweeps(rig: &Rig, kinds: &[Kind], draws: u32) -> Vec<Wanted> {
    let mut rows = Vec::new();
    for &kind in kinds {
        for (temperature, top_k, top_p, min_p) in FILTERS {
            rows.extend((0..draws).map(|draw| {
                let row = drawn(rig, temperature, top_k, top_p, min_p).of(kind);
                let uniform = (f64::from(draw) + 0.5) / f64::from(draws);
                Wanted { same: draw > 0, ..row.with(|sampling| sampling.uniform = uniform) }
            }));
        }
    }
    rows
}

/// Rows with the least uniform numbers and the largest.
fn ends(rig: &Rig) -> Vec<Wanted> {
    let ends = [0.0, 1e-12, 1.0 - f64::EPSILON / 2.0];
    let row = |(temperature, top_k, top_p, min_p): Filters, uniform: f64| {
        drawn(rig, temperature, top_k, top_p, min_p).with(|sampling| sampling.uniform = uniform)
    };
    FILTERS.into_iter().flat_map(|filters| ends.map(|uniform| row(filters, uniform))).collect()
}

/// Chooses for all rows and gives the worst error; with what it took, if the rig measures.
fn run(rig: &Rig, vocab_size: usize, wanted: Vec<Wanted>) -> Result<Outcome, DeviceError> {
    let rows = wanted.len();
    let mut step = Step { tokens: vec![0; rows], logit_rows: (0..rows as u32).collect(), ..Step::default() };
    let len = rows as u32;
    step.segments.push(Segment { row: 0, len, position: 0, scan: len, slot: 0, blocks: 0, num_blocks: 0 });
    let mut all: Vec<f32> = Vec::new();
    let same: Vec<bool> = wanted.iter().map(|row| row.same).collect();
    for row in wanted {
        let begin = step.adjustments.len() as u32;
        step.adjustments.extend(row.adjustments);
        step.sampling.push(RowSampling { adjustments: begin..step.adjustments.len() as u32, ..row.sampling });
        match row.same {
            true => all.extend_from_within(all.len() - vocab_size..),
            false => all.extend(logits(rig, row.kind, vocab_size)),
        }
    }
    let limits = StepLimits {
        max_tokens: rows,
        // As many as make room for the adjustments.
        max_segments: step.adjustments.len() / 2048 + 1,
        max_logit_rows: rows + 1,
        max_model_len: rows,
    };
    let (_block, pointers, counts) = rig.step(&step, &limits)?;
    let on_device = rig.upload(&all)?;
    let space = SampleSpace::new(&limits, vocab_size);
    let workspace = rig.zeroed(space.bytes)?;
    let sample = Sample { logits: on_device.ptr(), vocab: vocab_size, workspace: workspace.ptr(), space };
    let launches = sample.launches(&pointers);
    rig.launch(&launches, &counts)?;
    let (offset, bytes) = space.results(&step);
    let results: Vec<u8> = rig.download(&workspace, offset + bytes)?;
    let mut chosen = Chosen::default();
    let wanted: Vec<_> = step.sampling.iter().map(|row| row.logprobs).collect();
    space.read(&wanted, vocab_size, &results[offset..], &mut chosen);
    let row_logits = all.chunks(vocab_size);
    let errors = step.sampling.iter().zip(row_logits).enumerate().map(|(index, (row, logits))| {
        let own = &step.adjustments[row.adjustments.start as usize..row.adjustments.end as usize];
        row_error(logits, row, own, &chosen.rows[index], chosen.top_of(index))
    });
    let error = errors.fold(0.0, f64::max).max(sweep_error(&step, &same, &all, &chosen));
    let seconds = rig.time(&launches, &counts)?;
    let outcome = Outcome { error, tolerance: TOLERANCE, ..Outcome::default() };
    Ok(outcome.timed((rows * vocab_size * 4) as u64, 0, seconds))
}

/// The error of the shares of the tokens that each sweep has drawn.
fn sweep_error(step: &Step, same: &[bool], logits: &[f32], chosen: &Chosen) -> f64 {
    let vocab_size = logits.len() / same.len();
    let mut worst: f64 = 0.0;
    let mut first = 0;
    while first < same.len() {
        let end = (first + 1..same.len()).find(|&row| !same[row]).unwrap_or(same.len());
        if end - first > 1 {
            let tokens: Option<Vec<u32>> =
                chosen.rows[first..end].iter().map(|row| row.as_ref().ok().map(|row| row.token)).collect();
            let own = &logits[first * vocab_size..(first + 1) * vocab_size];
            worst = worst.max(tokens.map_or(f64::INFINITY, |tokens| share_error(own, &step.sampling[first], &tokens)));
        }
        first = end;
    }
    worst
}

pub(super) fn cases(_: &Target, scale: Scale) -> Vec<Case> {
    match scale {
        Scale::Ragged => {
            let sweeps = [(77, 40), (3001, 16)].into_iter().map(|(vocab_size, draws)| sweep(vocab_size, draws));
            [2, 77, 1000, 5001, 20_000].into_iter().map(ragged).chain(sweeps).collect()
        }
        Scale::Model => {
            let mut cases = model();
            cases.push(sweep(VOCAB, 8));
            cases
        }
    }
}

fn sweep(vocab_size: usize, draws: u32) -> Case {
    let name = format!("vocabulary {vocab_size}, {draws} even draws");
    Case::new("sample", name, move |rig| {
        let kinds = [Kind::Normal(2.0), Kind::Steps];
        // The definition takes its time on large vocabularies.
        let mut rows = sweeps(rig, if vocab_size == VOCAB { &kinds[..1] } else { &kinds }, draws);
        rows.extend(ends(rig));
        run(rig, vocab_size, rows)
    })
}

fn ragged(vocab_size: usize) -> Case {
    let name = format!("vocabulary {vocab_size}");
    Case::new("sample", name, move |rig| run(rig, vocab_size, all_ways(rig, vocab_size)))
}

/// The vocabulary of Qwen3.5.
const VOCAB: usize = 248_320;

fn model() -> Vec<Case> {
    type Row = fn(&Rig) -> Wanted;
    let greedy: Row = |rig| drawn(rig, 0.0, 0, 1.0, 0.0);
    let usual: Row = |rig| drawn(rig, 0.6, 20, 0.95, 0.0);
    let ways: [(&str, usize, Row); 8] = [
        ("greedy, S 1", 1, greedy),
        ("greedy, S 64", 64, greedy),
        ("top-k 20, top-p 0.95, S 1", 1, usual),
        ("top-k 20, top-p 0.95, S 64", 64, usual),
        ("temperature 1, S 1", 1, |rig| drawn(rig, 1.0, 0, 1.0, 0.0)),
        ("top-p 0.9, S 1", 1, |rig| drawn(rig, 0.5, 0, 0.9, 0.0)),
        ("top-p 0.9 of a nearly flat row, S 1", 1, |rig| drawn(rig, 1.0, 0, 0.9, 0.0).of(Kind::Normal(0.5))),
        ("penalties and 20 log-probabilities, S 8", 8, |rig| {
            drawn(rig, 0.6, 20, 0.95, 0.0).adjusted(rig, VOCAB, 500).logprobs(20)
        }),
    ];
    let case = |(name, rows, row): (&str, usize, Row)| {
        Case::new("sample", name, move |rig| run(rig, VOCAB, (0..rows).map(|_| row(rig)).collect()))
    };
    ways.into_iter().map(case).collect()
}
