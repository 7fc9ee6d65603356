//! Drives a backend directly, step by step, as the engine's scheduler would.

use refrain_device::{BLOCK_TOKENS, Backend, Cell, PoolSizes, Replay, Segment, Step, StepLimits, StepShape};
use refrain_model::{Checkpoint, ModelConfig};
use refrain_program::{BuildOptions, Dtype, Program};
use std::path::Path;

/// Sequences that may be in a step.
pub const MAX_SEQUENCES: usize = 8;

/// Tokens of a sequence: more than the longest golden prompt.
const MAX_MODEL_LEN: usize = 1536;

const BLOCKS_EACH: usize = MAX_MODEL_LEN.div_ceil(BLOCK_TOKENS);

/// A checkpoint with its program, ready for any backend.
pub struct Prepared {
    /// The weights.
    pub checkpoint: Checkpoint,
    /// The program.
    pub program: Program,
    /// Limits of the steps that [`Runner`] makes.
    pub limits: StepLimits,
    /// Pools for them.
    pub pools: PoolSizes,
}

impl Prepared {
    /// Opens a checkpoint. `types` are made from the type in which its matrices are stored.
    pub fn open(folder: &Path, max_tokens: usize, types: impl FnOnce(Dtype) -> BuildOptions) -> Prepared {
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let config = ModelConfig::from_json(&text).unwrap();
        let checkpoint = Checkpoint::open(folder).unwrap();
        checkpoint.validate(&config).unwrap();
        let program = Program::build(&config, &types(checkpoint.widest_matrix_dtype())).unwrap();
        let limits =
            StepLimits { max_tokens, max_segments: MAX_SEQUENCES, max_logit_rows: 320, max_model_len: MAX_MODEL_LEN };
        let pools = PoolSizes { blocks: BLOCKS_EACH * MAX_SEQUENCES, slots: MAX_SEQUENCES };
        Prepared { checkpoint, program, limits, pools }
    }
}

/// Some tokens of one sequence: part of a step.
pub struct Part<'a> {
    /// Which sequence, below [`MAX_SEQUENCES`].
    pub sequence: usize,
    /// The whole prompt.
    pub ids: &'a [u32],
    /// The positions that this step computes.
    pub positions: std::ops::Range<usize>,
    /// Through the chunked scan, or one by one through the recurrence.
    pub scan: bool,
    /// Positions whose logits are wanted; those outside `positions` are ignored.
    pub wanted: &'a [usize],
}

/// A loaded model and the places of its sequences.
pub struct Runner {
    backend: Box<dyn Backend>,
    vocab_size: usize,
    choose: Box<Choose>,
}

/// How a step is run, of the cells that a backend has.
type Choose = dyn Fn(&[Cell], &StepShape) -> Cell;

/// The smallest graph that a step can be replayed from; without one, the compiled program where there is one.
pub fn smallest_graph(cells: &[Cell], step: &StepShape) -> Cell {
    let graphs = cells.iter().filter(|cell| cell.replay != Replay::None && cell.suits(step));
    let smallest = graphs.min_by_key(|cell| (cell.rows, std::cmp::Reverse(cell.replay)));
    let launched = || cells.iter().rfind(|cell| cell.replay == Replay::None).expect("there is always eager");
    *smallest.unwrap_or_else(launched)
}

impl Runner {
    /// Drives a backend that was loaded with the limits and pools of [`Prepared`].
    pub fn new(backend: Box<dyn Backend>, vocab_size: usize) -> Runner {
        Runner { backend, vocab_size, choose: Box::new(|_, _| Cell::EAGER) }
    }

    /// The same, but steps are run in this way.
    pub fn in_cell(self, cell: Cell) -> Runner {
        Runner { choose: Box::new(move |_, _| cell), ..self }
    }

    /// The same, but steps are replayed wherever there is a graph for them.
    pub fn in_graphs(self) -> Runner {
        Runner { choose: Box::new(smallest_graph), ..self }
    }

    /// Runs one step of several sequences. Gives the logits of each wanted position: (index of the part, position,
    /// logits), in order.
    pub fn step(&mut self, parts: &[Part<'_>], mut visit: impl FnMut(usize, usize, &[f32])) {
        let mut step = Step::default();
        let mut wanted = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let row = step.tokens.len();
            let (begin, len) = (part.positions.start, part.positions.len());
            step.tokens.extend_from_slice(&part.ids[part.positions.clone()]);
            let first_block = step.block_table.len();
            // Blocks of a sequence lie apart and backwards in the pool, so that a wrong address is a wrong result.
            let blocks = (0..BLOCKS_EACH).rev().map(|block| (block * MAX_SEQUENCES + part.sequence) as u32);
            step.block_table.extend(blocks.take(part.positions.end.div_ceil(BLOCK_TOKENS)));
            step.segments.push(Segment {
                row: row as u32,
                len: len as u32,
                position: begin as u32,
                scan: if part.scan { len as u32 } else { 0 },
                slot: (MAX_SEQUENCES - 1 - part.sequence) as u32,
                blocks: first_block as u32,
                num_blocks: (step.block_table.len() - first_block) as u32,
            });
            for &position in part.wanted.iter().filter(|position| part.positions.contains(position)) {
                step.logit_rows.push((row + position - begin) as u32);
                wanted.push((index, position));
            }
        }
        let cell = (self.choose)(self.backend.cells(), &step.shape());
        self.backend.begin(&step, cell).unwrap();
        let logits = self.backend.finish().unwrap().into_logits();
        assert_eq!(logits.len(), wanted.len() * self.vocab_size);
        for (&(index, position), logits) in wanted.iter().zip(logits.chunks_exact(self.vocab_size)) {
            visit(index, position, logits);
        }
    }

    /// Prefills one prompt, cut where `cuts` says (ascending, without the ends), as one of the sequences. Gives the
    /// logits of the wanted positions.
    pub fn prefill(&mut self, sequence: usize, ids: &[u32], cuts: &[usize], wanted: &[usize]) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        let mut begin = 0;
        let inside = cuts.iter().copied().filter(|&cut| cut < ids.len());
        for end in inside.chain([ids.len()]).collect::<Vec<_>>() {
            let part = Part { sequence, ids, positions: begin..end, scan: true, wanted };
            self.step(&[part], |_, _, logits| all.push(logits.to_vec()));
            begin = end;
        }
        all
    }
}

/// The bits of logits, to compare exactly.
pub fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
}
