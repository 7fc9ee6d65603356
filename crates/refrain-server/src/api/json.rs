//! Reads JSON requests field by field, so that every error names the field, and a field that nobody asked for is one.

use super::ApiError;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;
use std::marker::PhantomData;

/// Most fields of one object that is read field by field.
const MAX_FIELDS: usize = 512;
/// Deepest nesting of a value that is kept as JSON (messages, tools, template variables).
const MAX_DEPTH: usize = 64;
/// Most elements, at all depths together, of a value that is kept as JSON.
const MAX_ELEMENTS: usize = 200_000;

/// An object of a request. Fields are taken by name; `null` is the same as absent.
pub(crate) struct Fields<'a> {
    path: String,
    entries: Vec<(String, &'a RawValue)>,
    asked: Vec<&'static str>,
}

/// The fields of an object, in order; a repeated field counts with its last value.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

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
                let mut seen = 0;
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    seen += 1;
                    if seen > MAX_FIELDS {
                        return Err(A::Error::custom(format!("an object has more than {MAX_FIELDS} fields")));
                    }
                    match entries.iter_mut().find(|(known, _)| *known == name) {
                        Some(entry) => entry.1 = value,
                        None => entries.push((name, value)),
                    }
                }
                Ok(Entries(entries))
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
        let Entries(entries) = serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
        Ok(Self { path: String::new(), entries, asked: Vec::new() })
    }

    fn of_object(path: String, raw: &'a RawValue) -> Result<Self, ApiError> {
        if !raw.get().starts_with('{') {
            return Err(wrong_kind(path, "an object", raw));
        }
        match serde_json::from_str(raw.get()) {
            Ok(Entries(entries)) => Ok(Self { path, entries, asked: Vec::new() }),
            Err(error) => Err(ApiError::param(path.clone(), format!("{path}: {error}"))),
        }
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
        match raw.get().parse::<i64>() {
            Ok(value) if range.contains(&value) => Ok(Some(value)),
            _ if *range.end() == i64::MAX => {
                let message = format!("{path} must be at least {}, got {}", range.start(), clip(raw.get()));
                Err(ApiError::param(path, message))
            }
            _ => {
                let (start, end) = range.into_inner();
                let message = format!("{path} must be between {start} and {end}, got {}", clip(raw.get()));
                Err(ApiError::param(path, message))
            }
        }
    }

    /// An integer from `least` on, as a count.
    pub fn count(&mut self, name: &'static str, least: u32) -> Result<Option<usize>, ApiError> {
        // A count beyond 2^53 is nobody's wish, and JavaScript could not have written it.
        let value = self.integer(name, i64::from(least)..=1 << 53)?;
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

/// A list's elements as they stand in the body.
fn list<'a>(path: &str, raw: &'a RawValue, most: usize) -> Result<Vec<&'a RawValue>, ApiError> {
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

fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// What a piece of JSON is, in words.
fn kind(text: &str) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T>(body: &str, read: impl Fn(&mut Fields<'_>) -> Result<T, ApiError>) -> (String, Option<String>) {
        let mut fields = Fields::of_body(body.as_bytes()).unwrap();
        let error = read(&mut fields).err().expect("an error");
        (error.message, error.param)
    }

    #[test]
    fn null_is_absent_and_the_last_of_two_counts() {
        let mut fields = Fields::of_body(br#"{"a": null, "b": 1, "b": 2}"#).unwrap();
        assert_eq!(fields.boolean("a").unwrap(), None);
        assert_eq!(fields.integer("b", 0..=9).unwrap(), Some(2));
        fields.finish().unwrap();
    }

    #[test]
    fn types_are_checked_and_named() {
        type Read = fn(&mut Fields<'_>) -> Result<(), ApiError>;
        let cases: [(&str, Read, &str); 8] = [
            (r#"{"n": 1.0}"#, |f| f.integer("n", 0..=9).map(drop), "n must be an integer, got the number 1.0"),
            (r#"{"n": "1"}"#, |f| f.integer("n", 0..=9).map(drop), "n must be an integer, got a string"),
            (r#"{"n": 10}"#, |f| f.integer("n", 0..=9).map(drop), "n must be between 0 and 9, got 10"),
            (
                r#"{"n": 99999999999999999999}"#,
                |f| f.count("n", 0).map(drop),
                "n must be between 0 and 9007199254740992, got 99999999999999999999",
            ),
            (r#"{"n": 1e400}"#, |f| f.number("n").map(drop), "n is too large: 1e400"),
            (
                r#"{"n": [1, -2]}"#,
                |f| f.ids("n", 9).map(drop),
                "n[1] must be a token id, an integer from 0 to 4294967295, got -2",
            ),
            (r#"{"n": ["a", 2]}"#, |f| f.strings("n", 9).map(drop), "n[1] must be a string, got the number 2"),
            (r#"{"n": [1, 2, 3]}"#, |f| f.ids("n", 2).map(drop), "n may have at most 2 elements"),
        ];
        for (body, read, wanted) in cases {
            let (message, param) = error(body, read);
            assert_eq!(message, wanted);
            assert!(param.unwrap().starts_with('n'));
        }
    }

    #[test]
    fn a_lone_surrogate_is_an_error_of_its_field() {
        let (message, param) = error(r#"{"s": "\ud800"}"#, |fields| fields.string("s"));
        assert!(message.contains("s is not valid text"), "{message}");
        assert_eq!(param.as_deref(), Some("s"));
    }

    #[test]
    fn unknown_fields_name_the_nearest_known_one() {
        let mut fields = Fields::of_body(br#"{"temprature": 1}"#).unwrap();
        fields.number("temperature").unwrap();
        fields.number("top_p").unwrap();
        let error = fields.finish().unwrap_err();
        assert_eq!(error.message, "unknown field \"temprature\": did you mean \"temperature\"?");
        assert_eq!(error.param.as_deref(), Some("temprature"));
    }

    #[test]
    fn deep_and_wide_values_are_refused_before_they_are_built() {
        let deep = format!(r#"{{"m": {}{}}}"#, "[".repeat(1000), "]".repeat(1000));
        assert!(error(&deep, |fields| fields.value("m")).0.contains("64 levels"));
        let wide = format!(r#"{{"m": [{}0]}}"#, "0,".repeat(MAX_ELEMENTS));
        assert!(error(&wide, |fields| fields.value("m")).0.contains("elements"));
        let text = format!(r#"{{"m": "{}"}}"#, "[,".repeat(MAX_ELEMENTS));
        assert!(Fields::of_body(text.as_bytes()).unwrap().value("m").unwrap().is_some());
    }

    #[test]
    fn bodies_that_are_no_objects_say_so() {
        let message = |body: &[u8]| Fields::of_body(body).err().unwrap().message;
        assert_eq!(message(b"[1]"), "the body must be a JSON object, got a list");
        assert_eq!(message(b" "), "the body is empty: it must be a JSON object");
        assert_eq!(message(b"{\"a\": \xff}"), "the body is not valid UTF-8: byte 6 is wrong");
        assert!(message(b"{\"a\": 1,\n \"b\" 2}").contains("line 2 column 6"));
        assert!(message(b"{\"a\": NaN}").contains("line 1 column"));
    }
}
