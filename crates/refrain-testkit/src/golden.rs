//! The goldens: reference log-probabilities after some positions of some prompts. See `docs/goldens.md`.

use crate::workspace_root;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Tokens that the reference gives for each position.
pub const TOP: usize = 20;

/// What the reference says about one checkpoint.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Name of the checkpoint.
    pub name: String,
    /// Random weights, to be written again, rather than a model of the repository.
    pub random: bool,
    /// By ascending length.
    pub prompts: Vec<GoldenPrompt>,
}

/// What the reference says about one prompt.
#[derive(Clone, Debug)]
pub struct GoldenPrompt {
    /// The prompt.
    pub ids: Vec<u32>,
    /// Positions after which the next token is known, ascending, `[P]`.
    pub positions: Vec<usize>,
    /// The most probable next tokens, best first, `[P]`.
    pub tokens: Vec<[u32; TOP]>,
    /// Their log-probabilities, `[P]`.
    pub logprobs: Vec<[f32; TOP]>,
}

#[derive(Deserialize)]
pub(crate) struct Index {
    top: usize,
    positions: BTreeMap<usize, Vec<usize>>,
    prompts: BTreeMap<String, BTreeMap<usize, Vec<u32>>>,
    pub(crate) checkpoints: Vec<Entry>,
}

#[derive(Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) options: Option<Vec<String>>,
    prompts: String,
    pub(crate) sha256: BTreeMap<String, String>,
}

pub(crate) fn index() -> Index {
    let path = workspace_root().join("goldens/index.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let index: Index = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(index.top, TOP);
    index
}

impl Golden {
    /// Names of all goldens.
    pub fn names() -> Vec<String> {
        index().checkpoints.into_iter().map(|entry| entry.name).collect()
    }

    /// Reads the golden of a checkpoint.
    ///
    /// # Panics
    /// When there is none of this name or its file has another size than the index says.
    pub fn load(name: &str) -> Self {
        Self::load_from(name, &format!("{name}.bin"))
    }

    /// Reads the golden of a checkpoint stored in f32 whose matrices were rounded to bf16 before it was run.
    ///
    /// # Panics
    /// As [`Golden::load`].
    pub fn load_rounded(name: &str) -> Self {
        Self::load_from(name, &format!("{name}.rounded.bin"))
    }

    fn load_from(name: &str, file: &str) -> Self {
        let index = index();
        let entry = index.checkpoints.iter().find(|entry| entry.name == name);
        let entry = entry.unwrap_or_else(|| panic!("goldens/index.json knows no checkpoint {name}"));
        let path = workspace_root().join("goldens").join(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
        let mut row = || -> [u32; TOP] { std::array::from_fn(|_| words.next().expect("the file is long enough")) };
        let mut prompts = Vec::new();
        for (length, ids) in &index.prompts[&entry.prompts] {
            assert_eq!(*length, ids.len());
            let positions = index.positions[length].clone();
            let tokens = positions.iter().map(|_| row()).collect();
            let logprobs = positions.iter().map(|_| row().map(f32::from_bits)).collect();
            prompts.push(GoldenPrompt { ids: ids.clone(), positions, tokens, logprobs });
        }
        assert!(words.next().is_none(), "{}: longer than the index says", path.display());
        Self { name: name.to_owned(), random: entry.options.is_some(), prompts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_golden_is_whole_and_plausible() {
        for name in Golden::names() {
            let golden = Golden::load(&name);
            let lengths: Vec<usize> = golden.prompts.iter().map(|prompt| prompt.ids.len()).collect();
            assert_eq!(lengths, [1, 63, 64, 65, 200, 1500], "{name}");
            for prompt in &golden.prompts {
                assert_eq!(prompt.positions.last(), Some(&(prompt.ids.len() - 1)), "{name}");
                for row in &prompt.logprobs {
                    assert!(row.is_sorted_by(|a, b| a >= b) && row[0] <= 0.0, "{name}: {row:?}");
                    let sum: f32 = row.iter().map(|value| value.exp()).sum();
                    assert!(sum > 0.0 && sum <= 1.0 + 1e-5, "{name}: {sum}");
                }
            }
        }
    }
}
