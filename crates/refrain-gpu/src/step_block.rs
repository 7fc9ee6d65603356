//! The block in device memory that tells kernels what a step is: `kernels/step.h`. Written on the host, brought over by
//! one copy a step; kernels hold pointers into it that never change.

mod sampling;
#[cfg(test)]
mod tests;

use crate::kernel::Count;
use bytemuck::{Pod, Zeroable, bytes_of, cast_slice};
use refrain_device::{BLOCK_TOKENS, DevicePtr, Step, StepLimits};
use sampling::{AdjustmentWords, RowSamplingWords};

/// Tokens of a piece, and of a chunk of the scan.
pub const PIECE_TOKENS: usize = refrain_device::SCAN_CHUNK;

/// `Step` of `step.h`: the addresses of the parts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct StepPointers {
    /// `StepHeader`.
    pub header: u64,
    /// `[T]` ids.
    pub tokens: u64,
    /// `[T]` segment of a row.
    pub row_segment: u64,
    /// `[T]` position of a row in its sequence.
    pub row_position: u64,
    /// `[R]`.
    pub segments: u64,
    /// Block ids of all segments.
    pub block_table: u64,
    /// `[S]`.
    pub logit_rows: u64,
    /// All pieces, those of prefills first.
    pub pieces: u64,
    /// Pieces for the chunked scan.
    pub chunks: u64,
    /// Sequences with chunks.
    pub scans: u64,
    /// Pieces for the recurrence.
    pub recurrent: u64,
    /// `[S]`, where tokens are chosen.
    pub sampling: u64,
    /// Adjustments of all rows. They lie behind what a step uses of the block table, so that the copy of a step stays
    /// short; this is the address of the table, and the header says how far behind it.
    pub adjustments: u64,
}

/// The counts of a step, on which grids depend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// Rows.
    pub tokens: u32,
    /// Sequences.
    pub segments: u32,
    /// Rows that want logits.
    pub logit_rows: u32,
    /// Pieces of sequences with more than one token.
    pub prefill_pieces: u32,
    /// All pieces.
    pub pieces: u32,
    /// Chunks of the scan.
    pub chunks: u32,
    /// Sequences with chunks.
    pub scans: u32,
    /// Sequences with tokens for the recurrence.
    pub recurrent: u32,
    /// Those of them that have more than one token in the step.
    pub long_recurrent: u32,
    /// Sequences with a single token, which is for the scan.
    pub scanned_singles: u32,
    /// Logit rows, where tokens are chosen.
    pub sampled: u32,
    /// The same, where some of them have adjustments.
    pub adjusted: u32,
    /// The same, where some of them are drawn.
    pub drawn: u32,
    /// The same, where some of them want log-probabilities.
    pub logprobs: u32,
}

impl StepCounts {
    /// Nothing is chosen: the logits are wanted.
    pub fn without_sampling(&mut self) {
        (self.sampled, self.adjusted, self.drawn, self.logprobs) = (0, 0, 0, 0);
    }

    /// One of them.
    pub fn of(&self, count: Count) -> u32 {
        match count {
            Count::Tokens => self.tokens,
            Count::LogitRows => self.logit_rows,
            Count::Segments => self.segments,
            Count::PrefillPieces => self.prefill_pieces,
            Count::DecodePieces => self.pieces - self.prefill_pieces,
            Count::Pieces => self.pieces,
            Count::Chunks => self.chunks,
            Count::Scans => self.scans,
            Count::Recurrent => self.recurrent,
            Count::ScannedDecodePieces if self.scanned_singles == 0 => 0,
            Count::ScannedDecodePieces => self.pieces - self.prefill_pieces,
            Count::LongRecurrent if self.long_recurrent == 0 => 0,
            Count::LongRecurrent => self.recurrent,
            Count::Sampled => self.sampled,
            Count::Adjusted => self.adjusted,
            Count::Drawn => self.drawn,
            Count::Logprobs => self.logprobs,
            Count::AdjustedLogprobs => self.adjusted.min(self.logprobs),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SegmentWords {
    row: u32,
    len: u32,
    position: u32,
    scan: u32,
    slot: u32,
    blocks: u32,
    num_blocks: u32,
    reserved: u32,
}

/// `Piece` of `step.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct Piece {
    row: u32,
    len: u32,
    position: u32,
    segment: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Scan {
    segment: u32,
    first_chunk: u32,
    chunks: u32,
    reserved: u32,
}

/// Where the parts of the block lie, for steps within some limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepLayout {
    offsets: Offsets,
    /// Size of the block.
    pub bytes: usize,
}

/// Byte offsets, in the order in which the parts lie. The block table is last, and behind what a step uses of it come the
/// adjustments, so that the copy of a step ends with what it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Offsets {
    segments: usize,
    scans: usize,
    recurrent: usize,
    logit_rows: usize,
    sampling: usize,
    pieces: usize,
    chunks: usize,
    tokens: usize,
    row_segment: usize,
    row_position: usize,
    block_table: usize,
}

/// `KX_CARRIED` of `step.h`: the token is what a logit row of the step before has chosen.
pub(crate) const CARRIED: u32 = 1 << 31;

const HEADER_BYTES: usize = 64;

impl StepLayout {
    /// The layout for steps within `limits`.
    pub fn new(limits: &StepLimits) -> StepLayout {
        let (tokens, segments) = (limits.max_tokens, limits.max_segments);
        // A segment that begins and ends inside a piece has one more than its length says.
        let pieces = tokens / PIECE_TOKENS + 2 * segments;
        let blocks = segments * limits.max_model_len.div_ceil(BLOCK_TOKENS);
        let mut end = HEADER_BYTES;
        let mut part = |count: usize, bytes: usize| {
            let start = end;
            end = (start + count * bytes).next_multiple_of(64);
            start
        };
        let offsets = Offsets {
            segments: part(segments, size_of::<SegmentWords>()),
            scans: part(segments, size_of::<Scan>()),
            recurrent: part(segments, size_of::<Piece>()),
            logit_rows: part(limits.max_logit_rows, 4),
            sampling: part(limits.max_logit_rows, size_of::<RowSamplingWords>()),
            pieces: part(pieces, size_of::<Piece>()),
            chunks: part(pieces, size_of::<Piece>()),
            tokens: part(tokens, 4),
            row_segment: part(tokens, 4),
            row_position: part(tokens, 4),
            block_table: part(blocks, 4),
        };
        let bytes = end + limits.max_adjustments() * size_of::<AdjustmentWords>();
        StepLayout { offsets, bytes }
    }

    /// The addresses of the parts of a block at `base`.
    pub fn pointers(&self, base: DevicePtr) -> StepPointers {
        let at = |offset: usize| base.offset(offset).0;
        let offsets = &self.offsets;
        StepPointers {
            header: base.0,
            tokens: at(offsets.tokens),
            row_segment: at(offsets.row_segment),
            row_position: at(offsets.row_position),
            segments: at(offsets.segments),
            block_table: at(offsets.block_table),
            logit_rows: at(offsets.logit_rows),
            pieces: at(offsets.pieces),
            chunks: at(offsets.chunks),
            scans: at(offsets.scans),
            recurrent: at(offsets.recurrent),
            sampling: at(offsets.sampling),
            adjustments: at(offsets.block_table),
        }
    }

    /// Writes a valid step into `block`, [`StepLayout::bytes`] long. Gives its counts and how many leading bytes must be
    /// copied.
    pub fn write(&self, step: &Step, block: &mut [u8]) -> (StepCounts, usize) {
        let offsets = &self.offsets;
        let mut writer = Writer { block };
        let mut counts = StepCounts {
            tokens: step.tokens.len() as u32,
            segments: step.segments.len() as u32,
            logit_rows: step.logit_rows.len() as u32,
            ..StepCounts::default()
        };
        writer.put(offsets.tokens, cast_slice(&step.tokens));
        for carried in &step.carried {
            writer.item(offsets.tokens, carried.row, &(CARRIED | carried.logit_row));
        }
        writer.put(offsets.logit_rows, cast_slice(&step.logit_rows));
        writer.put(offsets.block_table, cast_slice(&step.block_table));
        for (index, segment) in step.segments.iter().enumerate() {
            let index = index as u32;
            let words = SegmentWords {
                row: segment.row,
                len: segment.len,
                position: segment.position,
                scan: segment.scan,
                slot: segment.slot,
                blocks: segment.blocks,
                num_blocks: segment.num_blocks,
                reserved: 0,
            };
            writer.item(offsets.segments, index, &words);
            for row in 0..segment.len {
                writer.item(offsets.row_segment, segment.row + row, &index);
                writer.item(offsets.row_position, segment.row + row, &(segment.position + row));
            }
            if segment.scan > 0 {
                let first_chunk = counts.chunks;
                for piece in pieces(index, segment.row, segment.position, segment.scan) {
                    writer.item(offsets.chunks, counts.chunks, &piece);
                    counts.chunks += 1;
                }
                let chunks = counts.chunks - first_chunk;
                let scan = Scan { segment: index, first_chunk, chunks, reserved: 0 };
                writer.item(offsets.scans, counts.scans, &scan);
                counts.scans += 1;
            }
            if segment.scan < segment.len {
                let (row, position) = (segment.row + segment.scan, segment.position + segment.scan);
                let piece = Piece { row, len: segment.len - segment.scan, position, segment: index };
                writer.item(offsets.recurrent, counts.recurrent, &piece);
                counts.recurrent += 1;
                counts.long_recurrent += u32::from(segment.len > 1);
            } else {
                counts.scanned_singles += u32::from(segment.len == 1);
            }
        }
        for single in [false, true] {
            let segments = step.segments.iter().enumerate().filter(|(_, segment)| (segment.len == 1) == single);
            for (index, segment) in segments {
                for piece in pieces(index as u32, segment.row, segment.position, segment.len) {
                    writer.item(offsets.pieces, counts.pieces, &piece);
                    counts.pieces += 1;
                }
            }
            if !single {
                counts.prefill_pieces = counts.pieces;
            }
        }
        let mut used = offsets.block_table + step.block_table.len() * 4;
        let mut adjustments = 0;
        if !step.sampling.is_empty() {
            used = used.next_multiple_of(size_of::<AdjustmentWords>());
            adjustments = ((used - offsets.block_table) / size_of::<AdjustmentWords>()) as u32;
            self.write_sampling(step, &mut writer, &mut counts, used);
            used += step.adjustments.len() * size_of::<AdjustmentWords>();
        }
        let header = [
            counts.tokens,
            counts.segments,
            counts.logit_rows,
            counts.prefill_pieces,
            counts.pieces,
            counts.chunks,
            counts.scans,
            counts.recurrent,
            counts.sampled,
            adjustments,
        ];
        writer.put(0, cast_slice(&header));
        (counts, used)
    }
}

/// Cuts rows where their position is a multiple of [`PIECE_TOKENS`].
fn pieces(segment: u32, row: u32, position: u32, len: u32) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = len - done;
        let room = PIECE_TOKENS as u32 - (position + done) % PIECE_TOKENS as u32;
        let piece = Piece { row: row + done, len: left.min(room), position: position + done, segment };
        done += piece.len;
        (left > 0).then_some(piece)
    })
}

struct Writer<'a> {
    block: &'a mut [u8],
}

impl Writer<'_> {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.block[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn item<T: Pod>(&mut self, offset: usize, index: u32, item: &T) {
        self.put(offset + index as usize * size_of::<T>(), bytes_of(item));
    }
}
