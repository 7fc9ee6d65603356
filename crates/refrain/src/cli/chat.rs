//! Flags of `refrain chat`.

use clap::Args;

use super::engine::EngineArgs;

/// Flags of `refrain chat`.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,

    /// How it talks.
    #[command(flatten)]
    pub options: ChatOptions,
}

/// How the conversation goes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Conversation")]
pub struct ChatOptions {
    /// Answer this and leave; what is piped in comes after it
    #[arg(long, short, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Instruction that goes before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Most tokens of an answer [default: as many as the context has room for]
    #[arg(long, value_name = "TOKENS", value_parser = super::values::at_least_one)]
    pub max_tokens: Option<usize>,

    /// Variables for the chat template, such as '{"enable_thinking": true}'
    #[arg(long, value_name = "JSON", value_parser = super::values::json_object)]
    pub chat_template_kwargs: Option<serde_json::Map<String, serde_json::Value>>,

    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// How tokens are chosen; what is left out has the model's default.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 takes the most probable token; higher is more varied
    #[arg(long, value_name = "NUMBER")]
    pub temperature: Option<f32>,

    /// Take from the most probable tokens that make up this much
    #[arg(long, value_name = "NUMBER")]
    pub top_p: Option<f32>,

    /// Take from this many of the most probable tokens; 0 is all
    #[arg(long, value_name = "NUMBER")]
    pub top_k: Option<i64>,

    /// Take only tokens at least this probable, relative to the most probable
    #[arg(long, value_name = "NUMBER")]
    pub min_p: Option<f32>,

    /// Against tokens that the answer already has
    #[arg(long, value_name = "NUMBER")]
    pub presence_penalty: Option<f32>,

    /// Against tokens, for each time the answer already has them
    #[arg(long, value_name = "NUMBER")]
    pub frequency_penalty: Option<f32>,

    /// Against tokens that prompt or answer already have; 1 is off
    #[arg(long, value_name = "NUMBER")]
    pub repetition_penalty: Option<f32>,
}

impl SamplingArgs {
    /// The flags that were given, as members of a request.
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut json = serde_json::Map::new();
        let numbers = [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
            ("repetition_penalty", self.repetition_penalty),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                // Through text, so that 0.7 stays 0.7 and doesn't become 0.699999988.
                json.insert(name.to_owned(), serde_json::from_str(&value.to_string()).unwrap_or(value.into()));
            }
        }
        if let Some(top_k) = self.top_k {
            json.insert("top_k".to_owned(), top_k.into());
        }
        json
    }
}
