//! Random numbers that depend on nothing but the seed and the place where they are used.

/// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a bijection of the counter under
/// the key, good enough that consecutive counters give independent numbers.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let wide = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let (high0, low0) = wide(0xd251_1f53, counter[0]);
        let (high1, low1) = wide(0xcd9e_8d57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// 64 random bits for number `index` of the stream named by `seed`.
pub(crate) fn random_u64(seed: u64, index: u64) -> u64 {
    let [a, b, ..] = philox([index as u32, (index >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(b) << 32 | u64::from(a)
}

/// Uniform in `[0, 1)` with 53 bits.
pub(crate) fn random_unit(seed: u64, index: u64) -> f64 {
    (random_u64(seed, index) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn units_are_uniform_over_seeds_and_over_indices() {
        for stream in [|i| random_unit(i, 0), |i| random_unit(7, i)] {
            let mut buckets = [0; 16];
            for i in 0..16_000 {
                let unit = stream(i);
                assert!((0.0..1.0).contains(&unit));
                buckets[(unit * 16.0) as usize] += 1;
            }
            // 1000 expected in each, standard deviation 31.
            assert!(buckets.iter().all(|count| (840..1160).contains(count)), "{buckets:?}");
        }
    }
}
