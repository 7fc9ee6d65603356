//! When requests are sent: all at once, or as a Poisson or gamma process.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Gamma};

/// The traffic of a serving benchmark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrivals {
    /// Requests per second; infinite sends all at once.
    pub request_rate: f64,
    /// Shape of the gamma distribution of the intervals: 1 is a Poisson process, less is burstier, infinite is a fixed
    /// interval.
    pub burstiness: f64,
    /// Seed of the intervals.
    pub seed: u64,
}

impl Arrivals {
    /// The time of each of `count` requests from the start. As in vLLM, the intervals are scaled so that the last
    /// request comes at `count / request_rate`.
    pub fn times(&self, count: usize) -> Vec<Duration> {
        if self.request_rate.is_infinite() {
            return vec![Duration::ZERO; count];
        }
        let interval = 1.0 / self.request_rate;
        let mut random = StdRng::seed_from_u64(self.seed);
        let gamma = Gamma::new(self.burstiness, interval / self.burstiness).ok();
        let mut now = 0.0;
        let times: Vec<f64> = (0..count)
            .map(|_| {
                now += match &gamma {
                    Some(gamma) if self.burstiness.is_finite() => gamma.sample(&mut random),
                    _ => interval,
                };
                now
            })
            .collect();
        let scale = if now > 0.0 { interval * count as f64 / now } else { 1.0 };
        times.into_iter().map(|time| Duration::from_secs_f64(time * scale)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{mean, standard_deviation};

    fn intervals(burstiness: f64) -> Vec<f64> {
        let times = Arrivals { request_rate: 4.0, burstiness, seed: 3 }.times(4000);
        let mut previous = 0.0;
        times
            .iter()
            .map(|time| {
                let interval = time.as_secs_f64() - previous;
                previous = time.as_secs_f64();
                interval
            })
            .collect()
    }

    #[test]
    fn an_infinite_rate_sends_all_at_once() {
        let times = Arrivals { request_rate: f64::INFINITY, burstiness: 1.0, seed: 0 }.times(3);
        assert_eq!(times, [Duration::ZERO; 3]);
    }

    #[test]
    fn the_rate_is_met_and_the_burstiness_sets_the_spread() {
        for (burstiness, relative_spread) in [(1.0, 1.0), (4.0, 0.5), (0.25, 2.0), (f64::INFINITY, 0.0)] {
            let intervals = intervals(burstiness);
            assert!((mean(&intervals) - 0.25).abs() < 1e-6);
            let spread = standard_deviation(&intervals) / 0.25;
            assert!((spread - relative_spread).abs() < 0.15 * relative_spread + 1e-6, "{burstiness}: {spread}");
        }
    }
}
