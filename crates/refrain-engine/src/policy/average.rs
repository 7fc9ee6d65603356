//! What a step costs in a cell: a moving average of seconds, and how much is behind it.

/// Measurements after which an average moves no more slowly.
const SLOWEST: u32 = 128;

/// What a median at start counts for.
const CALIBRATED: u32 = 8;

/// A measurement counts for at most so many times the average: what held up one step is no property of the cell.
const MOST: f64 = 1.5;

/// Seconds of a step, averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Average {
    /// Seconds. Comparable between cells of the same steps even where it is only assumed.
    pub seconds: f64,
    /// Measurements behind it; 0 where it is assumed from steps that are alike.
    pub samples: u32,
}

impl Average {
    /// The median of some measurements of a calibration.
    pub fn calibrated(seconds: f64) -> Average {
        Average { seconds, samples: CALIBRATED }
    }

    /// What is assumed without a measurement.
    pub fn assumed(seconds: f64) -> Average {
        Average { seconds, samples: 0 }
    }

    /// Takes one more measurement in.
    pub fn add(&mut self, seconds: f64) {
        if self.samples == 0 {
            self.seconds = seconds;
        } else if self.samples == 1 {
            // The first may have been held up by whatever, and nothing tells; hardly anything makes a step too fast.
            self.seconds = seconds.min(self.seconds);
        } else {
            let weight = 1.0 / f64::from(self.samples.min(SLOWEST - 1) + 1);
            self.seconds += weight * (seconds.min(MOST * self.seconds) - self.seconds);
        }
        self.samples = self.samples.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_first_two_the_one_that_was_held_up_does_not_count() {
        for two in [[1.0, 50.0], [50.0, 1.0]] {
            let mut average = Average::default();
            two.into_iter().for_each(|seconds| average.add(seconds));
            assert_eq!(average, Average { seconds: 1.0, samples: 2 });
        }
    }

    #[test]
    fn it_follows_a_change_and_shrugs_off_a_hitch() {
        let mut average = Average::assumed(7.0);
        average.add(1.0);
        assert_eq!(average, Average { seconds: 1.0, samples: 1 });
        (0..200).for_each(|_| average.add(1.0));
        average.add(1000.0);
        assert!(average.seconds < 1.005, "{average:?}");
        (0..1000).for_each(|_| average.add(2.0));
        assert!((average.seconds - 2.0).abs() < 0.01, "{average:?}");
        (0..1000).for_each(|_| average.add(0.5));
        assert!((average.seconds - 0.5).abs() < 0.01, "{average:?}");
    }
}
