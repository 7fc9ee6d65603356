//! The messages of a chat, checked, and in the form that templates expect.

use super::ApiError;
use super::json::{clip, nearest, unknown_field, value};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// Most messages in one request.
pub const MAX_MESSAGES: usize = 4096;

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Fields of a message that reach the template.
const FIELDS: [&str; 7] = ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"];

/// Fields that clients send back from earlier answers; they must be empty.
const EMPTY_FIELDS: [&str; 4] = ["refusal", "audio", "function_call", "annotations"];

/// Reads `messages`. The result is an array of objects as Hugging Face's templates expect them: `developer` is called
/// `system`, the arguments of tool calls are objects, `null` fields are left out.
pub(crate) fn read_messages(raw: &RawValue) -> Result<Value, ApiError> {
    let Value::Array(mut messages) = value("messages", raw)? else {
        return Err(ApiError::param("messages", "messages must be a list"));
    };
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        let message = format!("messages must have 1 to {MAX_MESSAGES} entries, got {}", messages.len());
        return Err(ApiError::param("messages", message));
    }
    for (index, message) in messages.iter_mut().enumerate() {
        let path = format!("messages[{index}]");
        match message {
            Value::Object(message) => check_message(&path, message)?,
            _ => return Err(ApiError::param(path.clone(), format!("{path} must be an object with role and content"))),
        }
    }
    Ok(Value::Array(messages))
}

fn check_message(path: &str, message: &mut Map<String, Value>) -> Result<(), ApiError> {
    message.retain(|_, value| !value.is_null());
    for name in EMPTY_FIELDS {
        match message.shift_remove(name) {
            None => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(_) => return Err(wrong(path, name, "is not supported yet: leave it out")),
        }
    }
    if let Some(unknown) = message.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        let path = format!("{path}.{}", clip(unknown));
        return Err(unknown_field(path, unknown, &FIELDS));
    }
    let role = check_role(path, message)?;
    for name in ["name", "tool_call_id", "reasoning_content", "reasoning"] {
        if message.get(name).is_some_and(|value| !value.is_string()) {
            return Err(wrong(path, name, "must be a string"));
        }
    }
    // vLLM's newer name of the same field.
    if let Some(reasoning) = message.shift_remove("reasoning") {
        message.entry("reasoning_content").or_insert(reasoning);
    }
    let calls = check_tool_calls(path, role, message)?;
    let thought = message.contains_key("reasoning_content");
    match message.get_mut("content") {
        Some(content) => check_content(&format!("{path}.content"), content),
        // An assistant may have only called tools, or only thought.
        None if role == "assistant" && (calls || thought) => {
            message.insert("content".to_owned(), json!(""));
            Ok(())
        }
        None => Err(wrong(path, "content", "is required: a string or a list of text parts")),
    }
}

fn check_role(path: &str, message: &mut Map<String, Value>) -> Result<&'static str, ApiError> {
    let choices = ROLES.join(", ");
    let Some(Value::String(role)) = message.get_mut("role") else {
        return Err(wrong(path, "role", &format!("is required: one of {choices}")));
    };
    if role == "developer" {
        // OpenAI's newer name for the same thing; templates know the older one.
        *role = "system".to_owned();
    }
    match ROLES.iter().find(|known| *known == role) {
        Some(known) => Ok(known),
        None => {
            let hint = nearest(role, &ROLES).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            Err(wrong(path, "role", &format!("must be one of {choices}, got {:?}{hint}", clip(role))))
        }
    }
}

/// Checks `tool_calls` and turns their arguments into objects; says whether there are any.
fn check_tool_calls(path: &str, role: &str, message: &mut Map<String, Value>) -> Result<bool, ApiError> {
    let Some(calls) = message.get_mut("tool_calls") else { return Ok(false) };
    let Value::Array(calls) = calls else { return Err(wrong(path, "tool_calls", "must be a list")) };
    if calls.is_empty() {
        message.shift_remove("tool_calls");
        return Ok(false);
    }
    if role != "assistant" {
        return Err(wrong(path, "tool_calls", "belong to messages of the assistant"));
    }
    for (index, call) in calls.iter_mut().enumerate() {
        let path = format!("{path}.tool_calls[{index}]");
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
            return Err(wrong(&path, "function", "is required: an object with name and arguments"));
        };
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(wrong(&path, "function.name", "must be a string"));
        }
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => json!({}),
            Some(Value::String(text)) if text.trim().is_empty() => json!({}),
            Some(Value::String(text)) => serde_json::from_str(text).unwrap_or(Value::Null),
            Some(arguments) => arguments.clone(),
        };
        if !arguments.is_object() {
            return Err(wrong(&path, "function.arguments", "must be a JSON object, as text or as it is"));
        }
        function.insert("arguments".to_owned(), arguments);
    }
    Ok(true)
}

/// A string, or a list of text parts.
fn check_content(path: &str, content: &mut Value) -> Result<(), ApiError> {
    let parts = match content {
        Value::String(_) => return Ok(()),
        Value::Array(parts) if !parts.is_empty() => parts,
        _ => {
            let message = format!("{path} must be a string or a list of text parts");
            return Err(ApiError::param(path, message));
        }
    };
    for (index, part) in parts.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match part.get("type").and_then(Value::as_str) {
            Some("text") => {}
            Some("image_url" | "input_audio" | "audio_url" | "video_url" | "file" | "image" | "refusal") => {
                let message = format!("{path}.type {} is not supported yet: this server reads text only", part["type"]);
                return Err(ApiError::param(format!("{path}.type"), message).code("unsupported_parameter"));
            }
            _ => return Err(wrong(&path, "type", "must be \"text\"")),
        }
        if !part.get("text").is_some_and(Value::is_string) {
            return Err(wrong(&path, "text", "must be a string"));
        }
        let known = ["type", "text"];
        if let Some(unknown) = part.as_object().and_then(|part| part.keys().find(|key| !known.contains(&key.as_str())))
        {
            return Err(unknown_field(format!("{path}.{}", clip(unknown)), unknown, &known));
        }
    }
    Ok(())
}

fn wrong(path: &str, name: &str, what: &str) -> ApiError {
    let path = format!("{path}.{name}");
    let message = format!("{path} {what}");
    ApiError::param(path, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(messages: Value) -> Result<Value, ApiError> {
        let raw = serde_json::value::to_raw_value(&messages).unwrap();
        read_messages(&raw)
    }

    #[test]
    fn what_the_openai_client_sends_back_is_taken() {
        let messages = read(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}
            ]},
            {"role": "tool", "tool_call_id": "1", "content": "cold"},
        ]))
        .unwrap();
        assert_eq!(messages[0]["role"], "system");
        assert_eq!(messages[1]["content"][0]["text"], "Weather?");
        assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"], json!({"city": "Oslo"}));
        assert_eq!(messages[2]["content"], "");
    }

    #[test]
    fn each_mistake_names_its_place() {
        let cases = [
            (json!({}), "messages"),
            (json!([]), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"content": "hi"}]), "messages[0].role"),
            (json!([{"role": "usr", "content": "hi"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 3}]), "messages[0].content"),
            (json!([{"role": "user", "content": []}]), "messages[0].content"),
            (json!([{"role": "user", "content": "a", "contents": 1}]), "messages[0].contents"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": "a", "tool_calls": [{}]}]), "messages[0].tool_calls"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function"),
            (
                json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ];
        for (messages, param) in cases {
            let error = read(messages.clone()).expect_err(&messages.to_string());
            assert_eq!(error.param.as_deref(), Some(param), "{messages}: {}", error.message);
        }
    }
}
