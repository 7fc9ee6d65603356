//! A model folder as a whole.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config::fields::{Fields, parse_object};
use crate::files::ModelFiles;
use crate::{
    ChatTemplate, Checkpoint, GenerationConfig, ModelConfig, ModelError, ModelSource, SpecialTokens, Tokenizer,
};

/// Everything that is known about a model.
#[derive(Debug)]
pub struct Model {
    /// The name it is served under: the folder or repository as the user named it, or `tinytales`.
    pub name: String,
    /// Where it comes from.
    pub source: ModelSource,
    /// Its shape.
    pub config: ModelConfig,
    /// Its sampling defaults.
    pub generation: GenerationConfig,
    /// Its tokenizer; `None`: the folder has no tokenizer.json, and only token ids can be served.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Its chat template; `None`: it has none.
    pub template: Option<Arc<ChatTemplate>>,
    /// The special tokens that a chat template may name.
    pub special_tokens: SpecialTokens,
    /// Its weights, checked against the configuration.
    pub checkpoint: Checkpoint,
}

impl Model {
    /// Reads a model: config.json and the weights must be there, generation_config.json, tokenizer.json,
    /// tokenizer_config.json and the chat template may be. Weights are mapped, not read.
    pub fn open(source: &ModelSource) -> Result<Model, ModelError> {
        let files = source.files();
        if let ModelFiles::Folder(folder) = files
            && !folder.is_dir()
        {
            return Err(ModelError::Missing { folder: folder.into(), what: "there is no such folder".into() });
        }
        let config = ModelConfig::from_json_of(&files.needed_text("config.json")?, &files.path("config.json"))?;
        let generation = match files.text("generation_config.json")? {
            Some(json) => {
                GenerationConfig::from_json_of(&json, &files.path("generation_config.json"), config.vocab_size)?
            }
            None => GenerationConfig::default(),
        };
        let checkpoint = Checkpoint::read(&files)?;
        checkpoint.validate(&config)?;
        let tokenizer = match files.text("tokenizer.json")? {
            Some(json) => {
                let tokenizer = Tokenizer::from_bytes(json.as_bytes(), &files.path("tokenizer.json"))?;
                if tokenizer.vocab_size() > config.vocab_size {
                    let (ids, rows) = (tokenizer.vocab_size(), config.vocab_size);
                    tracing::warn!(
                        "{}: {ids} tokens, but the model has {rows}",
                        files.path("tokenizer.json").display()
                    );
                }
                Some(Arc::new(tokenizer))
            }
            None => None,
        };
        let tokenizer_config = TokenizerConfig::read(&files)?;
        let special_tokens = tokenizer_config.special_tokens.clone();
        let template = template(&files, tokenizer_config)?.map(Arc::new);
        let (name, source) = (source.name(), source.clone());
        Ok(Model { name, source, config, generation, tokenizer, template, special_tokens, checkpoint })
    }

    /// Every token that ends an answer, from config.json and generation_config.json, sorted.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        let mut ids = [self.config.eos_token_ids.as_slice(), &self.generation.eos_token_ids].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// What matters of tokenizer_config.json.
#[derive(Default)]
struct TokenizerConfig {
    special_tokens: SpecialTokens,
    template: Option<String>,
}

impl TokenizerConfig {
    fn read(files: &ModelFiles<'_>) -> Result<TokenizerConfig, ModelError> {
        let Some(json) = files.text(TOKENIZER_CONFIG)? else { return Ok(TokenizerConfig::default()) };
        let path = files.path(TOKENIZER_CONFIG);
        let map = parse_object(&json, &path)?;
        let fields = Fields::new(&path, &map);
        let special_tokens = SpecialTokens {
            bos: special_token(&fields, "bos_token")?,
            eos: special_token(&fields, "eos_token")?,
            pad: special_token(&fields, "pad_token")?,
            unk: special_token(&fields, "unk_token")?,
        };
        let template = match fields.get("chat_template") {
            None => None,
            Some(Value::String(template)) => Some(template.clone()),
            Some(Value::Array(named)) => Some(default_template(&fields, named)?),
            Some(_) => return Err(fields.error("chat_template", "is neither a template nor a list of them")),
        };
        Ok(TokenizerConfig { special_tokens, template })
    }
}

/// A token: its text, or an object that holds it as `content`.
fn special_token(fields: &Fields<'_>, name: &str) -> Result<Option<String>, ModelError> {
    match fields.get(name) {
        Some(Value::Object(map)) => match map.get("content") {
            Some(Value::String(token)) => Ok(Some(token.clone())),
            _ => Err(fields.error(name, "has no text as `content`")),
        },
        _ => Ok(fields.text(name)?.map(str::to_string)),
    }
}

/// The template named `default` among `{"name": .., "template": ..}`.
fn default_template(fields: &Fields<'_>, named: &[Value]) -> Result<String, ModelError> {
    let text = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_string);
    let mut names = Vec::new();
    for map in named.iter().filter_map(Value::as_object) {
        match (text(map, "name"), text(map, "template")) {
            (Some(name), Some(template)) if name == "default" => return Ok(template),
            (name, _) => names.extend(name),
        }
    }
    Err(fields.error("chat_template", format!("has no template named `default`, only: {}", names.join(", "))))
}

/// The chat template: a file of its own, or the one of tokenizer_config.json.
fn template(files: &ModelFiles<'_>, config: TokenizerConfig) -> Result<Option<ChatTemplate>, ModelError> {
    let (source, file) = match (files.text(TEMPLATE_FILE)?, config.template) {
        (Some(source), _) => (source, TEMPLATE_FILE),
        (None, Some(source)) => (source, TOKENIZER_CONFIG),
        (None, None) => return Ok(None),
    };
    let template = ChatTemplate::new(&source, &config.special_tokens);
    template.map(Some).map_err(|source| ModelError::Template { file: files.path(file), source })
}
