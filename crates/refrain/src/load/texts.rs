//! Tokenizer, chat template and sampling defaults, where flags replace what the model folder has.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use refrain_model::{ChatTemplate, GenerationConfig, Model, ModelError, Tokenizer};
use serde_json::{Map, Value};

use super::{GenerationSource, LoadError, LoadOptions, Settings};
use crate::cli::Origin;

/// Reads `--tokenizer`, `--skip-tokenizer-init`, `--chat-template`, `--generation-config` and
/// `--override-generation-config` into the model.
pub(super) fn replace(model: &mut Model, options: &LoadOptions, settings: &mut Settings) -> Result<(), LoadError> {
    replace_tokenizer(model, options, settings)?;
    if let Some(file) = &options.chat_template {
        let source = read(file)?;
        let template = ChatTemplate::new(&source, &model.special_tokens).map_err(|error| LoadError::Setting {
            flag: "--chat-template",
            why: format!("{}: {error}", file.display()),
        })?;
        model.template = Some(Arc::new(template));
        settings.push("chat_template", file.display(), Origin::Given);
    } else {
        settings.push("chat_template", if model.template.is_some() { "the model's" } else { "none" }, Origin::Default);
    }
    replace_generation(model, options, settings)
}

fn replace_tokenizer(model: &mut Model, options: &LoadOptions, settings: &mut Settings) -> Result<(), LoadError> {
    if options.skip_tokenizer_init {
        model.tokenizer = None;
        model.template = None;
        settings.push("skip_tokenizer_init", true, Origin::Given);
        return Ok(());
    }
    let Some(path) = &options.tokenizer else {
        if model.tokenizer.is_none() {
            settings.push("tokenizer", "none: token ids only", Origin::Default);
        }
        return Ok(());
    };
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.clone() };
    model.tokenizer = Some(Arc::new(Tokenizer::from_file(&file)?));
    settings.push("tokenizer", file.display(), Origin::Given);
    Ok(())
}

fn replace_generation(model: &mut Model, options: &LoadOptions, settings: &mut Settings) -> Result<(), LoadError> {
    let origin = match &options.generation_config {
        None => Origin::File("generation_config.json"),
        Some(GenerationSource::Model) => Origin::File("generation_config.json"),
        Some(GenerationSource::Neutral) => {
            model.generation = GenerationConfig::default();
            Origin::Given
        }
        Some(GenerationSource::Folder(folder)) => {
            let file = folder.join("generation_config.json");
            model.generation = GenerationConfig::from_json_of(&read(&file)?, &file, model.config.vocab_size)?;
            Origin::Given
        }
    };
    let origin = if model.generation == GenerationConfig::default() && origin != Origin::Given {
        Origin::Default
    } else {
        origin
    };
    settings.push("generation_config", describe(&model.generation), origin);
    if let Some(json) = &options.override_generation_config {
        override_with(&mut model.generation, json, model.config.vocab_size)?;
        settings.push("override_generation_config", describe(&model.generation), Origin::Given);
    }
    Ok(())
}

fn read(file: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(file).map_err(|source| LoadError::Read { file: file.to_owned(), source })
}

/// Replaces what the JSON names. Unlike a model's file, it may have no member that means nothing.
fn override_with(config: &mut GenerationConfig, json: &Map<String, Value>, vocab_size: usize) -> Result<(), LoadError> {
    const FLAG: &str = "--override-generation-config";
    const KNOWN: [&str; 7] =
        ["eos_token_id", "temperature", "top_p", "min_p", "top_k", "repetition_penalty", "max_new_tokens"];
    if let Some(unknown) = json.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        let why = format!("{unknown:?} is no sampling default; there are {}", KNOWN.join(", "));
        return Err(LoadError::Setting { flag: FLAG, why });
    }
    let json = Value::Object(json.clone()).to_string();
    let new = GenerationConfig::from_json_of(&json, Path::new(FLAG), vocab_size).map_err(|error| match error {
        // The file that is right must not be blamed for the flag.
        ModelError::Field { field, problem, .. } => {
            LoadError::Setting { flag: FLAG, why: format!("`{field}`: {problem}") }
        }
        other => other.into(),
    })?;
    if !new.eos_token_ids.is_empty() {
        config.eos_token_ids = new.eos_token_ids;
    }
    config.temperature = new.temperature.or(config.temperature);
    config.top_p = new.top_p.or(config.top_p);
    config.min_p = new.min_p.or(config.min_p);
    config.top_k = new.top_k.or(config.top_k);
    config.repetition_penalty = new.repetition_penalty.or(config.repetition_penalty);
    config.max_new_tokens = new.max_new_tokens.or(config.max_new_tokens);
    Ok(())
}

fn describe(config: &GenerationConfig) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let space = if text.is_empty() { "" } else { " " };
            // Writing to a string can't fail.
            let _ = write!(text, "{space}{name}={value}");
        }
    };
    add("temperature", config.temperature.map(|value| value.to_string()));
    add("top_p", config.top_p.map(|value| value.to_string()));
    add("top_k", config.top_k.map(|value| value.to_string()));
    add("min_p", config.min_p.map(|value| value.to_string()));
    add("repetition_penalty", config.repetition_penalty.map(|value| value.to_string()));
    add("max_new_tokens", config.max_new_tokens.map(|value| value.to_string()));
    if text.is_empty() { "neutral".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(json: Value) -> Map<String, Value> {
        json.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn an_unknown_default_is_refused_by_name() {
        let mut config = GenerationConfig::default();
        let message = override_with(&mut config, &object(json!({ "temprature": 1 })), 50).unwrap_err().to_string();
        assert!(message.contains("temprature") && message.contains("temperature,"), "{message}");
    }

    #[test]
    fn an_impossible_default_is_refused_by_flag_and_name() {
        for (json, field) in [
            (json!({ "temperature": -1 }), "temperature"),
            (json!({ "top_p": "all" }), "top_p"),
            (json!({ "eos_token_id": [1, 50] }), "eos_token_id"),
        ] {
            let message = override_with(&mut GenerationConfig::default(), &object(json), 50).unwrap_err().to_string();
            assert!(message.starts_with(&format!("--override-generation-config: `{field}`: ")), "{message}");
        }
    }

    #[test]
    fn only_what_is_named_is_replaced() {
        let mut config = GenerationConfig { temperature: Some(0.7), top_k: Some(20), ..GenerationConfig::default() };
        override_with(&mut config, &object(json!({ "temperature": 0.5, "max_new_tokens": 9 })), 50).unwrap();
        assert_eq!(describe(&config), "temperature=0.5 top_k=20 max_new_tokens=9");
        assert_eq!(describe(&GenerationConfig::default()), "neutral");
    }
}
