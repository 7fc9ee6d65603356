//! The few statistics that the reports need, defined as NumPy defines them so that figures can be compared with vLLM's.

/// Arithmetic mean; 0 when there are no values.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Population standard deviation (`numpy.std`); 0 when there are no values.
pub fn standard_deviation(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let mean = mean(values);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// The percentile `percent` in `[0, 100]`, linear between the two nearest values (`numpy.percentile`); 0 when there are
/// no values.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The middle value; 0 when there are no values.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// A percentile as it is written in keys: `99`, `99.9`.
pub fn percentile_label(percent: f64) -> String {
    if percent.fract() == 0.0 { format!("{percent:.0}") } else { percent.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expected values are those of numpy.percentile, numpy.std and numpy.mean.
    #[test]
    fn they_agree_with_numpy() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(mean(&values), 2.5);
        assert_eq!(median(&values), 2.5);
        assert!((standard_deviation(&values) - 1.118_033_988_749_895).abs() < 1e-12);
        assert!((percentile(&values, 10.0) - 1.3).abs() < 1e-12);
        assert!((percentile(&values, 25.0) - 1.75).abs() < 1e-12);
        assert!((percentile(&values, 99.0) - 3.97).abs() < 1e-12);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 100.0), 4.0);
    }

    #[test]
    fn one_value_is_every_percentile_and_none_is_zero() {
        for percent in [0.0, 37.0, 99.9, 100.0] {
            assert_eq!(percentile(&[7.0], percent), 7.0);
            assert_eq!(percentile(&[], percent), 0.0);
        }
        assert_eq!(mean(&[]), 0.0);
        assert_eq!(standard_deviation(&[]), 0.0);
        assert_eq!(standard_deviation(&[5.0]), 0.0);
    }

    #[test]
    fn labels_have_no_needless_digits() {
        assert_eq!(percentile_label(99.0), "99");
        assert_eq!(percentile_label(99.9), "99.9");
    }
}
