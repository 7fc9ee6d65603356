//! What Python does otherwise than minijinja: the spelling of values, tests of types, methods of strings.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use minijinja_contrib::pycompat;

/// Deeper values are refused.
const MAX_DEPTH: usize = 200;

/// Makes the environment behave like Python's.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_formatter(write_value);
    environment.add_filter("string", |state: &State<'_, '_>, value: &Value| text(state, value).map(Value::from));
    // In Jinja2 these look at Python's protocols: strings and dicts have a length and items.
    let sized = [ValueKind::Seq, ValueKind::Iterable, ValueKind::Map, ValueKind::String];
    environment.add_test("sequence", move |value: &Value| sized.contains(&value.kind()));
    environment.add_test("iterable", move |value: &Value| sized.contains(&value.kind()) || value.is_undefined());
    // bool is a kind of int.
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.set_unknown_method_callback(call_method);
}

/// Writes a value as `str()` gives it.
fn write_value(output: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => output.write_str(text).map_err(Error::from),
        None => output.write_str(&text(state, value)?).map_err(Error::from),
    }
}

/// `str(value)`.
fn text(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => text.push_str(value.as_str().unwrap_or_default()),
        _ => repr(state, value, &mut text, 0)?,
    }
    Ok(text)
}

/// `repr(value)`.
fn repr(state: &State<'_, '_>, value: &Value, text: &mut String, depth: usize) -> Result<(), Error> {
    state.consume_fuel(1)?;
    if depth == MAX_DEPTH {
        let problem = format!("a value nested deeper than {MAX_DEPTH} can't be written");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    match value.kind() {
        ValueKind::String => quote(value.as_str().unwrap_or_default(), text),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => text.push_str(&float_text(number)),
            Err(_) => text.push_str(&value.to_string()),
        },
        // A sum of lists is iterable only.
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            text.push(open);
            for (i, item) in value.try_iter()?.enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                repr(state, &item, text, depth + 1)?;
            }
            text.push_str(if value.is_tuple() && value.len() == Some(1) { "," } else { "" });
            text.push(close);
        }
        ValueKind::Map => {
            text.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                repr(state, &key, text, depth + 1)?;
                text.push_str(": ");
                repr(state, &value.get_item(&key)?, text, depth + 1)?;
            }
            text.push('}');
        }
        _ => text.push_str(&value.to_string()),
    }
    state.consume_fuel(text.len() as u64 / 1024)
}

/// `repr` of a string: in single quotes, unless it has some and no double ones.
fn quote(value: &str, text: &mut String) {
    let quote = if value.contains('\'') && !value.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for c in value.chars() {
        match c {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\\' => text.push_str("\\\\"),
            c if c == quote => text.extend(['\\', c]),
            c if c.is_control() || (c.is_whitespace() && c != ' ') => {
                let code = u32::from(c);
                text.push_str(&if code < 0x100 { format!("\\x{code:02x}") } else { format!("\\u{code:04x}") });
            }
            c => text.push(c),
        }
    }
    text.push(quote);
}

/// `repr` of a float: the shortest digits that give the number back, as `1e+16` from 10^16 on and `1e-05` below 10^-4.
pub(super) fn float_text(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() { "nan".into() } else { format!("{}inf", if number < 0.0 { "-" } else { "" }) };
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        format!("{number:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

/// Methods of Python's strings that minijinja-contrib lacks, then those that it has.
fn call_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, method, args)
    {
        return result;
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let one = || from_args::<(&str,)>(args).map(|(argument,)| argument);
    let three = |(a, b, c): (&str, &str, &str)| Value::from_iter([a, b, c]);
    let result = match method {
        "removeprefix" => one().map(|prefix| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => one().map(|suffix| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "partition" => one()
            .and_then(not_empty)
            .map(|separator| three(text.split_once(separator).map_or((text, "", ""), |(a, b)| (a, separator, b)))),
        "rpartition" => one()
            .and_then(not_empty)
            .map(|separator| three(text.rsplit_once(separator).map_or(("", "", text), |(a, b)| (a, separator, b)))),
        "rsplit" => rsplit(text, args),
        "index" => one().and_then(|part| match text.find(part) {
            Some(at) => Ok(Value::from(text[..at].chars().count())),
            None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
        }),
        _ => return None,
    };
    Some(result)
}

fn not_empty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(separator)
}

/// `text.rsplit(separator, most)`, from the right.
fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = usize::try_from(most.unwrap_or(-1)).unwrap_or(usize::MAX).saturating_add(1);
    let mut parts: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(most, not_empty(separator)?).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end();
            while !rest.trim_start().is_empty() {
                if parts.len() + 1 == most {
                    parts.push(rest);
                    break;
                }
                let (before, last) = rest.rsplit_once(char::is_whitespace).unwrap_or(("", rest));
                parts.push(last);
                rest = before.trim_end();
            }
            parts
        }
    };
    parts.reverse();
    Ok(Value::from_iter(parts))
}
