//! Typed, range-checked access to the fields of a JSON object, with errors that name file and field.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;

/// One object of a JSON file. `null` counts as absent, as Python's `None` does there.
pub(crate) struct Fields<'a> {
    file: &'a Path,
    /// Names of the objects around it, each with a dot behind.
    prefix: String,
    map: &'a Map<String, Value>,
}

/// Parses a file whose outermost value is an object.
pub(crate) fn parse_object(json: &str, file: &Path) -> Result<Map<String, Value>, ModelError> {
    serde_json::from_str(json).map_err(|source| ModelError::Json { file: file.into(), source })
}

impl<'a> Fields<'a> {
    /// The outermost object.
    pub(crate) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Fields<'a> {
        Fields { file, prefix: String::new(), map }
    }

    /// Says what is wrong with a field.
    pub(crate) fn error(&self, field: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Field { file: self.file.into(), field: format!("{}{field}", self.prefix), problem: problem.into() }
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields<'a>>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields { file: self.file, prefix: format!("{}{field}.", self.prefix), map }))
            }
            Some(_) => Err(self.error(field, "is not an object")),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(field, format!("{} is not a string", shown(other)))),
        }
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(field, format!("{} is not true or false", shown(other)))),
        }
    }

    /// An integer.
    pub(crate) fn size(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => {
                let problem =
                    format!("{} is not a whole number from {} to {}", shown(value), range.start(), range.end());
                Err(self.error(field, problem))
            }
        }
    }

    /// An integer with a default.
    pub(crate) fn size_or(
        &self,
        field: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, ModelError> {
        Ok(self.size(field, range)?.unwrap_or(default))
    }

    /// A finite number.
    pub(crate) fn number(&self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64().filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => {
                let problem = format!("{} is not a number from {:?} to {:?}", shown(value), range.start(), range.end());
                Err(self.error(field, problem))
            }
        }
    }

    /// A finite number with a default.
    pub(crate) fn number_or(&self, field: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64, ModelError> {
        Ok(self.number(field, range)?.unwrap_or(default))
    }

    /// Refuses a text that is none of `supported`. An absent field is fine.
    pub(crate) fn one_of(&self, field: &str, supported: &[&str]) -> Result<(), ModelError> {
        match self.text(field)? {
            Some(text) if !supported.contains(&text) => {
                let problem = format!("`{text}` is not supported; supported: {}", supported.join(", "));
                Err(self.error(field, problem))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a product of two fields that no real model has.
    pub(crate) fn product(&self, fields: &str, product: usize, max: usize) -> Result<(), ModelError> {
        if product > max {
            return Err(self.error(fields, format!("{product} is more than {max}")));
        }
        Ok(())
    }

    /// One token id or a list of them, each below `vocab_size`.
    pub(crate) fn token_ids(&self, field: &str, vocab_size: usize) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let ids = match value {
            Value::Array(ids) => ids.as_slice(),
            one => std::slice::from_ref(one),
        };
        let id = |value: &Value| match value.as_u64().filter(|&id| id < vocab_size as u64) {
            Some(id) => Ok(id as u32),
            None => Err(self.error(field, format!("{} is not a token id below {vocab_size}", shown(value)))),
        };
        ids.iter().map(id).collect()
    }
}

/// A value for an error message, cut when it is long.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}
