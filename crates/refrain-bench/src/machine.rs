//! What the machine can do and what the process used: the denominators of the reports.

use std::hint::black_box;
use std::time::Instant;

/// Bytes that [`read_bandwidth`] reads by default: more than the caches of today's server processors.
pub const BANDWIDTH_BUFFER_BYTES: usize = 1 << 30;

/// Measures the rate in bytes/s at which `threads` threads together read a buffer of `bytes` bytes from memory: the
/// best of several passes, since anything else that runs can only slow a pass down.
pub fn read_bandwidth(threads: usize, bytes: usize) -> f64 {
    const PASSES: usize = 6;
    let threads = threads.max(1);
    let words = bytes.div_ceil(8).max(threads);
    let share = words.div_ceil(threads);
    // Each thread fills its own part first, so that its pages lie near it.
    let mut buffer = vec![0u64; words];
    std::thread::scope(|scope| {
        for part in buffer.chunks_mut(share) {
            scope.spawn(move || part.iter_mut().enumerate().for_each(|(index, word)| *word = index as u64));
        }
    });
    let mut best = 0.0f64;
    for _ in 0..PASSES {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(share) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        best = best.max((words * 8) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// Several independent sums, so that loads and not the chain of additions set the pace.
fn sum(words: &[u64]) -> u64 {
    const LANES: usize = 32;
    let mut lanes = [0u64; LANES];
    let (chunks, rest) = words.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    rest.iter().chain(&lanes).fold(0, |total, word| total.wrapping_add(*word))
}

/// The most memory in bytes that this process has had resident so far (`VmHWM`), where the system says.
pub fn peak_memory_bytes() -> Option<u64> {
    high_water_mark(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bandwidth_is_a_positive_number_for_any_thread_count() {
        for (threads, bytes) in [(1, 1 << 20), (3, 1 << 20), (8, 1)] {
            let rate = read_bandwidth(threads, bytes);
            assert!(rate.is_finite() && rate > 0.0, "{threads} threads: {rate}");
        }
    }

    #[test]
    fn the_sum_reads_every_word() {
        let words: Vec<u64> = (0..1000).collect();
        assert_eq!(sum(&words), 499_500);
    }

    #[test]
    fn the_high_water_mark_is_read_from_the_status_file() {
        assert_eq!(high_water_mark("VmPeak:\t 9 kB\nVmHWM:\t    1024 kB\nVmRSS:\t 1 kB\n"), Some(1 << 20));
        assert_eq!(high_water_mark("VmRSS:\t 1 kB\n"), None);
    }
}
