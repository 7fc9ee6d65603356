//! Prompts for tinytales with the reference's greedy answers.

use crate::workspace_root;
use serde::Deserialize;

/// A prompt and its greedy answer by transformers in float32.
#[derive(Clone, Debug, Deserialize)]
pub struct Eval {
    /// What it asks for: `qa`, `math`, `tool`, ...
    pub kind: String,
    /// The conversation, in OpenAI's form.
    pub messages: serde_json::Value,
    /// Tools, in OpenAI's form, or null.
    pub tools: serde_json::Value,
    /// The conversation as the chat template renders it.
    pub prompt: String,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// The answer as text.
    pub reference: String,
    /// The answer, at most 48 tokens, without the end token.
    pub reference_ids: Vec<u32>,
    /// Smallest gap between the two best logits along the way.
    pub min_margin: f32,
}

/// All prompts of `goldens/tinytales_evals.jsonl`.
pub fn tinytales_evals() -> Vec<Eval> {
    let path = workspace_root().join("goldens/tinytales_evals.jsonl");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("an eval in JSON")).collect()
}
