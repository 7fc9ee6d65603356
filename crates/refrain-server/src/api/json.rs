//! Reads JSON requests field by field, so that every error names the field, and a field that nobody asked for is one.

mod values;

#[cfg(test)]
mod tests;

pub(crate) use values::{bounded, clip, number, string, token_ids, value, wrong_kind};

use super::ApiError;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;
use values::{is_number, kind, list};

/// Most fields of one object that is read field by field.
const MAX_FIELDS: usize = 512;

/// A count beyond that is nobody's wish, and JavaScript could not write it.
const UNBOUNDED: i64 = 1 << 53;

/// An object of a request. Fields are taken by name; `null` is the same as absent.
pub(crate) struct Fields<'a> {
    path: String,
    entries: Vec<(String, &'a RawValue)>,
    asked: Vec<&'static str>,
}

/// The fields of an object, in order.
struct Entries<'a> {
    entries: Vec<(String, &'a RawValue)>,
    /// The first name that comes a second time.
    repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries: Vec<(String, &'de RawValue)> = Vec::new();
                let (mut seen, mut repeated) = (0, None);
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    seen += 1;
                    if seen > MAX_FIELDS {
                        return Err(A::Error::custom(format!("an object has more than {MAX_FIELDS} fields")));
                    }
                    match entries.iter().any(|(known, _)| *known == name) {
                        true => repeated = repeated.or(Some(name)),
                        false => entries.push((name, value)),
                    }
                }
                Ok(Entries { entries, repeated })
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'a> Fields<'a> {
    /// The fields of a request's body.
    pub fn of_body(body: &'a [u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|error| {
            ApiError::bad_request(format!("the body is not valid UTF-8: byte {} is wrong", error.valid_up_to()))
        })?;
        if text.trim().is_empty() {
            return Err(ApiError::bad_request("the body is empty: it must be a JSON object"));
        }
        if text.trim_start().as_bytes()[0] != b'{' && serde_json::from_str::<&RawValue>(text).is_ok() {
            let message = format!("the body must be a JSON object, got {}", kind(text.trim_start()));
            return Err(ApiError::bad_request(message));
        }
        let entries = serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
        Self::of_entries(String::new(), entries)
    }

    fn of_object(path: String, raw: &'a RawValue) -> Result<Self, ApiError> {
        if !raw.get().starts_with('{') {
            return Err(wrong_kind(path, "an object", raw));
        }
        match serde_json::from_str(raw.get()) {
            Ok(entries) => Self::of_entries(path, entries),
            Err(error) => Err(ApiError::param(path.clone(), format!("{path}: {error}"))),
        }
    }

    /// Refuses an object that names a field twice: which value was meant is a guess, and a proxy may guess otherwise.
    /// Values that are kept as JSON (messages, tools, template variables) are not looked into.
    fn of_entries(path: String, Entries { entries, repeated }: Entries<'a>) -> Result<Self, ApiError> {
        let fields = Self { path, entries, asked: Vec::new() };
        let Some(name) = repeated else { return Ok(fields) };
        let path = fields.path(&clip(&name));
        let message = format!("the field {path:?} is given more than once: give it once");
        Err(ApiError::param(path, message))
    }

    /// The path of one of this object's fields, as errors name it.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field as it stands in the body.
    pub fn raw(&mut self, name: &'static str) -> Option<&'a RawValue> {
        self.asked.push(name);
        let index = self.entries.iter().position(|(known, _)| known == name)?;
        let (_, raw) = self.entries.swap_remove(index);
        (raw.get() != "null").then_some(raw)
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        match raw.get() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(wrong_kind(self.path(name), "a boolean", raw)),
        }
    }

    /// An integer of the range.
    pub fn integer(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let path = self.path(name);
        if !is_number(raw) || raw.get().contains(['.', 'e', 'E']) {
            return Err(wrong_kind(path, "an integer", raw));
        }
        let text = clip(raw.get());
        let (start, end) = (*range.start(), *range.end());
        let message = match raw.get().parse::<i64>() {
            Ok(value) if range.contains(&value) => return Ok(Some(value)),
            _ if end < UNBOUNDED => format!("{path} must be between {start} and {end}, got {text}"),
            Ok(value) if value < start => format!("{path} must be at least {start}, got {text}"),
            Err(_) if text.starts_with('-') => format!("{path} must be at least {start}, got {text}"),
            _ => format!("{path} is too large: {text}"),
        };
        Err(ApiError::param(path, message))
    }

    /// An integer from `least` on, as a count.
    pub fn count(&mut self, name: &'static str, least: u32) -> Result<Option<usize>, ApiError> {
        let value = self.integer(name, i64::from(least)..=UNBOUNDED)?;
        Ok(value.map(|value| value as usize))
    }

    /// A finite number that fits single precision.
    pub fn number(&mut self, name: &'static str) -> Result<Option<f32>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        number(self.path(name), raw).map(Some)
    }

    /// A string.
    pub fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        string(self.path(name), raw).map(Some)
    }

    /// One string or a list of them.
    pub fn strings(&mut self, name: &'static str, most: usize) -> Result<Option<Vec<String>>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let path = self.path(name);
        if raw.get().starts_with('"') {
            return Ok(Some(vec![string(path, raw)?]));
        }
        if !raw.get().starts_with('[') {
            return Err(wrong_kind(path, "a string or a list of strings", raw));
        }
        let items = list(&path, raw, most)?;
        let read = |(index, raw): (usize, &&RawValue)| string(format!("{path}[{index}]"), raw);
        items.iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
    }

    /// A list of token ids.
    pub fn ids(&mut self, name: &'static str, most: usize) -> Result<Option<Vec<u32>>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        token_ids(&self.path(name), raw, most).map(Some)
    }

    /// An object, field by field.
    pub fn object(&mut self, name: &'static str) -> Result<Option<Fields<'a>>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        Self::of_object(self.path(name), raw).map(Some)
    }

    /// Any JSON of moderate depth and size.
    pub fn value(&mut self, name: &'static str) -> Result<Option<Value>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        value(&self.path(name), raw).map(Some)
    }

    /// What is left, for objects whose field names are data.
    pub fn into_entries(self) -> Vec<(String, &'a RawValue)> {
        self.entries
    }

    /// Refuses what was never asked for, naming the nearest field that was.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.entries.first() {
            None => Ok(()),
            Some((unknown, _)) => Err(unknown_field(self.path(&clip(unknown)), unknown, &self.asked)),
        }
    }
}

/// The error for a field that doesn't exist.
pub(crate) fn unknown_field(path: String, unknown: &str, known: &[&str]) -> ApiError {
    let hint = nearest(unknown, known).map(|near| format!(": did you mean {near:?}?")).unwrap_or_default();
    let message = format!("unknown field {path:?}{hint}");
    ApiError::param(path, message).code("unknown_parameter")
}

/// The known name that looks most like `name`, if one does.
pub(crate) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    if name.len() > 64 {
        return None;
    }
    let score = |known: &&'k str| (strsim::damerau_levenshtein(name, known), *known);
    known.iter().map(score).filter(|(distance, known)| *distance <= 1 + known.len() / 4).min().map(|(_, known)| known)
}
