//! Which cells a mode has, and the largest step that each of them serves.

use super::options::GraphOptions;
use crate::ops::Recorded;
use crate::{StepCounts, StepLayout};
use refrain_device::{BLOCK_TOKENS, Cell, DeviceError, GraphMode, Part, Replay, SCAN_CHUNK, Segment, Step, StepLimits};

/// The cells that are wanted, the largest first, and those of the compiled program, where there is one, last.
pub(crate) fn wanted(options: &GraphOptions, limits: &StepLimits, compiled: bool) -> Result<Vec<Cell>, DeviceError> {
    let as_it_is = if compiled && !options.as_it_is_too { Vec::new() } else { of_program(options, limits, false)? };
    let compiled = if compiled { of_program(options, limits, true)? } else { Vec::new() };
    Ok([as_it_is, compiled].concat())
}

/// The cells of one program.
fn of_program(options: &GraphOptions, limits: &StepLimits, compiled: bool) -> Result<Vec<Cell>, DeviceError> {
    let (decode, prefill) = options.sizes(limits)?;
    let cells = |replay, part, sizes: &[u32]| -> Vec<Cell> {
        sizes.iter().map(|&rows| Cell { compiled, replay, part, rows }).collect()
    };
    let full_decode = || cells(Replay::Full, Part::Decode, &decode);
    let full = || [full_decode(), cells(Replay::Full, Part::Prefill, &prefill)].concat();
    let mut wanted = match options.mode {
        GraphMode::None => Vec::new(),
        GraphMode::Piecewise => {
            let mut sizes = [&decode[..], &prefill].concat();
            sizes.sort_unstable();
            sizes.dedup();
            cells(Replay::Piecewise, Part::Any, &sizes)
        }
        GraphMode::Full => full(),
        GraphMode::FullDecodeOnly => full_decode(),
        GraphMode::FullAndPiecewise => [full(), cells(Replay::Piecewise, Part::Any, &prefill)].concat(),
    };
    // Of the same size, the steps that are most frequent come last: what is recorded last is given up last.
    wanted.sort_by_key(|cell| {
        let rank = match cell.part {
            Part::Decode => 2,
            Part::Prefill => 1,
            Part::Any => 0,
        };
        (std::cmp::Reverse(cell.rows), rank)
    });
    Ok(wanted)
}

/// Whether an op is part of a cell's graphs. The others are launched between them.
pub(crate) fn records(cell: &Cell, op: Recorded) -> bool {
    match op {
        Recorded::Always => true,
        Recorded::OfOneKind => cell.replay == Replay::Full,
        // Steps with pieces of prompts have logit rows or not, and reading the weights of the head for none would cost
        // more than launching what comes behind the layers.
        Recorded::WithLogits => cell.part == Part::Decode,
    }
}

/// Counts that no step of the cell exceeds: grids made for them serve every step of it, since kernels look into the
/// step block for how much of the grid there is something to do.
pub(crate) fn most_counts(cell: &Cell, layout: &StepLayout, limits: &StepLimits) -> StepCounts {
    let rows = cell.rows;
    match cell.part {
        Part::Decode => {
            let one = |row| Segment { row, len: 1, position: 1, scan: 0, slot: row, blocks: row, num_blocks: 1 };
            counts_of((0..rows).map(one).collect(), rows, layout)
        }
        Part::Prefill => {
            let num_blocks = rows.div_ceil(BLOCK_TOKENS as u32);
            let all = Segment { row: 0, len: rows, position: 0, scan: rows, slot: 0, blocks: 0, num_blocks };
            counts_of(vec![all], 0, layout)
        }
        Part::Any => {
            let most = |sequences: u32| rows.min(rows / SCAN_CHUNK as u32 + 2 * sequences);
            let segments = rows.min(limits.max_segments as u32);
            let prefill_pieces = most(segments.min(rows / 2));
            StepCounts {
                tokens: rows,
                segments,
                logit_rows: 0,
                prefill_pieces,
                pieces: prefill_pieces + segments,
                chunks: most(segments),
                scans: segments,
                recurrent: segments,
                ..StepCounts::default()
            }
        }
    }
}

fn counts_of(segments: Vec<Segment>, logit_rows: u32, layout: &StepLayout) -> StepCounts {
    let rows: u32 = segments.iter().map(|segment| segment.len).sum();
    let blocks = segments.iter().map(|segment| segment.num_blocks).sum::<u32>() as usize;
    let step = Step {
        tokens: vec![0; rows as usize],
        segments,
        block_table: vec![0; blocks],
        logit_rows: (0..logit_rows).collect(),
        ..Step::default()
    };
    layout.write(&step, &mut vec![0; layout.bytes]).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: StepLimits = StepLimits { max_tokens: 256, max_segments: 8, max_logit_rows: 72, max_model_len: 512 };

    fn names(mode: GraphMode) -> Vec<String> {
        let options = GraphOptions {
            mode,
            decode_sizes: Some(vec![1, 8]),
            prefill_sizes: Some(vec![8, 128]),
            ..GraphOptions::default()
        };
        wanted(&options, &LIMITS, false).unwrap().iter().map(Cell::to_string).collect()
    }

    #[test]
    fn each_mode_has_its_cells_and_the_largest_come_first() {
        assert_eq!(names(GraphMode::None), [""; 0]);
        assert_eq!(names(GraphMode::FullDecodeOnly), ["graph(decode, 8)", "graph(decode, 1)"]);
        assert_eq!(
            names(GraphMode::Full),
            ["graph(prefill, 128)", "graph(prefill, 8)", "graph(decode, 8)", "graph(decode, 1)"]
        );
        assert_eq!(names(GraphMode::Piecewise), ["piecewise(any, 128)", "piecewise(any, 8)", "piecewise(any, 1)"]);
        assert_eq!(
            names(GraphMode::FullAndPiecewise),
            [
                "piecewise(any, 128)",
                "graph(prefill, 128)",
                "piecewise(any, 8)",
                "graph(prefill, 8)",
                "graph(decode, 8)",
                "graph(decode, 1)"
            ]
        );
    }

    #[test]
    fn a_prefill_has_the_counts_of_its_one_piece() {
        let cell = Cell { compiled: false, replay: Replay::Full, part: Part::Prefill, rows: 130 };
        let counts = most_counts(&cell, &StepLayout::new(&LIMITS), &LIMITS);
        let expected = StepCounts {
            tokens: 130,
            segments: 1,
            prefill_pieces: 3,
            pieces: 3,
            chunks: 3,
            scans: 1,
            ..StepCounts::default()
        };
        assert_eq!(counts, expected);
    }

    proptest! {
        #[test]
        fn no_step_exceeds_the_counts_of_a_cell_that_suits_it(
            segments in proptest::collection::vec((1u32..80, 0u32..130, any::<bool>()), 1..8),
            rows in 1u32..=256,
        ) {
            let layout = StepLayout::new(&LIMITS);
            let mut step = Step::default();
            for (len, position, scan) in segments {
                let len = len.min(256 - step.tokens.len() as u32);
                if len == 0 {
                    break;
                }
                let num_blocks = (position + len).div_ceil(16);
                step.segments.push(Segment {
                    row: step.tokens.len() as u32,
                    len,
                    position,
                    scan: if scan { len } else { 0 },
                    slot: step.segments.len() as u32,
                    blocks: step.block_table.len() as u32,
                    num_blocks,
                });
                step.tokens.extend((0..len).map(|_| 0));
                step.block_table.extend((0..num_blocks).map(|_| 0));
            }
            let (counts, _) = layout.write(&step, &mut vec![0; layout.bytes]);
            let of = |counts: &StepCounts| {
                let decodes = counts.pieces - counts.prefill_pieces;
                [counts.tokens, counts.segments, counts.prefill_pieces, decodes, counts.chunks, counts.scans, counts.recurrent]
            };
            for (part, rows) in [(Part::Any, rows), (Part::Decode, rows.min(8)), (Part::Prefill, counts.tokens)] {
                let replay = if part == Part::Any { Replay::Piecewise } else { Replay::Full };
                let cell = Cell { compiled: false, replay, part, rows };
                if cell.suits(&step.shape()) {
                    let most = most_counts(&cell, &layout, &LIMITS);
                    prop_assert!(of(&counts).iter().zip(of(&most)).all(|(has, most)| *has <= most), "{counts:?} {most:?}");
                }
            }
        }
    }
}
