//! How far logits are from a golden.

use crate::TOP;
use std::fmt;

/// Differences between an engine's log-probabilities and the reference's, over the reference's best tokens.
#[derive(Clone, Debug, Default)]
pub struct Difference {
    absolute: Vec<f32>,
    regret: f32,
}

impl Difference {
    /// Adds one position: the engine's logits `[vocab]`, the reference's best tokens and their log-probabilities.
    pub fn add(&mut self, logits: &[f32], tokens: &[u32; TOP], logprobs: &[f32; TOP]) {
        assert!(logits.iter().all(|logit| logit.is_finite()), "a logit is not finite");
        let (best, highest) =
            logits.iter().copied().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a }).expect("a vocabulary");
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
        let log_sum = f64::from(highest) + sum.ln();
        for (&token, &reference) in tokens.iter().zip(logprobs) {
            self.absolute.push((f64::from(logits[token as usize]) - log_sum - f64::from(reference)).abs() as f32);
        }
        // A token that is not even among the reference's best has an unknown, large regret.
        let place = tokens.iter().position(|&token| token as usize == best);
        self.regret = self.regret.max(place.map_or(f32::INFINITY, |place| logprobs[0] - logprobs[place]));
    }

    /// Adds the positions of another.
    pub fn merge(&mut self, other: Difference) {
        self.absolute.extend(other.absolute);
        self.regret = self.regret.max(other.regret);
    }

    /// Largest difference of a log-probability, in nats.
    pub fn max(&self) -> f32 {
        self.absolute.iter().copied().fold(0.0, f32::max)
    }

    /// Mean difference.
    pub fn mean(&self) -> f32 {
        self.absolute.iter().sum::<f32>() / self.absolute.len().max(1) as f32
    }

    /// The difference that 99 % don't exceed.
    pub fn p99(&self) -> f32 {
        let mut sorted = self.absolute.clone();
        sorted.sort_by(f32::total_cmp);
        sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0)
    }

    /// Largest arg-max regret: how much less probable, by the reference, the engine's best token is than its own.
    pub fn regret(&self) -> f32 {
        self.regret
    }

    /// The gate for F32 arithmetic; an error says what is too large.
    pub fn check_f32(&self) -> Result<(), String> {
        if !self.absolute.is_empty() && self.max() <= 1e-3 { Ok(()) } else { Err(format!("F32 gate: {self}")) }
    }

    /// The gate for BF16 arithmetic; an error says what is too large.
    pub fn check_bf16(&self) -> Result<(), String> {
        let passes = self.regret <= 0.20 && self.mean() <= 0.06 && self.p99() <= 0.20;
        if !self.absolute.is_empty() && passes { Ok(()) } else { Err(format!("BF16 gate: {self}")) }
    }

    /// The gate for keys and values of eight bits, in either arithmetic; an error says what is too large.
    pub fn check_fp8_cache(&self) -> Result<(), String> {
        if !self.absolute.is_empty() && self.mean() <= 0.10 {
            Ok(())
        } else {
            Err(format!("gate of FP8 caches: {self}"))
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (max, mean, p99) = (self.max(), self.mean(), self.p99());
        write!(f, "max {max:.5}, mean {mean:.5}, p99 {p99:.5}, regret {:.4}", self.regret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits whose log-probabilities are known: a vocabulary of 40 in which token `t` has weight `2^-t`.
    fn reference() -> (Vec<f32>, [u32; TOP], [f32; TOP]) {
        let logits: Vec<f32> = (0..40).map(|token| -(token as f32) * std::f32::consts::LN_2).collect();
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let tokens = std::array::from_fn(|place| place as u32);
        (logits.clone(), tokens, std::array::from_fn(|place| logits[place] - sum.ln() as f32))
    }

    #[test]
    fn the_same_logits_pass_both_gates_whatever_is_added_to_all() {
        let (mut logits, tokens, logprobs) = reference();
        logits.iter_mut().for_each(|logit| *logit += 7.5);
        let mut difference = Difference::default();
        difference.add(&logits, &tokens, &logprobs);
        difference.check_f32().unwrap();
        difference.check_bf16().unwrap();
    }

    #[test]
    fn another_best_token_is_regretted_by_its_distance() {
        let (mut logits, tokens, logprobs) = reference();
        logits[2] = 0.1;
        let mut difference = Difference::default();
        difference.add(&logits, &tokens, &logprobs);
        assert!((difference.regret() - 2.0 * std::f32::consts::LN_2).abs() < 1e-4, "{difference}");
        assert!(difference.check_f32().is_err() && difference.check_bf16().is_err());
        logits[30] = 1.0;
        difference.add(&logits, &tokens, &logprobs);
        assert_eq!(difference.regret(), f32::INFINITY);
    }

    #[test]
    fn nothing_compared_is_not_a_pass() {
        assert!(Difference::default().check_f32().is_err() && Difference::default().check_bf16().is_err());
        assert!(Difference::default().check_fp8_cache().is_err());
    }
}
