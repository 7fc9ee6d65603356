use super::*;
use crate::kernels::testing::{Matrix, Random, assert_close, sigmoid};
use proptest::prelude::*;

/// Runs a sequence through the kernel in the given cuts, its channels in two ranges, its tokens from `split` on in an
/// item of their own. Gives the output and the final state.
fn run(
    level: SimdLevel,
    x: &Matrix,
    weight: &[f32],
    taps: usize,
    cuts: &[usize],
    split: usize,
) -> (Vec<u32>, Vec<u32>) {
    let channels = weight.len() / taps;
    let slot_stride = (taps - 1) * channels;
    let mut state = vec![7.0e7f32; 3 * slot_stride];
    let mut x = x.clone();
    let mut bits = vec![];
    let mut position = 0;
    for &len in cuts {
        let mut out = Matrix::new(position + len, channels);
        let args = GdnConv {
            x: x.view(),
            weight,
            state: Shared(state.as_mut_ptr()),
            slot_stride,
            channels,
            taps,
            out: out.view(),
        };
        let segment = Segment {
            row: position as u32,
            len: len as u32,
            position: position as u32,
            scan: 0,
            slot: 1,
            blocks: 0,
            num_blocks: 0,
        };
        let middle = (channels / 2).next_multiple_of(LANES).min(channels);
        for channels in [0..middle, middle..channels] {
            let late = split.max(taps - 1).min(len);
            // SAFETY: the level is available, the segment is inside `x`, slot 1 is inside the state.
            unsafe {
                if late < len {
                    gdn_conv(level, &args, &segment, late..len, channels.clone());
                }
                gdn_conv(level, &args, &segment, 0..late, channels);
            }
        }
        bits.extend_from_slice(&out.part(position, len).bits());
        out.bits();
        position += len;
    }
    assert!(state[..slot_stride].iter().chain(&state[2 * slot_stride..]).all(|&x| x == 7.0e7), "other slots");
    (bits, state[slot_stride..2 * slot_stride].iter().map(|x| x.to_bits()).collect())
}

#[test]
fn convolution_agrees_with_double_precision() {
    let mut random = Random(1);
    for level in SimdLevel::available() {
        for (channels, taps) in [(16, 4), (40, 4), (133, 4), (48, 2), (20, 1), (33, 6)] {
            let tokens = 9;
            let x = Matrix::random(tokens, channels, 2.0, &mut random);
            let weight = random.floats(taps * channels, 1.0);
            let (bits, state) = run(level, &x, &weight, taps, &[tokens], 5);
            for token in 0..tokens {
                let expected: Vec<f64> = (0..channels)
                    .map(|c| {
                        let tap = |j: usize| f64::from(weight[j * channels + c]);
                        let y: f64 = (0..taps)
                            .filter(|j| token + j + 1 >= taps)
                            .map(|j| tap(j) * f64::from(x.row(token + j + 1 - taps)[c]))
                            .sum();
                        y * sigmoid(y)
                    })
                    .collect();
                let actual: Vec<f32> =
                    bits[token * channels..][..channels].iter().map(|&x| f32::from_bits(x)).collect();
                assert_close(&actual, &expected, 2e-6, &format!("{level:?} {channels} channels {taps} taps"));
            }
            let expected: Vec<u32> = (tokens + 1 - taps..tokens).flat_map(|t| x.row(t)).map(|x| x.to_bits()).collect();
            assert_eq!(state, expected, "the state is the last inputs");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_cut_gives_the_same_bits(
        channels in 1usize..70,
        taps in 1usize..6,
        cuts in prop::collection::vec(1usize..8, 1..8),
        split in 0usize..8,
        seed: u64,
    ) {
        let mut random = Random(seed);
        let tokens = cuts.iter().sum();
        let x = Matrix::random(tokens, channels, 2.0, &mut random);
        let weight = random.floats(taps * channels, 1.0);
        for level in SimdLevel::available() {
            prop_assert_eq!(
                run(level, &x, &weight, taps, &cuts, split),
                run(level, &x, &weight, taps, &[tokens], tokens)
            );
        }
    }
}
