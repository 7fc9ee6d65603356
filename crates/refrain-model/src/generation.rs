//! The sampling defaults of a model.

use std::path::Path;

use crate::ModelError;
use crate::config::fields::{Fields, parse_object};

/// generation_config.json: the defaults that its makers recommend. `do_sample` means nothing here: greedy decoding is
/// `temperature` 0, as in vLLM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Softmax temperature, at least 0.
    pub temperature: Option<f32>,
    /// Nucleus, above 0, at most 1.
    pub top_p: Option<f32>,
    /// Smallest probability relative to the largest, 0 to 1.
    pub min_p: Option<f32>,
    /// How many of the most likely tokens take part; 0: all.
    pub top_k: Option<u32>,
    /// Factor against tokens that were seen before, above 0.
    pub repetition_penalty: Option<f32>,
    /// Longest answer in tokens, at least 1.
    pub max_new_tokens: Option<u32>,
}

impl GenerationConfig {
    /// Reads the text of a generation_config.json.
    pub fn from_json(json: &str) -> Result<GenerationConfig, ModelError> {
        GenerationConfig::from_json_of(json, Path::new("generation_config.json"), u32::MAX as usize)
    }

    /// The same; `file` is for error messages, and end tokens must be below `vocab_size`.
    pub fn from_json_of(json: &str, file: &Path, vocab_size: usize) -> Result<GenerationConfig, ModelError> {
        const ABOVE_ZERO: f64 = f32::MIN_POSITIVE as f64;
        let map = parse_object(json, file)?;
        let fields = Fields::new(file, &map);
        let number = |name, min, max| Ok(fields.number(name, min..=max)?.map(|value| value as f32));
        let top_k = match fields.get("top_k").and_then(|value| value.as_i64()) {
            // vLLM's other way to say "all".
            Some(-1) => Some(0),
            _ => fields.size("top_k", 0..=u32::MAX as usize)?.map(|k| k as u32),
        };
        Ok(GenerationConfig {
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
            temperature: number("temperature", 0.0, 1e6)?,
            top_p: number("top_p", ABOVE_ZERO, 1.0)?,
            min_p: number("min_p", 0.0, 1.0)?,
            top_k,
            repetition_penalty: number("repetition_penalty", ABOVE_ZERO, 1e6)?,
            max_new_tokens: fields.size("max_new_tokens", 1..=u32::MAX as usize)?.map(|n| n as u32),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_one_eos_or_several() {
        let one = GenerationConfig::from_json(r#"{"eos_token_id": 7}"#).unwrap();
        assert_eq!(one.eos_token_ids, [7]);
        let two = GenerationConfig::from_json(r#"{"eos_token_id": [8, 7], "do_sample": false}"#).unwrap();
        assert_eq!(two.eos_token_ids, [8, 7]);
        assert_eq!(two.temperature, None, "do_sample does not set a temperature");
    }

    #[test]
    fn reads_the_sampling_defaults() {
        let json = r#"{"temperature": 0.6, "top_p": 0.95, "min_p": 0, "top_k": 20, "repetition_penalty": 1.05,
            "max_new_tokens": 100, "transformers_version": "5.2.0", "pad_token_id": null}"#;
        let config = GenerationConfig::from_json(json).unwrap();
        let expected = GenerationConfig {
            eos_token_ids: vec![],
            temperature: Some(0.6),
            top_p: Some(0.95),
            min_p: Some(0.0),
            top_k: Some(20),
            repetition_penalty: Some(1.05),
            max_new_tokens: Some(100),
        };
        assert_eq!(config, expected);
        assert_eq!(GenerationConfig::from_json(r#"{"top_k": -1}"#).unwrap().top_k, Some(0));
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        for (json, field) in [
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"top_p": 1.5}"#, "top_p"),
            (r#"{"top_k": 2.5}"#, "top_k"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"max_new_tokens": 0}"#, "max_new_tokens"),
            (r#"{"eos_token_id": -1}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, "two"]}"#, "eos_token_id"),
        ] {
            match GenerationConfig::from_json(json) {
                Err(ModelError::Field { field: found, .. }) => assert_eq!(found, field, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
        assert!(matches!(GenerationConfig::from_json("[1"), Err(ModelError::Json { .. })));
    }
}
