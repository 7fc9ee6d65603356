//! The filter `tojson` as transformers defines it: Python's `json.dumps(x, ensure_ascii=False)`, not Jinja's own filter,
//! which escapes HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State};

use super::python::float_text;

/// Deeper values are refused; Python's own limit is near 1000.
const MAX_DEPTH: usize = 200;

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let args: Vec<Value> = args.0.into_iter().map(Value::from).collect();
    let (args, kwargs) = match args.split_last() {
        Some((last, first)) if last.is_kwargs() => (first, Some(Kwargs::try_from(last.clone())?)),
        _ => (args.as_slice(), None),
    };
    if args.len() > NAMES.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut options: Vec<Option<Value>> = args.iter().cloned().map(Some).collect();
    options.resize(NAMES.len(), None);
    if let Some(kwargs) = kwargs {
        for (option, name) in options.iter_mut().zip(NAMES) {
            if kwargs.has(name) {
                *option = Some(kwargs.get(name)?);
            }
        }
        kwargs.assert_all_used()?;
    }
    let is_true = |option: &Option<Value>| option.as_ref().is_some_and(Value::is_true);
    let indent = indent(options[1].as_ref())?;
    let (item, key) = separators(options[2].as_ref(), indent.is_some())?;
    let mut writer = Writer {
        state,
        text: String::new(),
        paid: 0,
        ensure_ascii: is_true(&options[0]),
        indent,
        item_separator: item,
        key_separator: key,
        sort_keys: is_true(&options[3]),
    };
    writer.value(value, 0)?;
    Ok(Value::from(writer.text))
}

/// The text of one level: a number of spaces, or a text.
fn indent(option: Option<&Value>) -> Result<Option<String>, Error> {
    const WIDEST: i64 = 64;
    let Some(value) = option.filter(|value| !value.is_none()) else { return Ok(None) };
    if let Some(text) = value.as_str() {
        return Ok(Some(text.to_string()));
    }
    match i64::try_from(value.clone()) {
        // Negative numbers put newlines without spaces, as in Python.
        Ok(width) if width <= WIDEST => Ok(Some(" ".repeat(width.max(0) as usize))),
        _ => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: indent {value} is not a small number"))),
    }
}

/// Between items, and between key and value.
fn separators(option: Option<&Value>, indented: bool) -> Result<(String, String), Error> {
    let Some(value) = option.filter(|value| !value.is_none()) else {
        let item = if indented { "," } else { ", " };
        return Ok((item.into(), ": ".into()));
    };
    let parts: Vec<Value> = value.try_iter()?.collect();
    match parts.as_slice() {
        [item, key] if item.as_str().is_some() && key.as_str().is_some() => Ok((item.to_string(), key.to_string())),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
    }
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    text: String,
    /// Bytes of the text that fuel was taken for.
    paid: usize,
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.pay()?;
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if depth == MAX_DEPTH => {
                let problem = format!("tojson: the value is nested deeper than {MAX_DEPTH}");
                return Err(Error::new(ErrorKind::BadSerialization, problem));
            }
            ValueKind::Seq | ValueKind::Iterable => {
                // A sum of lists is iterable only.
                let mut items = Vec::new();
                for item in value.try_iter()? {
                    self.state.consume_fuel(1)?;
                    items.push(item);
                }
                self.container(('[', ']'), &items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((key_text(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.container(('{', '}'), &entries, depth, |writer, (key, value)| {
                    writer.string(key);
                    writer.text.push_str(&writer.key_separator);
                    writer.value(value, depth + 1)
                })?;
            }
            other => {
                let problem = format!("tojson: a value of type {other} is not JSON");
                return Err(Error::new(ErrorKind::BadSerialization, problem));
            }
        }
        Ok(())
    }

    /// Items between brackets, with the separators and indents.
    fn container<T>(
        &mut self,
        (open, close): (char, char),
        items: &[T],
        depth: usize,
        mut write: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.text.push_str(&self.item_separator);
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            for _ in 0..depth {
                self.text.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(self.text, "\\u{unit:04x}").expect("writing to a string does not fail");
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    /// Takes fuel for what was written since the last time, so that a value that refers to a large one often can't
    /// fill the memory.
    fn pay(&mut self) -> Result<(), Error> {
        const BYTES_OF_A_STEP: usize = 16;
        let steps = 1 + (self.text.len() - self.paid) / BYTES_OF_A_STEP;
        self.paid = self.text.len();
        self.state.consume_fuel(steps as u64)
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => match number {
            n if n.is_nan() => "NaN".into(),
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            n => float_text(n),
        },
        _ => value.to_string(),
    }
}

/// `json.dumps` takes these types as keys.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::None => Ok("null".into()),
        other => Err(Error::new(ErrorKind::BadSerialization, format!("tojson: a key of type {other} is not JSON"))),
    }
}
