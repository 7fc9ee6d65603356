//! A device for tests: it answers with the prompt, again and again, each time with an end-of-sequence token after it.

use refrain_device::{Backend, Cell, DeviceError, DeviceInfo, PoolSizes, Step, StepLimits, StepOutput};
use std::collections::HashMap;
use std::time::Duration;

/// Vocabulary of the embedded model.
pub const VOCAB: usize = 8192;
/// `<|im_end|>` of the embedded model.
pub const EOS: u32 = 8185;
/// A step with this token (`</tool_response>`) fails.
pub const FAILS: u32 = 8191;
/// The logit of the token that comes next; all others lie between 0 and 1.
const SURE: f32 = 12.0;

/// One sequence as the device knows it.
#[derive(Default)]
struct Sequence {
    tokens: Vec<u32>,
    prompt: usize,
}

pub struct Parrot {
    info: DeviceInfo,
    limits: StepLimits,
    pools: PoolSizes,
    /// How long a step takes.
    step_time: Duration,
    sequences: HashMap<u32, Sequence>,
    logits: Vec<f32>,
}

impl Parrot {
    pub fn new(limits: StepLimits, pools: PoolSizes, step_time: Duration) -> Self {
        let info = DeviceInfo { kind: "parrot", name: "a parrot".to_owned(), compute: "none".to_owned() };
        Self { info, limits, pools, step_time, sequences: HashMap::new(), logits: Vec::new() }
    }

    /// What follows the token at `position` of a sequence.
    fn next(sequence: &Sequence, position: usize) -> u32 {
        let prompt = &sequence.tokens[..sequence.prompt];
        match (position + 1).checked_sub(sequence.prompt) {
            Some(generated) => *prompt.get(generated % (prompt.len() + 1)).unwrap_or(&EOS),
            None => prompt[position + 1],
        }
    }
}

impl Backend for Parrot {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn begin(&mut self, step: &Step, _: Cell) -> Result<(), DeviceError> {
        step.validate(&self.limits, &self.pools, VOCAB)?;
        std::thread::sleep(self.step_time);
        if step.tokens.contains(&FAILS) {
            return Err(DeviceError::InvalidStep { what: "the parrot is out of order".to_owned() });
        }
        self.logits.clear();
        for segment in &step.segments {
            let sequence = self.sequences.entry(segment.slot).or_default();
            if segment.position == 0 {
                *sequence = Sequence::default();
            }
            let rows = segment.row as usize..(segment.row + segment.len) as usize;
            sequence.tokens.extend(&step.tokens[rows.clone()]);
            sequence.prompt += segment.scan as usize;
            for row in step.logit_rows.iter().filter(|&&row| rows.contains(&(row as usize))) {
                let position = (segment.position + row - segment.row) as usize;
                let start = self.logits.len();
                let noise =
                    |token: usize| (token.wrapping_mul(0x9e37_79b1).wrapping_add(position) % 1009) as f32 / 1009.0;
                self.logits.extend((0..VOCAB).map(noise));
                self.logits[start + Self::next(sequence, position) as usize] = SURE;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        Ok(StepOutput::Logits(&mut self.logits))
    }
}
