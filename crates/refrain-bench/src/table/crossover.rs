//! Where one mode stops being faster than another: the input length at which its speed-up passes 1.

use serde::Serialize;

use super::Mode;

/// A mode passes eager, or falls behind it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Crossover {
    /// The mode.
    pub mode: Mode,
    /// Input tokens at which both take as long, between two measured lengths on a straight line of the speed-up.
    pub input_len: f64,
    /// Whether it is faster than eager above that length, and slower below.
    pub faster_above: bool,
}

/// Speed-ups that differ from 1 by no more than this are the same speed: repeated runs differ by as much.
pub const SAME_SPEED: f64 = 0.01;

/// All crossings of a mode whose speed-ups over eager were measured at these input lengths, ascending. Lengths at which
/// both are as fast are a crossing only where the sides differ.
pub fn crossovers(mode: Mode, speedups: &[(usize, f64)]) -> Vec<Crossover> {
    let mut found = Vec::new();
    // The last point that was faster or slower, and not the same.
    let mut last: Option<(f64, f64)> = None;
    for &(len, speedup) in speedups {
        let (len, gain) = (len as f64, speedup - 1.0);
        if gain.abs() <= SAME_SPEED {
            continue;
        }
        if let Some((before_len, before)) = last
            && (before < 0.0) != (gain < 0.0)
        {
            let input_len = before_len + (len - before_len) * before / (before - gain);
            found.push(Crossover { mode, input_len, faster_above: gain > 0.0 });
        }
        last = Some((len, gain));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_lies_between_the_last_gain_and_the_first_loss() {
        let seed = [(1024, 1.79), (4096, 1.42), (8192, 1.15), (16384, 0.95), (24576, 0.92)];
        let found = crossovers(Mode::GraphCompile, &seed);
        assert_eq!(found.len(), 1);
        assert!((found[0].input_len - 14336.0).abs() < 1e-6, "{found:?}");
        assert!(!found[0].faster_above);
    }

    #[test]
    fn every_crossing_is_told_and_nothing_else() {
        let directions = |speedups: &[(usize, f64)]| -> Vec<(f64, bool)> {
            crossovers(Mode::Graph, speedups).iter().map(|found| (found.input_len, found.faster_above)).collect()
        };
        assert_eq!(directions(&[(1, 1.1), (2, 1.2)]), []);
        assert_eq!(directions(&[(1, 0.9), (2, 0.8)]), []);
        assert_eq!(directions(&[]), []);
        assert_eq!(directions(&[(100, 0.5), (200, 1.5), (300, 0.5)]), [(150.0, true), (250.0, false)]);
        assert_eq!(directions(&[(1, 1.2), (2, 0.995)]), []);
        // As fast in between: no crossing where it comes back, one in the middle where it does not.
        assert_eq!(directions(&[(100, 1.5), (200, 1.0), (300, 1.5)]), []);
        assert_eq!(directions(&[(100, 1.5), (200, 1.0), (300, 0.5)]), [(200.0, false)]);
    }
}
