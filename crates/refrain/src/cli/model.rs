//! Which model, and how it is read.

use std::path::PathBuf;

use clap::Args;
use refrain_model::{HubAccess, ResolveOptions};
use serde_json::{Map, Value};

use super::values::{DtypeArg, MaxModelLen, json_object};
use crate::load::GenerationSource;

/// Which model, and how it is read.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Folder, Hugging Face repository (owner/name), or nothing for the embedded model tinytales
    #[arg(value_name = "MODEL", help_heading = "Arguments")]
    pub model_positional: Option<String>,

    /// The same as a flag
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,

    /// Folder with another tokenizer.json, or that file
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,

    /// Read no tokenizer: prompts and answers are token ids only
    #[arg(long)]
    pub skip_tokenizer_init: bool,

    /// Names under which the API serves the model; the first one stands in answers
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub served_model_name: Vec<String>,

    /// Type of the weights and of the arithmetic: auto (the checkpoint's), bfloat16, float16 or float32, which computes
    /// in F32 with the weights as they are stored [default: auto]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "TYPE")]
    pub dtype: Option<DtypeArg>,

    /// Most tokens of a sequence, prompt and answer together: a number (32768, 32k = 32000, 32K = 32768, 1M) or auto,
    /// what the model has or what fits into memory [default: auto]
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<MaxModelLen>,

    /// File with another chat template (Jinja)
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Sampling defaults: auto (the model's generation_config.json), vllm (none), or a folder with that file
    /// [default: auto]
    #[arg(long, value_name = "SOURCE")]
    pub generation_config: Option<String>,

    /// Sampling defaults that replace those of the file, such as '{"temperature": 0.7}'
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    pub override_generation_config: Option<Map<String, Value>>,

    /// Branch, tag or commit of a Hugging Face repository [default: main]
    #[arg(long, value_name = "NAME")]
    pub revision: Option<String>,

    /// Folder for downloads [default: the Hugging Face cache]
    #[arg(long, value_name = "DIR")]
    pub download_dir: Option<PathBuf>,

    /// Format of the weights: auto and safetensors are the same
    #[arg(long, value_name = "FORMAT", value_parser = load_format)]
    pub load_format: Option<String>,

    /// Seed of everything random that has no seed of its own [default: 0]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Serve the language model of a checkpoint that has a vision tower too; this is always so
    #[arg(long)]
    pub language_model_only: bool,

    /// Reserve no memory for images; this is always so
    #[arg(long)]
    pub skip_mm_profiling: bool,

    /// Accepted and without effect: a model's own code is never run
    #[arg(long)]
    pub trust_remote_code: bool,

    /// Folder of Hugging Face's files [default: ~/.cache/huggingface]
    #[arg(long, value_name = "DIR", env = "HF_HOME", hide_env_values = true)]
    pub hf_home: Option<PathBuf>,

    /// Folder of the Hugging Face cache [default: hub in --hf-home]
    #[arg(long, value_name = "DIR", env = "HF_HUB_CACHE", hide_env_values = true)]
    pub hf_hub_cache: Option<PathBuf>,

    /// Download nothing
    #[arg(long, env = "HF_HUB_OFFLINE", hide_env_values = true)]
    pub hf_hub_offline: bool,

    /// Address of the hub [default: huggingface.co]
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT", hide_env_values = true)]
    pub hf_endpoint: Option<String>,

    /// Token for repositories that ask for one [default: the one that is stored beside the cache]
    #[arg(long, value_name = "TOKEN", env = "HF_TOKEN", hide_env_values = true)]
    pub hf_token: Option<String>,
}

fn load_format(text: &str) -> Result<String, String> {
    match text {
        "auto" | "safetensors" => Ok(text.to_owned()),
        _ => Err("only safetensors can be read; use auto or safetensors".to_owned()),
    }
}

impl ModelArgs {
    /// The name of the model; the command line goes before the variable.
    pub fn name(&self) -> Option<String> {
        self.model_positional.clone().or_else(|| self.model.clone()).filter(|name| !name.is_empty())
    }

    /// Where models are looked for.
    pub fn resolve_options(&self) -> ResolveOptions {
        let home = || std::env::home_dir().unwrap_or_default().join(".cache/huggingface");
        let hub_cache =
            self.hf_hub_cache.clone().unwrap_or_else(|| self.hf_home.clone().unwrap_or_else(home).join("hub"));
        ResolveOptions {
            revision: self.revision.clone(),
            download_dir: self.download_dir.clone(),
            hub_cache,
            offline: self.hf_hub_offline,
        }
    }

    /// Where downloads come from.
    pub fn hub_access(&self) -> HubAccess {
        HubAccess { endpoint: self.hf_endpoint.clone(), token: self.hf_token.clone() }
    }

    /// Where sampling defaults come from.
    pub fn generation_source(&self) -> Option<GenerationSource> {
        self.generation_config.as_deref().map(|source| match source {
            "auto" => GenerationSource::Model,
            "vllm" => GenerationSource::Neutral,
            folder => GenerationSource::Folder(folder.into()),
        })
    }
}
