use super::*;
use proptest::prelude::*;
use refrain_device::Segment;

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
