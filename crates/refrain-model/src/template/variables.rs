//! What a template sees: the messages and other variables as transformers prepares them.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{ChatInput, SpecialTokens, TemplateError};

/// Names that a request gives in fields of their own, or that would mean something else to the caller's eye.
const RESERVED: [&str; 6] =
    ["messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"];

/// Names for what a model thought, the standard one first.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Marks the end of the final message, so that the prompt can be cut there.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// All variables of a rendering.
pub(super) fn variables(input: &ChatInput<'_>, special: &SpecialTokens) -> Result<Value, TemplateError> {
    if let Some(name) = input.kwargs.keys().find(|name| RESERVED.contains(&name.as_str())) {
        return Err(TemplateError::Reserved { name: name.clone() });
    }
    let Some(messages) = input.messages.as_array() else {
        return Err(TemplateError::Failed { problem: "messages is not a list".into() });
    };
    if let Some(wrong) = messages.iter().find(|message| !message.is_object()) {
        return Err(TemplateError::Failed { problem: format!("a message must be an object, not {wrong}") });
    }
    let mut messages: Vec<Json> = messages.iter().map(with_reasoning).collect();
    if input.continue_final_message {
        if input.add_generation_prompt {
            let problem = "can't be had together with add_generation_prompt".into();
            return Err(TemplateError::Continue { problem });
        }
        tag_final_message(&mut messages)?;
    }
    let mut variables: Vec<(&str, Value)> = Vec::new();
    let tokens = [
        ("bos_token", &special.bos),
        ("eos_token", &special.eos),
        ("pad_token", &special.pad),
        ("unk_token", &special.unk),
    ];
    variables.extend(tokens.iter().filter_map(|(name, token)| Some((*name, Value::from(token.as_deref()?)))));
    variables.push(("documents", Value::from(())));
    variables.extend(input.kwargs.iter().map(|(name, value)| (name.as_str(), to_value(value))));
    variables.push(("messages", messages.iter().map(to_value).collect()));
    variables.push(("tools", input.tools.map_or(Value::from(()), to_value)));
    variables.push(("add_generation_prompt", Value::from(input.add_generation_prompt)));
    Ok(Value::from_pairs(variables))
}

/// JSON as the template's own values, keys in order.
fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), to_value(value)))),
    }
}

/// A message with its reasoning under the standard name too, as transformers does.
fn with_reasoning(message: &Json) -> Json {
    let found = REASONING_FIELDS.iter().find_map(|field| message.get(field).filter(|value| !value.is_null()));
    let (Some(reasoning), Json::Object(fields)) = (found, message) else { return message.clone() };
    let mut map = Map::new();
    map.insert("thinking".into(), reasoning.clone());
    map.extend(fields.clone());
    map.insert("reasoning_content".into(), reasoning.clone());
    Json::Object(map)
}

/// The text of a message that can be continued: its content, or the last text among its parts.
fn final_text(message: &mut Json) -> Option<&mut String> {
    match message.get_mut("content")? {
        Json::String(text) => Some(text),
        Json::Array(parts) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Json::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    }
}

fn tag_final_message(messages: &mut [Json]) -> Result<(), TemplateError> {
    let error = |problem: &str| TemplateError::Continue { problem: problem.into() };
    let message = messages.last_mut().ok_or_else(|| error("there is no message"))?;
    final_text(message).ok_or_else(|| error("the final message has no text to continue"))?.push_str(TAG);
    Ok(())
}

/// The prompt up to the end of the final message's text.
pub(super) fn cut_at_final_message(messages: &Json, mut prompt: String) -> Result<String, TemplateError> {
    let mut last = messages.as_array().and_then(|messages| messages.last()).cloned().unwrap_or_default();
    let text = final_text(&mut last).map(|text| text.trim().to_string()).unwrap_or_default();
    let at = prompt.rfind(TAG.trim()).filter(|_| prompt.contains(&text));
    let Some(at) = at else {
        let problem = "the template leaves out or changes the final message".into();
        return Err(TemplateError::Continue { problem });
    };
    let trimmed = !prompt[at..].starts_with(TAG);
    prompt.truncate(at);
    if trimmed {
        // The template strips messages, so it would have stripped the end of this one.
        prompt.truncate(prompt.trim_end().len());
    }
    Ok(prompt)
}
