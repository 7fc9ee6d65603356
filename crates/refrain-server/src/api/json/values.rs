//! Single values of a request, within limits that keep small texts from becoming large structures.

use super::super::ApiError;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;
use std::marker::PhantomData;

/// Deepest nesting of a value that is kept as JSON (messages, tools, template variables).
const MAX_DEPTH: usize = 64;
/// Most elements, at all depths together, of a value that is kept as JSON.
pub(super) const MAX_ELEMENTS: usize = 200_000;

/// A list's elements as they stand in the body.
pub(super) fn list<'a>(path: &str, raw: &'a RawValue, most: usize) -> Result<Vec<&'a RawValue>, ApiError> {
    if !raw.get().starts_with('[') {
        return Err(wrong_kind(path.to_owned(), "a list", raw));
    }
    bounded(path, raw, most)
}

/// Token ids of a list.
pub(crate) fn token_ids(path: &str, raw: &RawValue, most: usize) -> Result<Vec<u32>, ApiError> {
    if !raw.get().starts_with('[') {
        return Err(wrong_kind(path.to_owned(), "a list of token ids", raw));
    }
    bounded::<u32>(path, raw, most).map_err(|error| {
        let is_id = |item: &RawValue| item.get().parse::<u32>().is_ok();
        match list(path, raw, most).ok().and_then(|items| {
            let index = items.iter().position(|item| !is_id(item))?;
            Some((index, clip(items[index].get())))
        }) {
            Some((index, item)) => {
                let path = format!("{path}[{index}]");
                let message = format!("{path} must be a token id, an integer from 0 to {}, got {item}", u32::MAX);
                ApiError::param(path, message)
            }
            None => error,
        }
    })
}

/// A list of at most `most` elements; no more than that are ever kept.
pub(crate) fn bounded<'a, T: Deserialize<'a>>(path: &str, raw: &'a RawValue, most: usize) -> Result<Vec<T>, ApiError> {
    struct Bounded<T>(usize, PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut kept = Vec::new();
            while kept.len() < self.0 {
                match items.next_element()? {
                    Some(item) => kept.push(item),
                    None => return Ok(Some(kept)),
                }
            }
            let more = items.next_element::<serde::de::IgnoredAny>()?.is_some();
            while items.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            Ok((!more).then_some(kept))
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    match deserializer.deserialize_seq(Bounded(most, PhantomData)) {
        Ok(Some(items)) => Ok(items),
        Ok(None) => Err(ApiError::param(path, format!("{path} may have at most {most} elements"))),
        Err(error) => Err(ApiError::param(path, format!("{path}: {error}"))),
    }
}

/// Any JSON of moderate depth and size.
pub(crate) fn value(path: &str, raw: &RawValue) -> Result<Value, ApiError> {
    check_size(path, raw.get())?;
    serde_json::from_str(raw.get()).map_err(|error| ApiError::param(path, format!("{path}: {error}")))
}

/// A string; lone surrogates are refused.
pub(crate) fn string(path: String, raw: &RawValue) -> Result<String, ApiError> {
    if !raw.get().starts_with('"') {
        return Err(wrong_kind(path, "a string", raw));
    }
    serde_json::from_str(raw.get())
        .map_err(|error| ApiError::param(path.clone(), format!("{path} is not valid text: {error}")))
}

/// A finite number that fits single precision.
pub(crate) fn number(path: String, raw: &RawValue) -> Result<f32, ApiError> {
    if !is_number(raw) {
        return Err(wrong_kind(path, "a number", raw));
    }
    match raw.get().parse::<f64>() {
        Ok(value) if value.abs() <= f64::from(f32::MAX) => Ok(value as f32),
        _ => {
            let message = format!("{path} is too large: {}", clip(raw.get()));
            Err(ApiError::param(path, message))
        }
    }
}

/// Refuses values that would take much more memory than their text, before they are made.
fn check_size(path: &str, text: &str) -> Result<(), ApiError> {
    let (mut depth, mut elements, mut in_string, mut escaped) = (0usize, 1usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                elements += 1;
                if depth > MAX_DEPTH {
                    let message = format!("{path} is nested deeper than {MAX_DEPTH} levels");
                    return Err(ApiError::param(path, message));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => elements += 1,
            _ => {}
        }
    }
    if elements > MAX_ELEMENTS {
        return Err(ApiError::param(path, format!("{path} has more than {MAX_ELEMENTS} elements")));
    }
    Ok(())
}

pub(super) fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// What a piece of JSON is, in words.
pub(super) fn kind(text: &str) -> &'static str {
    match text.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// The error for a value of another type than the field has.
pub(crate) fn wrong_kind(path: String, wanted: &str, raw: &RawValue) -> ApiError {
    let found = match kind(raw.get()) {
        "a number" => format!("the number {}", clip(raw.get())),
        kind => kind.to_owned(),
    };
    let message = format!("{path} must be {wanted}, got {found}");
    ApiError::param(path, message)
}

/// The start of a long text.
pub(crate) fn clip(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
