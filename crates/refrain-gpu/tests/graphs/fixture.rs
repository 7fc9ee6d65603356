//! Two backends on simulated GPUs, one of which runs everything op by op, that are given the same steps.

use refrain_device::{BLOCK_TOKENS, Backend, Cell, DeviceError, GraphMode, RowSampling, Segment, Step, StepOutput};
use refrain_gpu::{GpuBackend, GpuOptions, GraphOptions, KernelOptions};
use refrain_program::{BuildOptions, CompileOptions, Dtype};
use refrain_sim::{SimOptions, SimRuntime};
use refrain_testkit::{Golden, Prepared, checkpoint, skip, smallest_graph, target_dir};
use std::sync::Arc;

/// Sequences that take part, and tokens that each of them can have.
const SEQUENCES: usize = 5;
const MOST_TOKENS: usize = 256;

/// A micro model in F32.
pub fn open() -> Option<Prepared> {
    let folder = checkpoint(&Golden::load("micro-0-f32"))?;
    let types = |stored| BuildOptions { weights: stored, activations: Dtype::F32, kv_cache: Dtype::F32.into() };
    Some(Prepared::open(&folder, MOST_TOKENS, types))
}

pub fn sim(wave: u32) -> SimOptions {
    SimOptions { wave, memory_bytes: 1 << 30, ..SimOptions::default() }
}

/// Graphs of a mode for few sizes.
pub fn graphs(mode: GraphMode) -> GraphOptions {
    let (decode_sizes, prefill_sizes) = (Some(vec![1, 4]), Some(vec![64, 128]));
    GraphOptions { mode, decode_sizes, prefill_sizes, ..GraphOptions::default() }
}

/// The model on a device; `None`, said aloud, where there is no compiler.
pub fn load(
    prepared: &Prepared,
    runtime: &Arc<SimRuntime>,
    graphs: GraphOptions,
) -> Option<Result<GpuBackend, DeviceError>> {
    load_compiled(prepared, runtime, graphs, None)
}

/// The same, compiled or not.
pub fn load_compiled(
    prepared: &Prepared,
    runtime: &Arc<SimRuntime>,
    graphs: GraphOptions,
    compile: Option<CompileOptions>,
) -> Option<Result<GpuBackend, DeviceError>> {
    let kernels = KernelOptions { cache_dir: Some(target_dir().join("test-kernels")), ..KernelOptions::default() };
    let options = GpuOptions { kernels, graphs, compile, ..GpuOptions::default() };
    let Prepared { checkpoint, program, limits, pools } = prepared;
    match GpuBackend::load(runtime.clone(), program, checkpoint, *limits, *pools, &options, &|_, _| {}) {
        Err(error @ DeviceError::NoCode { .. }) => {
            skip("graphs on the simulated GPU", &error.to_string());
            None
        }
        loaded => Some(loaded),
    }
}

/// Sequences on their way, the same on both backends.
pub struct Pair {
    eager: GpuBackend,
    graphs: GpuBackend,
    vocab_size: usize,
    /// Tokens of each sequence, and how many of them have been computed.
    sequences: Vec<(Vec<u32>, usize)>,
}

impl Pair {
    pub fn new(prepared: &Prepared, wave: u32, graphs: GpuBackend) -> Option<Pair> {
        let eager = load(prepared, &SimRuntime::new(sim(wave)), GraphOptions::default())?.unwrap();
        let vocab_size = prepared.program.vocab_size;
        let prompt = |sequence: usize| {
            (0..150).map(|token| ((token * 7 + sequence * 31 + token * token) % vocab_size) as u32).collect()
        };
        let sequences = (0..SEQUENCES).map(|sequence| (prompt(sequence), 0)).collect();
        Some(Pair { eager, graphs, vocab_size, sequences })
    }

    /// Computes some more tokens of some sequences: `(sequence, tokens, whether its logits are wanted)`, one token being
    /// decoded, several being a piece of a prompt. The tokens that follow must be the same on both backends, and become
    /// the sequences' next ones. Gives the cell that the step was replayed in: the smallest that suits it.
    pub fn step(&mut self, parts: &[(usize, usize, bool)], on_device: bool) -> Cell {
        let mut step = Step::default();
        for &(sequence, len, wanted) in parts {
            let (tokens, done) = &mut self.sequences[sequence];
            let row = step.tokens.len();
            step.tokens.extend_from_slice(&tokens[*done..*done + len]);
            let blocks = step.block_table.len();
            // Blocks of a sequence lie apart and backwards in the pool, so that a wrong address is a wrong result.
            let each = MOST_TOKENS / BLOCK_TOKENS;
            let table = (0..each).rev().map(|block| (block * SEQUENCES + sequence) as u32);
            step.block_table.extend(table.take((*done + len).div_ceil(BLOCK_TOKENS)));
            step.segments.push(Segment {
                row: row as u32,
                len: len as u32,
                position: *done as u32,
                scan: if len > 1 { len as u32 } else { 0 },
                slot: (SEQUENCES - 1 - sequence) as u32,
                blocks: blocks as u32,
                num_blocks: (step.block_table.len() - blocks) as u32,
            });
            step.logit_rows.extend(wanted.then_some((row + len - 1) as u32));
            *done += len;
        }
        let cell = smallest_graph(self.graphs.cells(), &step.shape());

        let expected: Vec<Vec<f32>> =
            self.eager.execute(&step).unwrap().into_logits().chunks(self.vocab_size).map(<[f32]>::to_vec).collect();
        let chosen: Vec<u32> = expected.iter().map(|logits| best(logits)).collect();
        if on_device {
            step.sampling = vec![RowSampling { top_p: 1.0, ..RowSampling::default() }; step.logit_rows.len()];
        }
        self.graphs.begin(&step, cell).unwrap();
        match self.graphs.finish().unwrap() {
            StepOutput::Chosen(got) => {
                let got: Vec<u32> = got.rows.iter().map(|row| row.unwrap().token).collect();
                assert_eq!(got, chosen, "{cell}: {parts:?}");
            }
            StepOutput::Logits(got) => {
                for (got, expected) in got.chunks(self.vocab_size).zip(&expected) {
                    let most = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    // The order of sums depends on the number of rows that a recording is for.
                    assert!(most < 1e-4 && best(got) == best(expected), "{cell}: {parts:?}: {most}");
                }
            }
        }
        let wanted = parts.iter().filter(|(.., wanted)| *wanted).map(|(sequence, ..)| *sequence);
        for (sequence, token) in wanted.zip(chosen) {
            let (tokens, done) = &mut self.sequences[sequence];
            tokens.truncate(*done);
            tokens.push(token);
        }
        cell
    }
}

fn best(logits: &[f32]) -> u32 {
    assert!(logits.iter().all(|logit| logit.is_finite()));
    (0..logits.len()).fold(0, |best, token| if logits[token] > logits[best] { token } else { best }) as u32
}
