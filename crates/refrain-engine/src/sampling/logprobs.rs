//! Log-probabilities of the raw logits.

use super::exp::exp_non_positive;
use super::select::{Candidate, best, top_k};
use crate::{PositionLogprobs, TokenLogprob};

/// ln Σ e^logit, `max` being the largest logit.
fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    // f32 sums over short stretches vectorise; their f64 sum keeps the error of a whole vocabulary small.
    let sum: f64 = logits
        .chunks(256)
        .map(|chunk| {
            let mut lanes = [0.0f32; 8];
            let (eights, rest) = chunk.as_chunks::<8>();
            for eight in eights {
                for (lane, &logit) in lanes.iter_mut().zip(eight) {
                    *lane += exp_non_positive(logit - max);
                }
            }
            f64::from(lanes.iter().sum::<f32>() + rest.iter().map(|&logit| exp_non_positive(logit - max)).sum::<f32>())
        })
        .sum();
    f64::from(max) + sum.ln()
}

/// Log-probabilities of the token `chosen` and of the `top` best ones. Ranks and order: the larger logit first, among
/// equals the smaller id. `found` is scratch space.
pub(crate) fn position_logprobs(
    logits: &[f32],
    chosen: u32,
    top: usize,
    found: &mut Vec<Candidate>,
) -> PositionLogprobs {
    let max = best(logits).map_or(0.0, |candidate| candidate.logit);
    let total = log_sum_exp(logits, max);
    let logprob = |logit: f32| (f64::from(logit) - total).clamp(f64::from(f32::MIN), 0.0) as f32;
    top_k(logits, top, found);
    let top = found
        .iter()
        .zip(1..)
        .map(|(candidate, rank)| TokenLogprob { token: candidate.token, logprob: logprob(candidate.logit), rank })
        .collect();
    let logit = logits[chosen as usize];
    let (before, after) = logits.split_at(chosen as usize);
    let better =
        before.iter().filter(|&&other| other >= logit).count() + after.iter().filter(|&&other| other > logit).count();
    PositionLogprobs { chosen: TokenLogprob { token: chosen, logprob: logprob(logit), rank: better as u32 + 1 }, top }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_double_precision(
            logits in prop::collection::vec(prop_oneof![-30.0f32..30.0, (-3i8..3).prop_map(f32::from)], 1..600),
            chosen in any::<prop::sample::Index>(),
            top in 0usize..21,
        ) {
            let chosen = chosen.index(logits.len());
            let got = position_logprobs(&logits, chosen as u32, top, &mut Vec::new());
            let total = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            prop_assert_eq!(got.top.len(), top.min(logits.len()));
            let rank = order.iter().position(|&token| token == chosen).unwrap() + 1;
            prop_assert_eq!(got.chosen.rank as usize, rank);
            for (place, entry) in got.top.iter().enumerate() {
                prop_assert_eq!((entry.token as usize, entry.rank as usize), (order[place], place + 1));
            }
            for entry in got.top.iter().chain([&got.chosen]) {
                let want = f64::from(logits[entry.token as usize]) - total;
                prop_assert!((f64::from(entry.logprob) - want).abs() < 1e-5 * (1.0 - want), "{entry:?}, want {want}");
                prop_assert!(entry.logprob <= 0.0);
            }
        }
    }

    #[test]
    fn a_large_vocabulary_keeps_its_precision() {
        let logits = vec![0.0; 248_320];
        let got = position_logprobs(&logits, 248_319, 1, &mut Vec::new());
        assert!((f64::from(got.chosen.logprob) + 248_320f64.ln()).abs() < 1e-6);
        assert_eq!((got.chosen.rank, got.top[0].token), (248_320, 0));
    }

    #[test]
    fn extreme_logits_do_not_overflow() {
        let got = position_logprobs(&[f32::MAX, f32::MIN, 0.0], 1, 1, &mut Vec::new());
        assert_eq!(got.top[0].logprob, 0.0);
        assert_eq!(got.chosen.logprob, f32::MIN);
    }
}
