//! Every getter on values that fit and values that don't.

use super::values::MAX_ELEMENTS;
use super::*;

fn error<T>(body: &str, read: impl Fn(&mut Fields<'_>) -> Result<T, ApiError>) -> (String, Option<String>) {
    let mut fields = Fields::of_body(body.as_bytes()).unwrap();
    let error = read(&mut fields).err().expect("an error");
    (error.message, error.param)
}

#[test]
fn null_is_absent() {
    let mut fields = Fields::of_body(br#"{"a": null, "b": 2}"#).unwrap();
    assert_eq!(fields.boolean("a").unwrap(), None);
    assert_eq!(fields.integer("b", 0..=9).unwrap(), Some(2));
    fields.finish().unwrap();
}

#[test]
fn a_field_given_twice_is_refused_by_name() {
    let bodies = [r#"{"a": 1, "b": 1, "c": 1, "b": 1, "a": 1}"#, r#"{"b": null, "\u0062": 2}"#];
    for body in bodies {
        let error = Fields::of_body(body.as_bytes()).err().unwrap();
        assert_eq!(error.message, "the field \"b\" is given more than once: give it once");
        assert_eq!(error.param.as_deref(), Some("b"));
    }
    let (message, param) = error(r#"{"o": {"x": 1, "x": 2}}"#, |fields| fields.object("o").map(drop));
    assert!(message.contains(r#""o.x""#), "{message}");
    assert_eq!(param.as_deref(), Some("o.x"));
    // Each object has its own names.
    Fields::of_body(br#"{"a": {"a": 1}, "b": {"a": 1}}"#).unwrap();
}

#[test]
fn types_are_checked_and_named() {
    type Read = fn(&mut Fields<'_>) -> Result<(), ApiError>;
    let cases: [(&str, Read, &str); 8] = [
        (r#"{"n": 1.0}"#, |f| f.integer("n", 0..=9).map(drop), "n must be an integer, got the number 1.0"),
        (r#"{"n": "1"}"#, |f| f.integer("n", 0..=9).map(drop), "n must be an integer, got a string"),
        (r#"{"n": 10}"#, |f| f.integer("n", 0..=9).map(drop), "n must be between 0 and 9, got 10"),
        (r#"{"n": 99999999999999999999}"#, |f| f.count("n", 0).map(drop), "n is too large: 99999999999999999999"),
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
