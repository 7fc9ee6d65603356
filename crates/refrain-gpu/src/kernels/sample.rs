//! Choosing tokens from the logits: `kernels/sample_scan.cu`, `sample_choose.cu`, `sample_top.cu`.

use crate::StepPointers;
use crate::kernel::{Count, Extent, Kernel, LaunchSpec};
use bytemuck::{Pod, Zeroable};
use refrain_device::{Chosen, DevicePtr, NoToken, RankedToken, RowSampling, SamplingLimits, Step, StepLimits};

/// Best tokens of a row that can be asked for: `MOST_TOP` of the kernels.
pub const MOST_TOP: usize = 20;
/// Threads of a block that scans: `THREADS_SCAN` of the kernels.
const SCAN_THREADS: u32 = 256;
/// Logits that a block scans: `SLICE` of the kernels.
const SLICE: usize = SCAN_THREADS as usize * 32;
/// Threads of a block that finds the best tokens, and of one that draws one: a block has a row. With more for the draw, the
/// registers don't suffice on sm_80.
const TOP_THREADS: u32 = 512;
const CHOOSE_THREADS: u32 = 384;
/// Bytes of `SampleSlice` and `SampleRow`.
const SLICE_BYTES: usize = 16;
const ROW_BYTES: usize = 32;

/// `SampleArgs` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct SampleArgs {
    step: StepPointers,
    logits: u64,
    rows: u64,
    slices: u64,
    maxima: u64,
    raw: u64,
    chosen: u64,
    top: u64,
}

/// `SampleChosen` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct SampleChosen {
    token: u32,
    status: u32,
    logprob: f32,
    rank: u32,
}

/// `SampleTop` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct SampleTop {
    token: u32,
    logprob: f32,
}

const STATUS_NOT_FINITE: u32 = 1;
const STATUS_NONE_ALLOWED: u32 = 2;

/// Choosing a token for each logit row, as [`Step::sampling`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// `[S, vocab]` f32 without gaps, 16-byte aligned. Adjusted in place and put back.
    pub logits: DevicePtr,
    /// Width of a row.
    pub vocab: usize,
    /// Scratch and results, [`SampleSpace::bytes`] of it, zero before the first launch.
    pub workspace: DevicePtr,
    /// Where its parts lie.
    pub space: SampleSpace,
}

/// Byte offsets in the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleSpace {
    rows: usize,
    slices: usize,
    maxima: usize,
    raw: usize,
    results: usize,
    /// Of the best tokens behind the chosen ones, from `results`.
    top: usize,
    /// Bytes of the results of the largest step.
    result_bytes: usize,
    /// Bytes of it all.
    pub bytes: usize,
}

impl SampleSpace {
    /// For steps within `limits`.
    pub fn new(limits: &StepLimits, vocab: usize) -> SampleSpace {
        let rows = limits.max_logit_rows;
        let slices = vocab.div_ceil(SLICE);
        let mut space = SampleSpace::default();
        let mut part = |bytes: usize| {
            let start = space.bytes;
            space.bytes = (start + bytes).next_multiple_of(256);
            start
        };
        space.rows = part(rows * ROW_BYTES);
        space.slices = part(rows * slices * SLICE_BYTES);
        space.maxima = part(rows * slices * SCAN_THREADS as usize * 4);
        space.raw = part(limits.max_adjustments() * 4);
        space.top = rows * size_of::<SampleChosen>();
        space.result_bytes = space.top + rows * MOST_TOP * size_of::<SampleTop>();
        space.results = part(space.result_bytes);
        space
    }

    /// Where the results of a step lie in the workspace, and how many bytes of them there are.
    pub fn results(&self, step: &Step) -> (usize, usize) {
        let rows = step.sampling.len();
        let wants_top = step.sampling.iter().any(|row| row.logprobs.is_some_and(|top| top > 0));
        let top = if wants_top { self.top + rows * MOST_TOP * size_of::<SampleTop>() } else { 0 };
        (self.results, top.max(rows * size_of::<SampleChosen>()))
    }

    /// Where what is chosen lies in the workspace, until the next step chooses: `[S]` of `SampleChosen` of the kernels.
    pub fn chosen(&self) -> usize {
        self.results
    }

    /// Bytes of the results of the largest step.
    pub fn result_bytes(&self) -> usize {
        self.result_bytes
    }

    /// Reads the results of a step; `wanted` is [`RowSampling::logprobs`] of its rows.
    ///
    /// # Panics
    /// When `results` are shorter than [`SampleSpace::results`] says.
    pub fn read(&self, wanted: &[Option<u32>], vocab: usize, results: &[u8], chosen: &mut Chosen) {
        chosen.clear();
        for (index, &wanted) in wanted.iter().enumerate() {
            let row: SampleChosen = item(results, index * size_of::<SampleChosen>());
            let ranked = match row.status {
                STATUS_NOT_FINITE => Err(NoToken::NotFinite),
                STATUS_NONE_ALLOWED => Err(NoToken::NoneAllowed),
                _ if wanted.is_none() => Ok(RankedToken { token: row.token, ..RankedToken::default() }),
                _ => Ok(RankedToken { token: row.token, logprob: row.logprob, rank: row.rank + 1 }),
            };
            let top = if ranked.is_ok() { wanted.unwrap_or(0) } else { 0 };
            chosen.rows.push(ranked);
            chosen.top.extend((0..vocab.min(top as usize)).map(|place| {
                let at = self.top + (index * MOST_TOP + place) * size_of::<SampleTop>();
                let SampleTop { token, logprob } = item(results, at);
                RankedToken { token, logprob, rank: place as u32 + 1 }
            }));
            chosen.top_ends.push(chosen.top.len() as u32);
        }
    }
}

fn item<T: Pod>(bytes: &[u8], at: usize) -> T {
    bytemuck::pod_read_unaligned(&bytes[at..at + size_of::<T>()])
}

/// Whether the kernels can choose for all rows of a step. What they don't do is left to the host, on the logits.
pub fn can_choose(step: &Step) -> bool {
    let mut end = 0;
    step.sampling.iter().all(|row: &RowSampling| {
        // The raw logits of adjusted tokens are kept where the adjustments lie: no two rows may share them.
        let apart = row.adjustments.is_empty() || row.adjustments.start >= end;
        end = end.max(row.adjustments.end);
        let steep = row.temperature > 0.0 && !(row.temperature.recip() * std::f32::consts::LOG2_E).is_finite();
        apart && !steep && row.logprobs.is_none_or(|top| top as usize <= MOST_TOP)
    })
}

/// What the kernels can do within some limits of steps.
pub fn sampling_limits(limits: &StepLimits) -> SamplingLimits {
    SamplingLimits { max_adjustments: limits.max_adjustments(), max_top: MOST_TOP }
}

impl Sample {
    /// The launches; those that a step has no use for have no blocks in it.
    pub fn launches(&self, step: &StepPointers) -> Vec<LaunchSpec> {
        let at = |offset: usize| self.workspace.offset(offset).0;
        let space = &self.space;
        let arguments = SampleArgs {
            step: *step,
            logits: self.logits.0,
            rows: at(space.rows),
            slices: at(space.slices),
            maxima: at(space.maxima),
            raw: at(space.raw),
            chosen: at(space.results),
            top: at(space.results + space.top),
        };
        let slices = self.vocab.div_ceil(SLICE) as u32;
        let scan = |entry: &'static str, adjusted: u32, count: Count| {
            let kernel = Kernel::new("sample_scan.cu", entry, SCAN_THREADS)
                .define("VOCAB", self.vocab)
                .define("ADJUSTED", adjusted);
            let grid = [Extent::Fixed(slices), Extent::one(count), Extent::Fixed(1)];
            LaunchSpec::on_grid(kernel, grid, &arguments)
        };
        let change = |entry: &'static str, count: Count| LaunchSpec {
            grid: [Extent::one(count), Extent::Fixed(1), Extent::Fixed(1)],
            ..scan(entry, 0, count)
        };
        let of_row = |source: &'static str, entry: &'static str, threads: u32, count: Count| {
            let kernel = Kernel::new(source, entry, threads).define("KX_RESIDENT", 1).define("VOCAB", self.vocab);
            LaunchSpec::new(kernel, Extent::one(count), &arguments)
        };
        vec![
            scan("sample_scan", 0, Count::Sampled),
            // Of the raw logits: before the second scan, which overwrites what the first has left.
            of_row("sample_top.cu", "sample_top", TOP_THREADS, Count::Logprobs),
            change("sample_adjust", Count::Adjusted),
            scan("sample_scan", 1, Count::Adjusted),
            of_row("sample_choose.cu", "sample_choose", CHOOSE_THREADS, Count::Drawn),
            // Ranks are of the raw logits.
            change("sample_restore", Count::AdjustedLogprobs),
            scan("sample_rank", 0, Count::Logprobs),
        ]
    }
}
