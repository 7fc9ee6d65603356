//! `POST /v1/chat/completions`: the request.

use super::ApiError;
use super::generation::{Echo, GenerationRequest, Head, read_shared};
use super::json::{Fields, value, wrong_kind};
use super::messages::read_messages;
use crate::text::{ChatPrompt, Prompt, SamplingDefaults};
use refrain_engine::MAX_LOGPROBS;
use serde_json::{Map, Value, json};

/// Reads the body of a request to `/v1/chat/completions`.
///
/// Tools are written into the prompt by the model's template (not with `tool_choice` `none`); calls come back as the
/// model wrote them, in the text.
///
/// # Errors
/// [`ApiError`] with status 400, naming the field.
pub fn parse_chat(body: &[u8], defaults: &SamplingDefaults) -> Result<GenerationRequest, ApiError> {
    let mut fields = Fields::of_body(body)?;
    let prompt = read_chat_prompt(&mut fields)?;
    let echo = match fields.boolean("echo")? {
        Some(true) => Echo::Text(last_answer(&prompt.messages)),
        _ => Echo::No,
    };
    let head = Head {
        chat: true,
        echo,
        prompts: vec![Prompt::Chat(prompt)],
        max_tokens: read_max_tokens(&mut fields)?,
        echo_only: false,
        logprobs: read_logprobs(&mut fields)?,
    };
    read_shared(fields, head, defaults)
}

/// Text of the last message, if it is the assistant's: what `echo` puts before the answer, as vLLM does.
fn last_answer(messages: &Value) -> String {
    let Some(last) = messages.as_array().and_then(|messages| messages.last()) else { return String::new() };
    match &last["content"] {
        _ if last["role"] != "assistant" => String::new(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        content => content.as_str().unwrap_or_default().to_owned(),
    }
}

/// The fields that make the prompt of a chat, also those of `/tokenize`.
pub(crate) fn read_chat_prompt(fields: &mut Fields<'_>) -> Result<ChatPrompt, ApiError> {
    let messages = match fields.raw("messages") {
        Some(raw) => read_messages(raw)?,
        None => return Err(ApiError::param("messages", "messages is required: a list of messages")),
    };
    let tools = read_tools(fields)?;
    Ok(ChatPrompt {
        messages,
        tools,
        kwargs: read_kwargs(fields)?,
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
        continue_final_message: fields.boolean("continue_final_message")?.unwrap_or(false),
    })
}

/// `max_completion_tokens` and its old name.
fn read_max_tokens(fields: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    let old = fields.count("max_tokens", 1)?;
    let new = fields.count("max_completion_tokens", 1)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(ApiError::param(
            "max_completion_tokens",
            format!("max_completion_tokens is {new} but max_tokens, its old name, is {old}: give one of them"),
        )),
        (old, new) => Ok(new.or(old)),
    }
}

/// `logprobs: true` and how many `top_logprobs`.
fn read_logprobs(fields: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS as i64)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(ApiError::param("top_logprobs", "top_logprobs can only be given when logprobs is true"))
        }
    }
}

/// Tool definitions for the template; none when `tool_choice` is `none`.
fn read_tools(fields: &mut Fields<'_>) -> Result<Option<Value>, ApiError> {
    let tools = fields.value("tools")?;
    let choice = fields.value("tool_choice")?;
    if let Some(tools) = &tools {
        check_tools(tools)?;
    }
    let given = tools.filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()));
    match choice {
        None => Ok(given),
        Some(choice) if choice == "auto" => Ok(given),
        Some(choice) if choice == "none" => Ok(None),
        Some(choice) if choice == "required" || choice.is_object() => {
            let message = "tool_choice is not supported yet, except as \"auto\" or \"none\": the model's words can't \
                           be forced into a call";
            Err(ApiError::param("tool_choice", message).code("unsupported_parameter"))
        }
        Some(_) => Err(ApiError::param("tool_choice", "tool_choice must be \"auto\" or \"none\"")),
    }
}

fn check_tools(tools: &Value) -> Result<(), ApiError> {
    let Some(tools) = tools.as_array() else { return Err(ApiError::param("tools", "tools must be a list")) };
    for (index, tool) in tools.iter().enumerate() {
        let path = format!("tools[{index}]");
        if tool["type"] != "function" {
            let message = format!("{path}.type must be \"function\"");
            return Err(ApiError::param(format!("{path}.type"), message));
        }
        if tool["function"]["name"].as_str().is_none_or(str::is_empty) {
            let message = format!("{path}.function.name must be the name of a function");
            return Err(ApiError::param(format!("{path}.function.name"), message));
        }
    }
    Ok(())
}

/// Variables of the template: `chat_template_kwargs`, and `reasoning_effort` as vLLM passes it on.
fn read_kwargs(fields: &mut Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let mut kwargs = match fields.raw("chat_template_kwargs") {
        None => Map::new(),
        Some(raw) => match value("chat_template_kwargs", raw)? {
            Value::Object(kwargs) => kwargs,
            _ => return Err(wrong_kind("chat_template_kwargs".to_owned(), "an object", raw)),
        },
    };
    if let Some(effort) = fields.string("reasoning_effort")? {
        const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
        if !EFFORTS.contains(&effort.as_str()) {
            let message = format!("reasoning_effort must be one of {}", EFFORTS.join(", "));
            return Err(ApiError::param("reasoning_effort", message));
        }
        if effort == "none" {
            kwargs.entry("enable_thinking").or_insert(json!(false));
        }
        kwargs.entry("reasoning_effort").or_insert(json!(effort));
    }
    Ok(kwargs)
}
