//! JSON of flags, in which no key may be given twice.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A value, and the first key that an object in it has twice.
///
/// # Errors
/// What the JSON parser says.
pub fn parse(text: &str) -> Result<(Value, Option<String>), serde_json::Error> {
    let twice = RefCell::default();
    let mut parser = serde_json::Deserializer::from_str(text);
    let value = Watched(&twice).deserialize(&mut parser)?;
    parser.end()?;
    Ok((value, twice.into_inner()))
}

/// That a key is there twice, for people.
pub fn given_twice(key: &str) -> String {
    format!("{key}: it is given twice; give it once")
}

/// Reads a value as `serde_json` does, which takes the last of two values without a word, and keeps the key.
struct Watched<'a>(&'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for Watched<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Watched<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = from.next_element_seed(Watched(self.0))? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            let value = from.next_value_seed(Watched(self.0))?;
            if map.insert(key.clone(), value).is_some() {
                self.0.borrow_mut().get_or_insert(key);
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json_and_the_first_key_that_is_there_twice_is_told() {
        for text in [r#"{"b": [1, -2, 2.5, "x", null, true], "a": {"c": {}}}"#, "3", "[]", "\"text\""] {
            assert_eq!(parse(text).unwrap(), (serde_json::from_str(text).unwrap(), None), "{text}");
        }
        for (text, key) in [(r#"{"a": 1, "b": 2, "a": 1}"#, "a"), (r#"{"a": [{"b": {"c": 1, "c": 2}}], "a": 3}"#, "c")]
        {
            assert_eq!(parse(text).unwrap().1.as_deref(), Some(key), "{text}");
        }
        for text in ["{", "{} {}", "", "{1: 2}"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
