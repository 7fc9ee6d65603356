//! A model for tests whose logits are a hash of the whole history of a sequence, as read back from the blocks and the
//! slot that each step names. A wrong block, slot, position, order or scan length changes every later token.
//!
//! A step is computed when it is finished, and not before: whoever relies on a result too early doesn't find it.

use crate::sampling::device::on_host::choose_row;
use refrain_device::{
    BLOCK_TOKENS, Backend, Cell, Chosen, DeviceError, DeviceInfo, PoolSizes, SCAN_CHUNK, SamplingLimits, Segment, Step,
    StepLimits, StepOutput,
};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender};

pub const VOCAB: usize = 50;
/// The model ends an answer with it, now and then.
pub const EOS: u32 = 0;
/// The device is lost in a step with this token.
pub const LOSES: u32 = 44;
/// A step with this token fails with an error that can't even be printed, which ends the engine thread.
pub const KILLS: u32 = 45;
/// A step with this token can't begin.
pub const REFUSED: u32 = 46;
/// A step with this token fails.
pub const FAILS: u32 = 47;
/// A step with this token panics.
pub const PANICS: u32 = 48;
/// The logits after this token are not finite.
pub const NOT_FINITE: u32 = 49;

fn mix(hash: u64, value: u64) -> u64 {
    let mut z = (hash ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The recurrent state after one more token. A scanned chunk leaves a mark where it begins, so that cutting a prompt
/// elsewhere than at multiples of the chunk shows, and so does scanning a generated token.
fn next_state(state: u64, token: u32, scanned: bool, chunk_begins: bool) -> u64 {
    let marked = if scanned && chunk_begins { mix(state, 1 << 40) } else { state };
    mix(marked, u64::from(token) << 1 | u64::from(scanned))
}

fn kv(token: u32, position: usize) -> u64 {
    mix(u64::from(token), position as u64)
}

fn fill_logits(row: &mut [f32], hash: u64) {
    for (id, logit) in row.iter_mut().enumerate() {
        *logit = (mix(hash, id as u64) >> 40) as f32 / (1u64 << 24) as f32 * 8.0 - 4.0;
    }
    // Trouble comes from prompts only.
    row[LOSES as usize..].fill(-30.0);
}

/// The logits after each token of `tokens`, straight from the definition.
pub fn reference(tokens: &[u32], prompt: usize) -> Vec<f32> {
    let (mut state, mut attention) = (7, 0);
    for (position, &token) in tokens.iter().enumerate() {
        state = next_state(state, token, position < prompt, position % SCAN_CHUNK == 0);
        attention = mix(attention, kv(token, position));
    }
    let mut row = vec![0.0; VOCAB];
    fill_logits(&mut row, mix(state, attention));
    row
}

#[derive(Debug)]
struct Unprintable;

impl std::fmt::Display for Unprintable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("a bug outside of the device");
    }
}

impl std::error::Error for Unprintable {}

/// Lets a test see each step and hold it.
pub struct Gate {
    /// Gets each step when it begins.
    pub steps: Sender<Step>,
    /// Each step takes one before it ends; when the sender is gone, steps go freely.
    pub permits: Receiver<()>,
}

pub struct HashModel {
    info: DeviceInfo,
    limits: StepLimits,
    pools: PoolSizes,
    slots: Vec<u64>,
    blocks: Vec<[u64; BLOCK_TOKENS]>,
    logits: Vec<f32>,
    gate: Option<Gate>,
    sampling: Option<SamplingLimits>,
    depth: usize,
    begun: VecDeque<Step>,
    /// What the last step has chosen.
    chosen: Chosen,
}

impl HashModel {
    /// With `sampling`, it chooses the tokens of steps that are within these limits. `depth` steps may have begun before
    /// the first of them ends.
    pub fn new(
        limits: StepLimits,
        pools: PoolSizes,
        gate: Option<Gate>,
        sampling: Option<SamplingLimits>,
        depth: usize,
    ) -> Self {
        Self {
            sampling,
            depth,
            begun: VecDeque::new(),
            chosen: Chosen::default(),
            info: DeviceInfo::default(),
            limits,
            pools,
            slots: vec![u64::MAX; pools.slots],
            blocks: vec![[u64::MAX; BLOCK_TOKENS]; pools.blocks],
            logits: Vec::new(),
            gate,
        }
    }

    fn run(&mut self, step: &Step, segment: &Segment, wanted: &mut std::iter::Peekable<std::slice::Iter<'_, u32>>) {
        let table = &step.block_table[segment.blocks as usize..][..segment.num_blocks as usize];
        let mut state = if segment.position == 0 { 7 } else { self.slots[segment.slot as usize] };
        for offset in 0..segment.len as usize {
            let row = segment.row as usize + offset;
            let (token, position) = (step.tokens[row], segment.position as usize + offset);
            let begins = offset == 0 || position % SCAN_CHUNK == 0;
            state = next_state(state, token, offset < segment.scan as usize, begins);
            self.blocks[table[position / BLOCK_TOKENS] as usize][position % BLOCK_TOKENS] = kv(token, position);
            if wanted.next_if(|&&wanted| wanted as usize == row).is_some() {
                let attention = (0..=position).fold(0, |hash, past| {
                    mix(hash, self.blocks[table[past / BLOCK_TOKENS] as usize][past % BLOCK_TOKENS])
                });
                let start = self.logits.len();
                self.logits.resize(start + VOCAB, 0.0);
                fill_logits(&mut self.logits[start..], mix(state, attention));
                if token == NOT_FINITE {
                    self.logits[start + 3] = f32::NAN;
                }
            }
        }
        self.slots[segment.slot as usize] = state;
    }
}

impl Backend for HashModel {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn sampling(&self) -> Option<SamplingLimits> {
        self.sampling
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn begin(&mut self, step: &Step, _: Cell) -> Result<(), DeviceError> {
        step.validate(&self.limits, &self.pools, VOCAB)?;
        assert!(self.begun.len() < self.depth, "too many steps have begun");
        assert!(!self.begun.iter().any(Step::wants_logits), "a step begins behind one that wants logits");
        assert!(step.carried.is_empty() || !self.begun.is_empty(), "a token is carried that the host has");
        if step.tokens.contains(&REFUSED) {
            return Err(DeviceError::InvalidStep { what: "a test wanted it refused".to_owned() });
        }
        if let Some(gate) = &self.gate {
            // A test that has let go of its ends lets every step pass.
            let _ = gate.steps.send(step.clone());
        }
        self.begun.push_back(step.clone());
        Ok(())
    }

    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        let mut step = self.begun.pop_front().expect("a step has begun");
        if let Some(gate) = &self.gate {
            let _ = gate.permits.recv();
        }
        for carried in &step.carried {
            let chosen = self.chosen.rows.get(carried.logit_row as usize);
            step.tokens[carried.row as usize] = chosen.map_or(0, |row| row.map_or(0, |ranked| ranked.token));
        }
        self.chosen.clear();
        self.logits.clear();
        let mut wanted = step.logit_rows.iter().peekable();
        for segment in &step.segments {
            self.run(&step, segment, &mut wanted);
        }
        assert!(!step.tokens.contains(&PANICS), "a kernel has a bug");
        if step.tokens.contains(&LOSES) {
            let (device, call, text) = ("hash:0".to_owned(), "a step".to_owned(), "an illegal address".to_owned());
            return Err(DeviceError::Lost { device, call, code: 700, text });
        }
        if step.tokens.contains(&KILLS) {
            let source = std::io::Error::other(Unprintable);
            return Err(DeviceError::OutOfMemory { bytes: 1, what: "a test", source });
        }
        if step.tokens.contains(&FAILS) {
            // As after a real failure, nothing that the step touched can be used.
            step.segments.iter().for_each(|segment| self.slots[segment.slot as usize] = u64::MAX);
            return Err(DeviceError::InvalidStep { what: "a test asked for it".to_owned() });
        }
        if step.wants_logits() {
            return Ok(StepOutput::Logits(&mut self.logits));
        }
        if step.sampling.is_empty() {
            return Ok(StepOutput::Chosen(&self.chosen));
        }
        let limits = self.sampling.expect("only a device that chooses is asked to");
        assert!(step.adjustments.len() <= limits.max_adjustments);
        for (row, logits) in step.sampling.iter().zip(self.logits.chunks(VOCAB)) {
            assert!(row.logprobs.is_none_or(|top| top as usize <= limits.max_top));
            choose_row(logits, row, &step.adjustments, &mut self.chosen);
        }
        Ok(StepOutput::Chosen(&self.chosen))
    }
}
