//! Synthetic prompts: random token ids of chosen lengths, the same for the same seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One prompt and how much is to be generated for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// Tokens to generate.
    pub output_len: usize,
}

/// vLLM's `random` data set: every id equally likely, lengths spread evenly around their middle.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomWorkload {
    /// Number of prompts.
    pub num_prompts: usize,
    /// Middle of the prompt lengths, without the shared prefix.
    pub input_len: usize,
    /// Middle of the answer lengths.
    pub output_len: usize,
    /// Lengths are spread over `[len (1 - ratio), len (1 + ratio)]`; in `[0, 1)`.
    pub range_ratio: f64,
    /// Tokens at the start that all prompts share.
    pub prefix_len: usize,
    /// Ids to draw from; not empty.
    pub vocabulary: Vocabulary,
    /// Seed of everything random here.
    pub seed: u64,
}

/// Where random token ids come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// All ids below this number.
    Below(u32),
    /// These ids.
    Ids(Vec<u32>),
}

impl Vocabulary {
    fn draw(&self, random: &mut StdRng) -> u32 {
        match self {
            Vocabulary::Below(size) => random.random_range(0..*size),
            Vocabulary::Ids(ids) => ids[random.random_range(0..ids.len())],
        }
    }
}

impl RandomWorkload {
    /// The prompts, in order.
    pub fn samples(&self) -> Vec<Sample> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let prefix: Vec<u32> = (0..self.prefix_len).map(|_| self.vocabulary.draw(&mut random)).collect();
        (0..self.num_prompts)
            .map(|_| {
                let input_len = spread(&mut random, self.input_len, self.range_ratio);
                let output_len = spread(&mut random, self.output_len, self.range_ratio);
                let mut prompt = prefix.clone();
                prompt.extend((0..input_len).map(|_| self.vocabulary.draw(&mut random)));
                Sample { prompt, output_len }
            })
            .collect()
    }

    /// The most tokens, prompt and answer together, that one of its samples can have.
    pub fn longest(&self) -> usize {
        let highest = |len: usize| (len as f64 * (1.0 + self.range_ratio)).ceil() as usize;
        self.prefix_len + highest(self.input_len) + highest(self.output_len)
    }
}

fn spread(random: &mut StdRng, middle: usize, ratio: f64) -> usize {
    let low = (middle as f64 * (1.0 - ratio)).floor().max(1.0) as usize;
    let high = ((middle as f64 * (1.0 + ratio)).ceil() as usize).max(low);
    random.random_range(low..=high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> RandomWorkload {
        RandomWorkload {
            num_prompts: 200,
            input_len: 20,
            output_len: 10,
            range_ratio: 0.5,
            prefix_len: 3,
            vocabulary: Vocabulary::Below(50),
            seed: 7,
        }
    }

    #[test]
    fn the_seed_decides_everything() {
        assert_eq!(workload().samples(), workload().samples());
        assert_ne!(workload().samples(), RandomWorkload { seed: 8, ..workload() }.samples());
    }

    #[test]
    fn lengths_fill_their_range_and_ids_stay_in_the_vocabulary() {
        let samples = workload().samples();
        let inputs: Vec<usize> = samples.iter().map(|sample| sample.prompt.len() - 3).collect();
        let outputs: Vec<usize> = samples.iter().map(|sample| sample.output_len).collect();
        assert_eq!((inputs.iter().min(), inputs.iter().max()), (Some(&10), Some(&30)));
        assert_eq!((outputs.iter().min(), outputs.iter().max()), (Some(&5), Some(&15)));
        assert!(samples.iter().all(|sample| sample.prompt.iter().all(|&id| id < 50)));
        assert!(samples.iter().all(|sample| sample.prompt[..3] == samples[0].prompt[..3]));
        assert_eq!(workload().longest(), 3 + 30 + 15);
    }

    #[test]
    fn without_a_spread_all_lengths_are_equal() {
        let exact = RandomWorkload { range_ratio: 0.0, vocabulary: Vocabulary::Ids(vec![4, 9]), ..workload() };
        for sample in exact.samples() {
            assert_eq!((sample.prompt.len(), sample.output_len), (23, 10));
            assert!(sample.prompt.iter().all(|id| [4, 9].contains(id)));
        }
    }
}
