//! Steps of sequences whose blocks lie anywhere in the pool, and caches for them.

use super::caches::rounded_row;
use crate::check::{Buffer, Rig};
use crate::{StepCounts, StepPointers};
use refrain_device::{BLOCK_TOKENS, DeviceError, Segment, Step, StepLimits};
use refrain_program::{AttentionShape, CacheDtype, Dtype};

/// A step, and the pool that its blocks are of.
pub(super) struct Sequences {
    /// The step.
    pub step: Step,
    /// Within which it is.
    pub limits: StepLimits,
    /// Blocks of the pool, more than the sequences have.
    pub blocks: usize,
}

impl Sequences {
    /// Sequences by the position of their first row and the number of rows. Blocks are drawn.
    pub fn new(rig: &Rig, parts: &[(usize, usize)]) -> Sequences {
        let needed: Vec<usize> = parts.iter().map(|(position, len)| (position + len).div_ceil(BLOCK_TOKENS)).collect();
        let blocks = needed.iter().sum::<usize>() + 3;
        let mut pool: Vec<u32> = (0..blocks as u32).collect();
        for last in (1..blocks).rev() {
            pool.swap(last, (rig.random_u64() % (last as u64 + 1)) as usize);
        }
        let mut step = Step::default();
        for (&(position, len), needed) in parts.iter().zip(needed) {
            let row = step.tokens.len() as u32;
            step.tokens.extend(std::iter::repeat_n(0, len));
            step.segments.push(Segment {
                row,
                len: len as u32,
                position: position as u32,
                scan: 0,
                slot: step.segments.len() as u32,
                blocks: step.block_table.len() as u32,
                num_blocks: needed as u32,
            });
            step.block_table.extend(pool.drain(..needed));
        }
        Sequences { limits: limits(&step), step, blocks }
    }

    /// Some rows of one of the sequences as a step of their own, on the same blocks.
    pub fn only(&self, segment: usize, rows: std::ops::Range<usize>) -> Sequences {
        let whole = &self.step.segments[segment];
        let table = whole.blocks as usize..(whole.blocks + whole.num_blocks) as usize;
        let part = Segment {
            row: 0,
            len: rows.len() as u32,
            position: whole.position + rows.start as u32,
            blocks: 0,
            slot: 0,
            ..whole.clone()
        };
        let step = Step {
            tokens: vec![0; rows.len()],
            segments: vec![part],
            block_table: self.step.block_table[table].to_vec(),
            ..Step::default()
        };
        Sequences { limits: limits(&step), step, blocks: self.blocks }
    }

    /// Rows of the step.
    pub fn len(&self) -> usize {
        self.step.tokens.len()
    }

    /// Segment and position of every row.
    pub fn rows(&self) -> impl Iterator<Item = (&Segment, usize)> {
        let positions = |segment: &Segment| segment.position as usize..segment.context();
        self.step.segments.iter().flat_map(move |segment| positions(segment).map(move |position| (segment, position)))
    }

    /// Brings the step to the device.
    pub fn upload(&self, rig: &Rig) -> Result<(Buffer, StepPointers, StepCounts), DeviceError> {
        rig.step(&self.step, &self.limits)
    }

    /// Where the key of a position and head lies in a cache of the pool, in elements; its value lies
    /// [`values_offset`] further.
    pub fn key_at(&self, shape: &AttentionShape, segment: &Segment, position: usize, head: usize) -> usize {
        let block = self.step.block_table[segment.blocks as usize + position / BLOCK_TOKENS] as usize;
        let tokens = (block * 2 * shape.num_kv_heads + head) * BLOCK_TOKENS + position % BLOCK_TOKENS;
        tokens * shape.head_dim
    }

    /// Elements of a cache of the pool.
    pub fn cache_len(&self, shape: &AttentionShape) -> usize {
        self.blocks * 2 * values_offset(shape)
    }

    /// A cache with random keys and values up to the end of every sequence, and NaN everywhere else.
    pub fn random_cache(&self, rig: &Rig, shape: &AttentionShape, key_scale: f32, dtype: CacheDtype) -> Vec<f32> {
        let mut cache = vec![f32::NAN; self.cache_len(shape)];
        for segment in &self.step.segments {
            for position in 0..segment.context() {
                for head in 0..shape.num_kv_heads {
                    let key = self.key_at(shape, segment, position, head);
                    let value = key + values_offset(shape);
                    let width = shape.head_dim;
                    for (at, scale) in [(key, key_scale), (value, 1.0)] {
                        let row = rounded_row(&rig.random(width, scale, Dtype::F32), dtype);
                        cache[at..at + width].copy_from_slice(&row);
                    }
                }
            }
        }
        cache
    }
}

/// Elements between a key and its value.
pub(super) fn values_offset(shape: &AttentionShape) -> usize {
    shape.num_kv_heads * BLOCK_TOKENS * shape.head_dim
}

fn limits(step: &Step) -> StepLimits {
    StepLimits {
        max_tokens: step.tokens.len(),
        max_segments: step.segments.len(),
        max_logit_rows: 1,
        max_model_len: step.segments.iter().map(Segment::context).max().unwrap_or(1),
    }
}
