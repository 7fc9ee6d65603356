//! What a backend that chooses tokens itself is told about each logit row, and what it gives for it.
//!
//! The order of the stages, and what each means, is that of the engine's own sampling: adjustments, temperature, min-p,
//! top-k, top-p, one draw. Log-probabilities and ranks are of the raw logits, before all of it.

use std::ops::Range;

/// What a backend can choose by itself. Steps that want more are given no [`RowSampling`], and answered with logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingLimits {
    /// Adjustments in one step, over all rows.
    pub max_adjustments: usize,
    /// Best tokens of a row whose log-probabilities can be given.
    pub max_top: usize,
}

/// What is wanted of one logit row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowSampling {
    /// The logits are divided by it; 0 takes the best token, without a draw. Otherwise large enough that its inverse is
    /// finite.
    pub temperature: f32,
    /// Keeps so many of the best tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the shortest head of the list whose probabilities reach it; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the best one; 0 keeps all.
    pub min_p: f32,
    /// The random number of this draw, uniform in `[0, 1)`.
    pub uniform: f64,
    /// Divides positive and multiplies negative logits of tokens that have occurred.
    pub repetition: f32,
    /// Subtracted from the logits of tokens that the answer has.
    pub presence: f32,
    /// Its part of [`crate::Step::adjustments`].
    pub adjustments: Range<u32>,
    /// Only tokens that have an adjustment can be chosen.
    pub only_adjusted: bool,
    /// This token stands at the next place already: nothing is chosen, its log-probability is wanted.
    pub given: Option<u32>,
    /// Give the log-probability of the chosen or given token, and of so many best ones.
    pub logprobs: Option<u32>,
}

/// A change of one logit before the choice, in the order of the fields. A logit that isn't forbidden stays finite: the
/// results of bias and penalties are clamped to the range of f32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Adjustment {
    /// Which token. Those of a row are ascending, each once.
    pub token: u32,
    /// It can't be chosen, whatever the rest says.
    pub forbidden: bool,
    /// Added.
    pub bias: f32,
    /// It is in prompt or answer: [`RowSampling::repetition`] applies.
    pub occurred: bool,
    /// It is in the answer: [`Adjustment::frequency`] and then [`RowSampling::presence`] are subtracted.
    pub generated: bool,
    /// The frequency penalty times the number of times that the answer has it.
    pub frequency: f32,
}

/// Why a row has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoToken {
    /// A raw logit is not a finite number.
    NotFinite,
    /// The adjustments forbid every token.
    NoneAllowed,
}

/// A token with its log-probability.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankedToken {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability. 0 where none was asked for.
    pub logprob: f32,
    /// 1 for the most probable token, among equals the smaller id first. 0 where no log-probabilities were asked for.
    pub rank: u32,
}

/// What was chosen for the logit rows of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chosen {
    /// The chosen or given token of each row, `[S]`.
    pub rows: Vec<Result<RankedToken, NoToken>>,
    /// The best tokens of the rows that asked for them, best first, one row after another. Of row `i` they are
    /// `top_ends[i - 1]..top_ends[i]`, and as many as were asked for, or the whole vocabulary.
    pub top: Vec<RankedToken>,
    /// Where each row's part of [`Chosen::top`] ends, `[S]`.
    pub top_ends: Vec<u32>,
}

impl Chosen {
    /// The best tokens of a row.
    pub fn top_of(&self, row: usize) -> &[RankedToken] {
        let begin = if row == 0 { 0 } else { self.top_ends[row - 1] };
        &self.top[begin as usize..self.top_ends[row] as usize]
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.top.clear();
        self.top_ends.clear();
    }
}

/// Says what is wrong with the sampling of a step of `logit_rows` rows.
pub(crate) fn validate(
    sampling: &[RowSampling],
    adjustments: &[Adjustment],
    logit_rows: usize,
    vocab_size: usize,
) -> Result<(), String> {
    if sampling.is_empty() {
        return Ok(());
    }
    if sampling.len() != logit_rows {
        return Err(format!("{} rows of sampling for {logit_rows} logit rows", sampling.len()));
    }
    for (index, row) in sampling.iter().enumerate() {
        let Some(own) = adjustments.get(row.adjustments.start as usize..row.adjustments.end as usize) else {
            let (range, len) = (&row.adjustments, adjustments.len());
            return Err(format!("row {index} has adjustments {range:?} of {len}"));
        };
        let ascending = own.windows(2).all(|pair| pair[0].token < pair[1].token);
        if !ascending || own.last().is_some_and(|last| last.token as usize >= vocab_size) {
            return Err(format!("row {index} has adjustments that are not ascending token ids below {vocab_size}"));
        }
        if let Some(given) = row.given.filter(|&given| given as usize >= vocab_size) {
            return Err(format!("row {index} has the given token {given} outside the vocabulary of {vocab_size}"));
        }
        let in_range = (row.temperature == 0.0 || row.temperature.recip().is_finite())
            && row.temperature >= 0.0
            && row.top_p > 0.0
            && (0.0..=1.0).contains(&row.min_p)
            && (0.0..1.0).contains(&row.uniform);
        if row.given.is_none() && !in_range {
            return Err(format!(
                "row {index} has temperature {}, top-p {}, min-p {}, uniform {}",
                row.temperature, row.top_p, row.min_p, row.uniform
            ));
        }
    }
    Ok(())
}
