//! Two sequences whose tokens the device chooses, as steps that can be in flight together.

use refrain_device::{BLOCK_TOKENS, Carried, RowSampling, Segment, Step, StepOutput};

const PROMPT: [u32; 2] = [20, 9];

/// A step in which two sequences go on from `position` of their answers: the whole prompts at 0, else one token each,
/// which is given or else what the step before chooses. The second sequence draws.
pub fn answer_step(position: u32, vocab_size: usize, tokens: Option<[u32; 2]>) -> Step {
    let mut step = Step::default();
    for sequence in 0..2 {
        let prompt = PROMPT[sequence];
        let row = step.tokens.len() as u32;
        if position == 0 {
            step.tokens.extend((0..prompt).map(|token| (token * 7 + sequence as u32) % vocab_size as u32));
        } else if let Some(tokens) = tokens {
            step.tokens.push(tokens[sequence]);
        } else {
            step.carried.push(Carried { row, logit_row: sequence as u32 });
            step.tokens.push(0);
        }
        let len = step.tokens.len() as u32 - row;
        let begin = if position == 0 { 0 } else { prompt + position - 1 };
        let num_blocks = (begin + len).div_ceil(BLOCK_TOKENS as u32);
        let blocks = step.block_table.len() as u32;
        step.block_table.extend((0..num_blocks).map(|block| block * 2 + sequence as u32));
        let scan = if position == 0 { len } else { 0 };
        step.segments.push(Segment { row, len, position: begin, scan, slot: sequence as u32, blocks, num_blocks });
        step.logit_rows.push(row + len - 1);
        let (temperature, uniform) = (sequence as f32, f64::from(position * 37 % 101) / 101.0);
        step.sampling.push(RowSampling { temperature, uniform, top_p: 0.9, ..RowSampling::default() });
    }
    step
}

/// The tokens that the device chose for both.
pub fn answer_tokens(output: StepOutput<'_>) -> [u32; 2] {
    let StepOutput::Chosen(chosen) = output else { panic!("tokens were wanted") };
    [0, 1].map(|row| chosen.rows[row].unwrap().token)
}
