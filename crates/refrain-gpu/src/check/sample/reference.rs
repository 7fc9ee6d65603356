//! The definition of a choice, in double precision.

use refrain_device::{Adjustment, NoToken, RankedToken, RowSampling};

/// How wrong what came of a row is; infinity for what must be exact and isn't.
pub(super) fn row_error(
    logits: &[f32],
    row: &RowSampling,
    adjustments: &[Adjustment],
    got: &Result<RankedToken, NoToken>,
    top: &[RankedToken],
) -> f64 {
    let finite = logits.iter().all(|logit| logit.is_finite());
    let adjusted = adjusted(logits, row, adjustments);
    let order = best_first(&adjusted);
    let wrong = if !finite {
        Some(NoToken::NotFinite)
    } else {
        (row.given.is_none() && order.is_empty()).then_some(NoToken::NoneAllowed)
    };
    let got = match (got, wrong) {
        (Ok(got), None) => got,
        (Err(why), Some(wrong)) if *why == wrong => return 0.0,
        _ => return f64::INFINITY,
    };
    let choice = match row.given {
        Some(given) => exact(got.token == given),
        None if row.temperature == 0.0 => exact(got.token == greedy(&adjusted)),
        None => draw_error(&adjusted, &order, row, got.token),
    };
    choice.max(logprobs_error(logits, row, got, top))
}

fn exact(right: bool) -> f64 {
    if right { 0.0 } else { f64::INFINITY }
}

/// The first of the largest, by comparison as numbers.
fn greedy(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, token| if logits[token] > logits[best] { token } else { best }) as u32
}

/// The adjusted logits, with the roundings of f32 that the definition has.
fn adjusted(logits: &[f32], row: &RowSampling, adjustments: &[Adjustment]) -> Vec<f32> {
    let mut all = if row.only_adjusted { vec![f32::NEG_INFINITY; logits.len()] } else { logits.to_vec() };
    for change in adjustments {
        let mut value = (logits[change.token as usize] + change.bias).clamp(f32::MIN, f32::MAX);
        if change.occurred {
            value = if value > 0.0 { value / row.repetition } else { value * row.repetition };
        }
        if change.generated {
            value = value - change.frequency - row.presence;
        }
        let value = value.clamp(f32::MIN, f32::MAX);
        all[change.token as usize] = if change.forbidden { f32::NEG_INFINITY } else { value };
    }
    all
}

/// Tokens above -infinity: the larger logit first, among equals the smaller id.
fn best_first(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&token| logits[token] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order
}

/// A cut may fall one token this or that way where rounding decides, so the cuts are tried a little wider and narrower too.
const SHIFTS: [f64; 3] = [1.0, 1.0 + 2e-6, 1.0 - 2e-6];

/// How far the uniform number is from the token's stretch of the distribution function.
fn draw_error(logits: &[f32], order: &[usize], row: &RowSampling, token: u32) -> f64 {
    let tries = SHIFTS.iter().map(|widen| {
        let mut before = 0.0;
        for (other, probability) in distribution(logits, order, row, *widen) {
            let end = before + probability;
            if other == token as usize {
                // A weight that is no number of f32 must not be drawn.
                let possible = end > before;
                return if possible { (before - row.uniform).max(row.uniform - end).max(0.0) } else { f64::INFINITY };
            }
            before = end;
        }
        f64::INFINITY
    });
    tries.fold(f64::INFINITY, f64::min)
}

/// How much further from its probability the share of any token is than evenly spaced uniform numbers explain: its stretch
/// of the distribution function holds one more of them than its length says, or one less.
pub(super) fn share_error(logits: &[f32], row: &RowSampling, tokens: &[u32]) -> f64 {
    let order = best_first(logits);
    let draws = tokens.len() as f64;
    let tries = SHIFTS.iter().map(|widen| {
        let distribution = distribution(logits, &order, row, *widen);
        let mut drawn = vec![0.0; logits.len()];
        tokens.iter().for_each(|&token| drawn[token as usize] += 1.0);
        let mut worst: f64 = 0.0;
        for (token, probability) in distribution {
            worst = worst.max(((drawn[token] - draws * probability).abs() - 1.0) / draws);
            drawn[token] = 0.0;
        }
        // What is left was drawn and could not be.
        worst.max(exact(drawn.iter().all(|&count| count == 0.0)))
    });
    tries.fold(f64::INFINITY, f64::min)
}

/// The tokens that can be drawn with their probabilities, in the order in which the draw goes through them.
fn distribution(logits: &[f32], order: &[usize], row: &RowSampling, widen: f64) -> Vec<(usize, f64)> {
    let max = f64::from(logits[order[0]]);
    let weight = |token: usize| ((f64::from(logits[token]) - max) / f64::from(row.temperature)).exp();
    let mut kept: Vec<usize> =
        order.iter().copied().filter(|&token| weight(token) * widen >= f64::from(row.min_p)).collect();
    let cut = row.top_k > 0 && (row.top_k as usize) < logits.len();
    if cut {
        kept.truncate(row.top_k as usize);
    }
    if row.top_p < 1.0 {
        let enough = f64::from(row.top_p) * widen * kept.iter().map(|&token| weight(token)).sum::<f64>();
        let mut sum = 0.0;
        let reached = kept.iter().position(|&token| {
            sum += weight(token);
            sum >= enough
        });
        kept.truncate(reached.map_or(kept.len(), |last| last + 1));
    } else if !cut {
        kept.sort_unstable();
    }
    let total: f64 = kept.iter().map(|&token| weight(token)).sum();
    kept.into_iter().map(|token| (token, weight(token) / total)).collect()
}

fn logprobs_error(logits: &[f32], row: &RowSampling, got: &RankedToken, top: &[RankedToken]) -> f64 {
    let Some(wanted) = row.logprobs else {
        return exact(top.is_empty() && got.rank == 0 && got.logprob == 0.0);
    };
    let order = best_first(logits);
    let max = f64::from(logits[order[0]]);
    let total = max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln();
    let error = |entry: &RankedToken| {
        let want = (f64::from(logits[entry.token as usize]) - total).max(f64::from(f32::MIN));
        (f64::from(entry.logprob) - want).abs() / (1.0 - want)
    };
    let logit = logits[got.token as usize];
    let better = |(token, &other): (usize, &f32)| other > logit || (other == logit && token < got.token as usize);
    let rank = logits.iter().enumerate().filter(|&entry| better(entry)).count() + 1;
    let want = order.iter().take(wanted as usize);
    let places = top.len() == want.len()
        && top.iter().zip(want).zip(1..).all(|((got, &want), rank)| got.token as usize == want && got.rank == rank);
    let worst = top.iter().map(error).fold(error(got), f64::max);
    exact(places && got.rank as usize == rank && got.logprob <= 0.0).max(worst)
}
