use super::sampling::{ROW_GIVEN, ROW_LOGPROBS, ROW_ONLY_ADJUSTED};
use super::*;
use proptest::prelude::*;
use refrain_device::{Adjustment, RowSampling, Segment};

const LIMITS: StepLimits = StepLimits { max_tokens: 600, max_segments: 6, max_logit_rows: 8, max_model_len: 1000 };

/// Segments as (tokens, position, tokens of the scan), with as many logit rows as fit.
fn step(parts: &[(u32, u32, u32)]) -> Step {
    let mut step = Step::default();
    for (index, &(len, position, scan)) in parts.iter().enumerate() {
        let row = step.tokens.len() as u32;
        let blocks = step.block_table.len() as u32;
        let num_blocks = (position + len).div_ceil(BLOCK_TOKENS as u32);
        step.tokens.extend((0..len).map(|token| 1000 * index as u32 + token));
        step.block_table.extend((0..num_blocks).map(|block| block * 7 + index as u32));
        let slot = 5 - index as u32;
        step.segments.push(Segment { row, len, position, scan, slot, blocks, num_blocks });
        step.logit_rows.push(row + len - 1);
    }
    step
}

fn parts() -> impl Strategy<Value = Vec<(u32, u32, u32)>> {
    prop::collection::vec((1u32..100, 0u32..800, 0u32..200), 1..=6)
        .prop_map(|parts| parts.into_iter().map(|(len, position, scan)| (len, position, scan.min(len))).collect())
}

fn read<T: Pod>(block: &[u8], offset: usize, count: u32) -> Vec<T> {
    let bytes = &block[offset..offset + count as usize * size_of::<T>()];
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

proptest! {
    #[test]
    fn every_row_is_in_one_piece_and_in_one_of_scan_and_recurrence(parts in parts()) {
        let (step, layout) = (step(&parts), StepLayout::new(&LIMITS));
        let mut block = vec![0xCD; layout.bytes];
        let (counts, used) = layout.write(&step, &mut block);
        prop_assert!(used <= layout.bytes);
        let block = &block[..used];
        let offsets = &layout.offsets;
        let rows = |pieces: &[Piece]| {
            let mut rows: Vec<u32> = pieces.iter().flat_map(|piece| piece.row..piece.row + piece.len).collect();
            rows.sort_unstable();
            rows
        };
        let pieces: Vec<Piece> = read(block, offsets.pieces, counts.pieces);
        let all: Vec<u32> = (0..step.tokens.len() as u32).collect();
        prop_assert_eq!(rows(&pieces), all.clone());
        for (index, piece) in pieces.iter().enumerate() {
            let segment = &step.segments[piece.segment as usize];
            prop_assert_eq!(piece.position - segment.position, piece.row - segment.row);
            prop_assert!(piece.position % 64 + piece.len <= 64);
            prop_assert_eq!((index as u32) < counts.prefill_pieces, segment.len > 1);
        }
        let chunks: Vec<Piece> = read(block, offsets.chunks, counts.chunks);
        let recurrent: Vec<Piece> = read(block, offsets.recurrent, counts.recurrent);
        let mut both = rows(&chunks);
        both.extend(rows(&recurrent));
        both.sort_unstable();
        prop_assert_eq!(both, all);
        for scan in read::<Scan>(block, offsets.scans, counts.scans) {
            let own = &chunks[scan.first_chunk as usize..(scan.first_chunk + scan.chunks) as usize];
            let segment = &step.segments[scan.segment as usize];
            prop_assert!(own.iter().all(|chunk| chunk.segment == scan.segment));
            prop_assert!(own.windows(2).all(|pair| pair[0].row + pair[0].len == pair[1].row));
            prop_assert_eq!(own.iter().map(|chunk| chunk.len).sum::<u32>(), segment.scan);
        }
        let positions: Vec<u32> = read(block, offsets.row_position, counts.tokens);
        let segments: Vec<u32> = read(block, offsets.row_segment, counts.tokens);
        for row in 0..step.tokens.len() {
            let segment = &step.segments[segments[row] as usize];
            prop_assert_eq!(positions[row] - segment.position, row as u32 - segment.row);
        }
        let table: Vec<u32> = read(block, offsets.block_table, step.block_table.len() as u32);
        prop_assert_eq!(table, step.block_table.clone());
    }
}

#[test]
fn sampling_lies_where_the_header_says() {
    let layout = StepLayout::new(&LIMITS);
    let mut block = vec![0xCD; layout.bytes];
    let mut step = step(&[(3, 20, 3), (1, 40, 0)]);
    let (counts, without) = layout.write(&step, &mut block);
    assert_eq!((counts.sampled, counts.adjusted, counts.drawn, counts.logprobs), (0, 0, 0, 0));
    assert_eq!(read::<u32>(&block, 32, 2), [0, 0]);

    step.sampling = vec![
        RowSampling { given: Some(7), logprobs: Some(3), ..RowSampling::default() },
        RowSampling {
            uniform: 0.25,
            temperature: 0.5,
            adjustments: 1..3,
            only_adjusted: true,
            ..RowSampling::default()
        },
    ];
    let change = |token| Adjustment { token, bias: 2.0, ..Adjustment::default() };
    step.adjustments = vec![change(1), change(2), Adjustment { generated: true, forbidden: true, ..change(3) }];
    let (counts, used) = layout.write(&step, &mut block);
    assert_eq!((counts.sampled, counts.adjusted, counts.drawn, counts.logprobs), (2, 2, 2, 2));
    let [sampled, first] = read::<u32>(&block, 32, 2)[..] else { panic!("two words") };
    let start = layout.offsets.block_table + first as usize * 16;
    assert!(sampled == 2 && start >= without && start < without + 16);
    assert_eq!(used, start + 3 * 16);
    let rows: Vec<RowSamplingWords> = read(&block, layout.offsets.sampling, 2);
    assert_eq!((rows[0].flags, rows[0].given, rows[0].top), (ROW_GIVEN | ROW_LOGPROBS, 7, 3));
    assert_eq!((rows[1].flags, rows[1].adjustments, rows[1].num_adjustments), (ROW_ONLY_ADJUSTED, 1, 2));
    assert_eq!((rows[1].uniform, rows[1].temperature), (0.25, 0.5));
    let adjustments: Vec<AdjustmentWords> = read(&block, start, 3);
    assert_eq!((adjustments[2].token, adjustments[2].flags, adjustments[2].bias), (3, 5, 2.0));
    let table: Vec<u32> = read(&block, layout.offsets.block_table, step.block_table.len() as u32);
    assert_eq!(table, step.block_table);
}
