//! Steps to measure with: of a given shape, with tokens that mean nothing.

use refrain_device::{BLOCK_TOKENS, PoolSizes, RowSampling, SCAN_CHUNK, Segment, Step, StepShape};

/// What steps are made for.
#[derive(Clone, Copy, Debug)]
pub struct StepWorld {
    /// Pools of which nothing is in use.
    pub pools: PoolSizes,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Whether the device chooses tokens.
    pub chooses: bool,
}

/// A step of this shape. Sequences beside the longest are shorter where the pool has no room for so many long ones.
pub(super) fn step(shape: &StepShape, world: &StepWorld) -> Step {
    let mut step = Step::default();
    let context = shape.context as usize;
    let prompts = (shape.sequences - shape.decodes) as usize;
    let longest = context.div_ceil(BLOCK_TOKENS);
    let left = world.pools.blocks.saturating_sub(longest) / (shape.sequences as usize - 1).max(1);
    let of_others = context.min(left.max(1) * BLOCK_TOKENS);
    let mut rows = (shape.rows - shape.decodes) as usize;
    let mut blocks = 0;
    for sequence in 0..shape.sequences as usize {
        let most = if sequence == 0 { context } else { of_others };
        let decodes = sequence < shape.decodes as usize;
        let len = if decodes { 1 } else { rows.div_ceil(prompts + shape.decodes as usize - sequence) };
        rows -= if decodes { 0 } else { len };
        let position = most.max(len) - len;
        let position = if decodes { position } else { position / SCAN_CHUNK * SCAN_CHUNK };
        let num_blocks = (position + len).div_ceil(BLOCK_TOKENS);
        let row = step.tokens.len();
        step.segments.push(Segment {
            row: row as u32,
            len: len as u32,
            position: position as u32,
            scan: if decodes { 0 } else { len as u32 },
            slot: sequence as u32,
            blocks: step.block_table.len() as u32,
            num_blocks: num_blocks as u32,
        });
        step.tokens.extend((row..row + len).map(|row| (row * 7919 % world.vocab_size) as u32));
        step.block_table.extend((blocks..blocks + num_blocks).map(|block| (block % world.pools.blocks) as u32));
        blocks += num_blocks;
        step.logit_rows.push((row + len - 1) as u32);
    }
    if world.chooses {
        let greedy = RowSampling { top_p: 1.0, ..RowSampling::default() };
        step.sampling = vec![greedy; step.logit_rows.len()];
    }
    step
}
