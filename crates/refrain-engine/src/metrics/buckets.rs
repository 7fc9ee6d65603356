//! Where the buckets of the histograms end, as in vLLM.

/// Seconds to the first token.
pub(super) const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Seconds from token to token.
pub(super) const TOKEN: [f64; 19] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// Seconds of a whole request or of a part of it.
pub(super) const REQUEST: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// Tokens of a step.
pub(super) const STEP: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// 1, 2, 5, 10, 20, 50 ... up to `most`.
pub(super) fn one_two_five(most: usize) -> Vec<f64> {
    let decades = std::iter::successors(Some(1usize), |decade| decade.checked_mul(10));
    decades
        .flat_map(|decade| [1, 2, 5].map(|mantissa| decade.saturating_mul(mantissa)))
        .take_while(|&value| value <= most)
        .map(|value| value as f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_tokens_go_up_to_the_limit() {
        assert_eq!(one_two_five(64), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(one_two_five(100).last(), Some(&100.0));
    }
}
