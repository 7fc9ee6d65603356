//! When a step behind the one in flight is planned: so late that whoever arrives meanwhile is in it, and has its first
//! token as early as if steps didn't overlap; and so early that the device doesn't wait for it.

/// The part of its time after which the next step should have begun. Steps of which the policy says the same differ by up
/// to a half, and threads wake up late.
const BEGUN_BY: f64 = 0.6;

/// What the longest beginning counts for after each later one.
const FADES: f64 = 0.95;

/// What is known of the host's own time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Seconds that the host may need to plan and begin a step.
    host: f64,
}

impl Pace {
    /// A step was planned and begun within so many seconds.
    pub fn began(&mut self, seconds: f64) {
        self.host = seconds.max(self.host * FADES);
    }

    /// Seconds after the beginning of a step at which the next one is planned, where the step is expected to take
    /// `expected` seconds.
    pub fn delay(&self, expected: f64) -> f64 {
        (expected * BEGUN_BY - self.host).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_step_has_begun_before_this_one_ends() {
        let mut pace = Pace::default();
        assert_eq!(pace.delay(10.0), 6.0);
        pace.began(2.0);
        pace.began(0.5);
        assert!((4.0..4.2).contains(&pace.delay(10.0)), "{pace:?}");
        assert_eq!(pace.delay(3.0), 0.0, "there is no time to lose");
        (0..100).for_each(|_| pace.began(0.5));
        assert_eq!(pace.delay(10.0), 5.5);
    }
}
