//! The one table of request fields that change nothing here, and of those that can't be honoured yet.

use super::ApiError;
use super::json::{Fields, value};
use serde_json::{Value, json};

/// A field that is accepted without effect.
struct Quiet {
    name: &'static str,
    endpoints: Endpoints,
    values: Accepted,
    /// Why that is right.
    reason: &'static str,
}

/// Which endpoints have the field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Endpoints {
    Both,
    Chat,
    Completions,
}

/// Which values are accepted; `null` always is.
enum Accepted {
    /// Any: nothing depends on it.
    Any,
    /// These, because they ask for what happens anyway; another value is refused as not supported yet.
    Only(fn() -> Vec<Value>),
    /// None: the feature doesn't exist yet.
    Never,
}

use Accepted::{Any, Never, Only};
use Endpoints::{Both, Chat, Completions};

const fn quiet(name: &'static str, endpoints: Endpoints, values: Accepted, reason: &'static str) -> Quiet {
    Quiet { name, endpoints, values, reason }
}

/// Fields of OpenAI's and vLLM's APIs that are accepted without effect, and when.
const QUIET: &[Quiet] = &[
    quiet("user", Both, Any, "names the end user; nothing is kept about users"),
    quiet("safety_identifier", Both, Any, "names the end user; nothing is kept about users"),
    quiet("metadata", Both, Any, "labels stored answers; nothing is stored"),
    quiet("store", Both, Only(|| vec![json!(false)]), "answers are not stored"),
    quiet("service_tier", Both, Only(|| vec![json!("auto"), json!("default")]), "there is one tier"),
    quiet("prompt_cache_key", Both, Any, "a hint for caches that several servers share"),
    quiet("prompt_cache_options", Both, Any, "a hint for caches that several servers share"),
    quiet("prompt_cache_retention", Both, Any, "a hint for caches that several servers share"),
    quiet("cache_salt", Both, Any, "separates the prompt caches of clients; no prompt is cached"),
    quiet("parallel_tool_calls", Chat, Any, "tool calls are returned as the model wrote them, in the text"),
    quiet("modalities", Chat, Only(|| vec![json!(["text"])]), "the model writes text only"),
    quiet("response_format", Both, Only(|| vec![json!({"type": "text"})]), "answers are free text"),
    quiet("verbosity", Chat, Only(|| vec![json!("medium")]), "the model knows one verbosity"),
    quiet("include_reasoning", Chat, Only(|| vec![json!(true)]), "reasoning is part of the returned text"),
    quiet("spaces_between_special_tokens", Both, Any, "byte-level tokenizers put no spaces there"),
    quiet("best_of", Completions, Only(|| vec![json!(1)]), "every answer is returned"),
    quiet("suffix", Completions, Only(|| vec![json!("")]), "the model only continues texts"),
    quiet("use_beam_search", Both, Only(|| vec![json!(false)]), "answers are sampled"),
    quiet("length_penalty", Both, Only(|| vec![json!(1), json!(1.0)]), "belongs to beam search"),
    quiet("early_stopping", Both, Only(|| vec![json!(false)]), "belongs to beam search"),
    quiet("structured_outputs", Both, Never, "answers are free text"),
    quiet("guided_json", Both, Never, "answers are free text"),
    quiet("guided_regex", Both, Never, "answers are free text"),
    quiet("guided_choice", Both, Never, "answers are free text"),
    quiet("guided_grammar", Both, Never, "answers are free text"),
    quiet("functions", Chat, Never, "deprecated by OpenAI: use tools"),
    quiet("function_call", Chat, Never, "deprecated by OpenAI: use tool_choice"),
    quiet("moderation", Chat, Never, "nothing is moderated"),
    quiet("audio", Chat, Never, "the model writes text only"),
    quiet("prediction", Chat, Never, "there is no speculative decoding"),
    quiet("web_search_options", Chat, Never, "the server looks nothing up"),
    quiet("documents", Chat, Never, "put documents into the messages"),
    quiet("chat_template", Chat, Never, "templates come from the model folder or --chat-template, not from clients"),
    quiet("mm_processor_kwargs", Chat, Never, "the server reads text only"),
    quiet("prompt_embeds", Completions, Never, "prompts are text or token ids"),
    quiet("thinking_token_budget", Both, Never, "reasoning is not counted apart"),
    quiet("logprob_token_ids", Both, Never, "log-probabilities are of the best tokens"),
    quiet("repetition_detection", Both, Never, "use the penalties"),
    quiet("stream_interval", Both, Only(|| vec![json!(1)]), "each token is sent as it is made"),
];

/// Takes the fields without effect, and refuses what can't be honoured.
pub(crate) fn take_quiet(fields: &mut Fields<'_>, chat: bool) -> Result<(), ApiError> {
    let here = if chat { Chat } else { Completions };
    for field in QUIET.iter().filter(|field| field.endpoints == Both || field.endpoints == here) {
        let Some(raw) = fields.raw(field.name) else { continue };
        let Quiet { name, reason, .. } = field;
        let accepted = match field.values {
            Any => continue,
            Only(values) => values(),
            Never => Vec::new(),
        };
        if accepted.contains(&value(name, raw)?) {
            continue;
        }
        let hint = match accepted.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ") {
            only if only.is_empty() => String::new(),
            only => format!(", except as {only}"),
        };
        let message = format!("{name} is not supported yet{hint}: {reason}");
        return Err(ApiError::param(*name, message).code("unsupported_parameter"));
    }
    Ok(())
}
