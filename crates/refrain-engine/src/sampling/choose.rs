//! Chooses a token from a row of adjusted logits: temperature, min-p, top-k, top-p, then one draw.

use super::exp::exp_non_positive;
use super::select::{Candidate, best, top_k};
use crate::SamplingParams;

/// Below this temperature the best token is taken, as in vLLM.
pub(crate) const GREEDY_BELOW: f32 = 1e-5;

/// Weights that are summed together, so that a draw needs to look at one block only.
const BLOCK: usize = 256;

/// How many of the best tokens top-p looks at first. Models rarely want more.
const TOP_P_FIRST: usize = 128;

/// Buffers that are reused from row to row.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// The best tokens.
    pub found: Vec<Candidate>,
    /// `e^((logit - max) / temperature)` of each token, so the best token's is 1.
    weights: Vec<f32>,
    /// Sums of `BLOCK` weights.
    sums: Vec<f64>,
}

/// The token for the random number `uniform` in `[0, 1)`; `None` when every logit is `-inf`.
///
/// min-p, top-k and top-p each keep a head of the list sorted best first (larger logit, then smaller id), and are
/// applied in this order; top-p sees the probabilities of what the other two have kept.
pub(crate) fn choose(logits: &[f32], params: &SamplingParams, uniform: f64, scratch: &mut Scratch) -> Option<u32> {
    let best = best(logits)?;
    if params.temperature < GREEDY_BELOW {
        return Some(best.token);
    }
    let scale = params.temperature.recip();
    let weight = |logit: f32| {
        let weight = exp_non_positive((logit - best.logit) * scale);
        if weight >= params.min_p { weight } else { 0.0 }
    };
    let k = params.top_k as usize;
    if k > 0 && k < logits.len() {
        top_k(logits, k, &mut scratch.found);
        let total = scratch.found.iter().map(|candidate| f64::from(weight(candidate.logit))).sum();
        let kept = top_p(&scratch.found, weight, total, params.top_p).unwrap_or(scratch.found.len());
        return draw(&scratch.found[..kept], weight, uniform);
    }

    scratch.weights.resize(logits.len(), 0.0);
    scratch.sums.clear();
    for (weights, logits) in scratch.weights.chunks_mut(BLOCK).zip(logits.chunks(BLOCK)) {
        for (slot, &logit) in weights.iter_mut().zip(logits) {
            *slot = weight(logit);
        }
        scratch.sums.push(f64::from(lane_sum(weights)));
    }
    let total: f64 = scratch.sums.iter().sum();
    if params.top_p < 1.0 {
        let mut k = TOP_P_FIRST;
        loop {
            top_k(logits, k, &mut scratch.found);
            let whole = scratch.found.len() < k;
            if let Some(kept) = top_p(&scratch.found, weight, total, params.top_p) {
                return draw(&scratch.found[..kept], weight, uniform);
            } else if whole {
                return draw(&scratch.found, weight, uniform);
            }
            k *= 8;
        }
    }

    let mut target = uniform * total;
    let mut chosen = best.token;
    for (block, &sum) in scratch.sums.iter().enumerate() {
        if target >= sum {
            target -= sum;
            continue;
        }
        for (offset, &weight) in scratch.weights[block * BLOCK..].iter().take(BLOCK).enumerate() {
            if weight > 0.0 {
                chosen = (block * BLOCK + offset) as u32;
                target -= f64::from(weight);
                if target < 0.0 {
                    break;
                }
            }
        }
        break;
    }
    Some(chosen)
}

/// The sum of one block, in eight lanes so that it vectorises.
fn lane_sum(weights: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (eights, rest) = weights.as_chunks::<8>();
    for eight in eights {
        for (lane, &weight) in lanes.iter_mut().zip(eight) {
            *lane += weight;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Length of the shortest head whose weight reaches `p` of `total`; `None` when all of `sorted` doesn't.
fn top_p(sorted: &[Candidate], weight: impl Fn(f32) -> f32, total: f64, p: f32) -> Option<usize> {
    let enough = f64::from(p) * total;
    let mut sum = 0.0;
    for (index, candidate) in sorted.iter().enumerate() {
        sum += f64::from(weight(candidate.logit));
        if sum >= enough {
            return Some(index + 1);
        }
    }
    None
}

/// Draws from `kept` in proportion to the weights.
fn draw(kept: &[Candidate], weight: impl Fn(f32) -> f32, uniform: f64) -> Option<u32> {
    let total: f64 = kept.iter().map(|candidate| f64::from(weight(candidate.logit))).sum();
    let mut target = uniform * total;
    let mut chosen = kept.first()?.token;
    for candidate in kept {
        let weight = weight(candidate.logit);
        if weight > 0.0 {
            chosen = candidate.token;
            target -= f64::from(weight);
            if target < 0.0 {
                break;
            }
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Probabilities by the definition, in double precision; `None` when a cut lies too near to a tie in rounding.
    fn reference(logits: &[f32], params: &SamplingParams) -> Option<Vec<f64>> {
        let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let max = f64::from(logits[order[0]]);
        let weight = |i: usize| ((f64::from(logits[i]) - max) / f64::from(params.temperature)).exp();
        let min_p = f64::from(params.min_p);
        if order.iter().any(|&i| (weight(i) - min_p).abs() < 1e-6 && min_p > 0.0) {
            return None;
        }
        order.retain(|&i| weight(i) >= min_p);
        if params.top_k > 0 {
            order.truncate(params.top_k as usize);
        }
        if params.top_p < 1.0 {
            let enough = f64::from(params.top_p) * order.iter().map(|&i| weight(i)).sum::<f64>();
            let (mut sum, mut kept) = (0.0, 0);
            while sum < enough {
                sum += weight(order[kept]);
                kept += 1;
                if (sum - enough).abs() < 1e-5 * enough {
                    return None;
                }
            }
            order.truncate(kept);
        }
        let total: f64 = order.iter().map(|&i| weight(i)).sum();
        let mut probabilities = vec![0.0; logits.len()];
        order.iter().for_each(|&i| probabilities[i] = weight(i) / total);
        Some(probabilities)
    }

    fn params() -> impl Strategy<Value = SamplingParams> {
        let top_k = prop_oneof![Just(0u32), 1u32..12, 100u32..2000];
        let p = prop_oneof![2 => Just(1.0f32), 5 => 0.01f32..1.0];
        let min_p = prop_oneof![2 => Just(0.0f32), 1 => 0.0f32..0.5];
        let temperature = prop_oneof![Just(1.0f32), 0.05f32..5.0];
        (temperature, top_k, p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            ..SamplingParams::default()
        })
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![6 => -8.0f32..8.0, 2 => (-3i8..4).prop_map(f32::from), 1 => Just(f32::NEG_INFINITY)];
        (prop::collection::vec(value, 0..1200), 0.0f32..4.0).prop_map(|(mut logits, last)| {
            logits.push(last);
            logits
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]
        /// The choice is an inverse distribution function of `uniform`, so a fine grid of it gives the distribution.
        #[test]
        fn the_distribution_is_that_of_the_definition(logits in logits(), params in params()) {
            let Some(want) = reference(&logits, &params) else { return Ok(()) };
            let mut scratch = Scratch::default();
            let mut counts = vec![0u32; logits.len()];
            let draws = 2000;
            for i in 0..draws {
                let uniform = (f64::from(i) + 0.5) / f64::from(draws);
                counts[choose(&logits, &params, uniform, &mut scratch).unwrap() as usize] += 1;
            }
            for (token, (&count, &probability)) in counts.iter().zip(&want).enumerate() {
                prop_assert!(count == 0 || probability > 0.0, "token {token} was cut off but chosen");
                let error = (f64::from(count) / f64::from(draws) - probability).abs();
                // Each token is one stretch of the grid: at most one point off at either end.
                prop_assert!(error <= 1.1 / f64::from(draws), "token {token}: {count} of {draws}, want {probability}");
            }
        }

        #[test]
        fn any_finite_logits_give_a_token_that_is_not_forbidden(
            logits in prop::collection::vec(prop_oneof![any::<f32>().prop_filter("finite", |x| x.is_finite()), Just(f32::NEG_INFINITY)], 1..300),
            params in params(),
            temperature in prop_oneof![Just(0.0f32), Just(1e-4f32), Just(1000.0f32)],
            uniform in prop_oneof![Just(0.0), Just(1.0 - f64::EPSILON / 2.0), 0.0..1.0],
        ) {
            let params = SamplingParams { temperature, ..params };
            match choose(&logits, &params, uniform, &mut Scratch::default()) {
                Some(token) => prop_assert!(logits[token as usize] > f32::NEG_INFINITY),
                None => prop_assert!(logits.iter().all(|&logit| logit == f32::NEG_INFINITY)),
            }
        }
    }

    #[test]
    fn greedy_takes_the_smallest_id_among_equals() {
        let greedy = SamplingParams { temperature: 0.0, top_p: 0.5, top_k: 3, ..SamplingParams::default() };
        assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], &greedy, 0.9, &mut Scratch::default()), Some(1));
        assert_eq!(choose(&[f32::NEG_INFINITY; 3], &greedy, 0.9, &mut Scratch::default()), None);
    }

    #[test]
    fn top_p_of_a_flat_row_widens_until_it_is_reached() {
        let logits = vec![0.5; 5000];
        let params = SamplingParams { top_p: 0.9, ..SamplingParams::default() };
        let mut scratch = Scratch::default();
        assert_eq!(choose(&logits, &params, 1.0 - 1e-9, &mut scratch), Some(4499));
        assert_eq!(choose(&logits, &params, 0.0, &mut scratch), Some(0));
    }
}
