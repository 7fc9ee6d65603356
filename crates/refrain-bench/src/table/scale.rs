//! From values to places on an axis, and the round values at which an axis is marked.

/// A straight or logarithmic axis from `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// A straight axis that holds all values and ends at marks. Without values, or when all are the same, it has a
    /// width nevertheless.
    pub fn straight(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        let width = if high > low { high - low } else { high.abs().max(1.0) };
        let step = nice_step(width / 5.0);
        let scale = Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, logarithmic: false };
        if scale.high > scale.low { scale } else { Self { high: scale.low + step, ..scale } }
    }

    /// A logarithmic axis that holds all values, which are above 0.
    pub fn logarithmic(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        // A little room at both ends, and a width where all values are the same.
        let room = ((high / low).ln() * 0.04).max(0.05).exp();
        Self { low: low / room, high: high * room, logarithmic: true }
    }

    /// The place of a value: 0 at the low end, 1 at the high end.
    pub fn place(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Round values between both ends, ascending.
    pub fn marks(&self) -> Vec<f64> {
        if !self.logarithmic {
            let step = nice_step((self.high - self.low) / 5.0);
            let (first, last) = ((self.low / step).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
            return (first..=last).map(|index| index as f64 * step).collect();
        }
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let within = |value: &f64| (self.low..=self.high).contains(value);
        let of = |factors: &[f64]| -> Vec<f64> {
            let each = |decade| factors.iter().map(move |factor| factor * 10f64.powi(decade));
            decades.clone().flat_map(each).filter(within).collect()
        };
        // As many as there is room for.
        [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0]]
            .map(of)
            .into_iter()
            .rev()
            .find(|marks| marks.len() <= 7)
            .unwrap_or_default()
    }
}

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let range = values.into_iter().fold(None, |range: Option<(f64, f64)>, value| {
        Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
    });
    range.unwrap_or((0.0, 1.0))
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `least`.
fn nice_step(least: f64) -> f64 {
    let decade = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * decade)
        .find(|&step| step >= least * 0.999_999)
        .unwrap_or(decade)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn straight_axes_end_at_round_values() {
        let scale = Scale::straight([0.0, 97.0]);
        assert_eq!(scale.marks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!((scale.place(0.0), scale.place(50.0), scale.place(100.0)), (0.0, 0.5, 1.0));
        let scale = Scale::straight([0.92, 1.79]);
        assert_eq!(scale.marks().len(), 6, "{:?}", scale.marks());
        assert!(scale.place(0.92) >= 0.0 && scale.place(1.79) <= 1.0);
    }

    #[test]
    fn logarithmic_axes_have_marks_in_every_decade() {
        let scale = Scale::logarithmic([3.0, 5000.0]);
        assert_eq!(scale.marks(), [3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]);
        assert!((scale.place(f64::sqrt(3.0 * 5000.0)) - 0.5).abs() < 1e-12);
        assert!(scale.place(3.0) > 0.0 && scale.place(5000.0) < 1.0);
    }

    #[test]
    fn one_value_or_none_is_no_division_by_zero() {
        for scale in
            [Scale::straight([]), Scale::straight([0.0]), Scale::straight([7.0, 7.0]), Scale::logarithmic([7.0])]
        {
            let place = scale.place(7.0);
            assert!(place.is_finite(), "{scale:?}");
            assert!(scale.marks().iter().all(|mark| mark.is_finite()));
        }
    }
}
