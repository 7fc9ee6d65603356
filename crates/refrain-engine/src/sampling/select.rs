//! Finds the best logits without sorting a whole vocabulary.

use std::cmp::Ordering;

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// The logit.
    pub logit: f32,
    /// The token id.
    pub token: u32,
}

/// Best first: the larger logit, among equals the smaller id. A total order, so that every selection is determined.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Logits that are looked at together: if none of them beats the threshold, the block is passed over.
const BLOCK: usize = 64;

/// The largest of some logits, `-inf` of none.
#[inline(always)]
fn block_max(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 8];
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max })
}

/// The best candidate in one pass; `None` when all logits are `-inf`.
pub(crate) fn best(logits: &[f32]) -> Option<Candidate> {
    let (mut max, mut at) = (f32::NEG_INFINITY, 0);
    for (block, chunk) in logits.chunks(BLOCK).enumerate() {
        let here = block_max(chunk);
        if here > max {
            (max, at) = (here, block);
        }
    }
    let first = at * BLOCK;
    let offset = logits.get(first..)?.iter().take(BLOCK).position(|&logit| logit == max)?;
    (max > f32::NEG_INFINITY).then_some(Candidate { logit: max, token: (first + offset) as u32 })
}

/// Puts the best `k` candidates into `found`, best first; fewer when fewer are above `-inf`.
///
/// Keeps up to `2 k` candidates above a threshold, and when they are that many, throws the worse half away and raises
/// the threshold. A later token must beat the threshold strictly: among equals the smaller id wins.
pub(crate) fn top_k(logits: &[f32], k: usize, found: &mut Vec<Candidate>) {
    found.clear();
    if k == 0 {
        return;
    }
    let room = k.saturating_mul(2).max(BLOCK);
    let mut threshold = f32::NEG_INFINITY;
    for (block, chunk) in logits.chunks(BLOCK).enumerate() {
        if block_max(chunk) <= threshold {
            continue;
        }
        for (offset, &logit) in chunk.iter().enumerate() {
            if logit > threshold {
                found.push(Candidate { logit, token: (block * BLOCK + offset) as u32 });
                if found.len() == room && room < logits.len() {
                    found.select_nth_unstable_by(k - 1, best_first);
                    found.truncate(k);
                    threshold = found[k - 1].logit;
                }
            }
        }
    }
    if found.len() > k {
        found.select_nth_unstable_by(k - 1, best_first);
        found.truncate(k);
    }
    found.sort_unstable_by(best_first);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few different values, so that ties are common.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            8 => (-5i8..5).prop_map(f32::from),
            4 => -5.0f32..5.0,
            1 => Just(f32::NEG_INFINITY)
        ];
        prop::collection::vec(value, 0..400)
    }

    proptest! {
        #[test]
        fn top_k_is_the_head_of_the_sorted_list(logits in logits(), k in 0usize..450) {
            let mut sorted: Vec<_> = logits
                .iter()
                .enumerate()
                .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
                .map(|(token, &logit)| Candidate { logit, token: token as u32 })
                .collect();
            sorted.sort_by(best_first);
            prop_assert_eq!(best(&logits), sorted.first().copied());
            sorted.truncate(k);
            let mut found = Vec::new();
            top_k(&logits, k, &mut found);
            prop_assert_eq!(found, sorted);
        }
    }

    #[test]
    fn a_rising_row_is_the_worst_case_and_still_right() {
        let logits: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        let mut found = Vec::new();
        top_k(&logits, 20, &mut found);
        assert!(found.iter().map(|candidate| candidate.token).eq((4980..5000).rev()));
    }
}
