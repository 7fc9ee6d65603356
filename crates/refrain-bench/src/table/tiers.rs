//! The tiers of input lengths that the project's first experiment weighs: most requests are of middle length.

use std::ops::Range;

use serde::Serialize;

/// A range of input lengths and how much it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Name for reports.
    pub name: &'static str,
    /// Input tokens.
    pub lengths: Range<usize>,
    /// Part of the requests, in percent.
    pub weight_percent: u32,
}

/// The three tiers; their weights are 100 % together.
pub const TIERS: [Tier; 3] = [
    Tier { name: "4k-8k", lengths: 4096..8192, weight_percent: 20 },
    Tier { name: "8k-16k", lengths: 8192..16384, weight_percent: 50 },
    Tier { name: "16k-32k", lengths: 16384..32768, weight_percent: 30 },
];

/// The speed-up over one tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierSpeedup {
    /// Name of the tier.
    pub tier: &'static str,
    /// How much it counts, in percent.
    pub weight_percent: u32,
    /// The part of its lengths that was measured, in percent.
    pub measured_percent: f64,
    /// The mean over that part of the straight lines between measured lengths; `None` when nothing of it was measured.
    pub speedup: Option<f64>,
}

/// The speed-ups over all tiers, and what they gain together in percent: the weighted mean less 1. No gain is told
/// unless every tier was measured, at least in part.
pub fn tiers(speedups: &[(usize, f64)]) -> (Vec<TierSpeedup>, Option<f64>) {
    let all: Vec<TierSpeedup> = TIERS.iter().map(|tier| over(tier, speedups)).collect();
    let gains = all.iter().map(|tier| Some(f64::from(tier.weight_percent) * (tier.speedup? - 1.0)));
    let gain = gains.sum::<Option<f64>>();
    (all, gain)
}

fn over(tier: &Tier, speedups: &[(usize, f64)]) -> TierSpeedup {
    let (low, high) = (tier.lengths.start as f64, tier.lengths.end as f64);
    let (mut area, mut width) = (0.0, 0.0);
    for pair in speedups.windows(2) {
        let ((from, a), (to, b)) = ((pair[0].0 as f64, pair[0].1), (pair[1].0 as f64, pair[1].1));
        let (left, right) = (from.max(low), to.min(high));
        if right > left {
            let at = |len: f64| a + (b - a) * (len - from) / (to - from);
            area += (at(left) + at(right)) / 2.0 * (right - left);
            width += right - left;
        }
    }
    TierSpeedup {
        tier: tier.name,
        weight_percent: tier.weight_percent,
        measured_percent: 100.0 * width / (high - low),
        speedup: (width > 0.0).then(|| area / width),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_a_whole_and_tiers_have_no_gaps() {
        assert_eq!(TIERS.iter().map(|tier| tier.weight_percent).sum::<u32>(), 100);
        assert!(TIERS.windows(2).all(|pair| pair[0].lengths.end == pair[1].lengths.start));
    }

    /// The speed-ups of the first experiment, whose author calls the weighted gain about 6 %.
    #[test]
    fn the_first_experiment_gains_six_percent() {
        let seed = [(1024, 1.79), (4096, 1.42), (8192, 1.15), (16384, 0.96), (24576, 0.92)];
        let (tiers, gain) = tiers(&seed);
        let expected = [(1.285, 100.0), (1.055, 100.0), (0.94, 50.0)];
        for (tier, (speedup, measured)) in tiers.iter().zip(expected) {
            assert!((tier.speedup.unwrap() - speedup).abs() < 1e-12, "{tier:?}");
            assert_eq!(tier.measured_percent, measured);
        }
        assert!((gain.unwrap() - (20.0 * 0.285 + 50.0 * 0.055 - 30.0 * 0.06)).abs() < 1e-9);
    }

    #[test]
    fn what_was_not_measured_is_not_told() {
        let (all, gain) = tiers(&[(1024, 2.0), (4096, 2.0)]);
        assert!(all.iter().all(|tier| tier.speedup.is_none() && tier.measured_percent == 0.0));
        assert_eq!(gain, None);
        // A line across a border belongs to both tiers; a single length has no line.
        let (all, gain) = tiers(&[(6144, 1.0), (10240, 2.0)]);
        assert_eq!((all[0].speedup, all[0].measured_percent), (Some(1.25), 50.0));
        assert_eq!((all[1].speedup, all[1].measured_percent), (Some(1.75), 25.0));
        assert_eq!((all[2].speedup, gain), (None, None));
        let (all, _) = tiers(&[(9000, 1.5)]);
        assert!(all.iter().all(|tier| tier.speedup.is_none()));
    }
}
