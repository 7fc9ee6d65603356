//! Sums of lists that cost fuel.
//!
//! minijinja makes a sum of lists lazily and takes no fuel for its elements: `l + l`, 40 times, is a list of a million
//! million elements that it begins to write down, on a thread that nobody can stop. Python's sums are lists at once. So
//! every `a + b` of a template becomes `__sum(a + b)`, which makes the list and takes fuel for it.

use minijinja::machinery;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, State};
use serde_json::Value as Json;

const FUNCTION: &str = "__sum";
/// In a chain `a + b + c + ...`, every so many sums are one call: calls inside calls are limited by the parser, and a few
/// lists are not many more than one.
const CHAIN: usize = 16;
/// So many elements cost one unit of fuel while they are copied; minijinja takes more for the list when it is there, which
/// is too late to begin with. A conversation that is collected message by message, with a new list each time, may have
/// 3000 messages.
const ELEMENTS: usize = 8;

/// Makes the function known, and takes out what else puts lists together without fuel. Jinja2 has neither.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_function(FUNCTION, sum);
    environment.remove_filter("chain");
}

/// A sum of lists as a list; anything else as it is.
fn sum(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut list = Vec::new();
    for item in value.try_iter()? {
        if list.len() % ELEMENTS == 0 {
            state.consume_fuel(1)?;
        }
        list.push(item);
    }
    Ok(Value::from(list))
}

/// The source with each sum inside the function. Lines stay where they are.
pub(super) fn with_counted_sums(source: &str, name: &str, syntax: &SyntaxConfig) -> Result<String, String> {
    // What doesn't parse is the compiler's to describe.
    let Ok(tree) = machinery::parse(source, name, syntax.clone()) else { return Ok(source.to_owned()) };
    let tree = serde_json::to_value(tree).map_err(|error| error.to_string())?;
    let mut insertions = Vec::new();
    collect(&tree, 0, &mut insertions);
    insertions.sort_by_key(|&(offset, _)| offset);
    let mut text = String::with_capacity(source.len() + insertions.len() * (FUNCTION.len() + 2));
    let mut copied = 0;
    for (offset, opens) in insertions {
        text.push_str(&source[copied..offset]);
        copied = offset;
        text.push_str(if opens { FUNCTION } else { "" });
        text.push(if opens { '(' } else { ')' });
    }
    Ok(text + &source[copied..])
}

/// Where sums begin (`true`) and end, in bytes. `above` is the number of sums of which this is the left side.
fn collect(node: &Json, above: usize, insertions: &mut Vec<(usize, bool)>) {
    if let Some(inner) = node["inner"].as_array().filter(|_| node["expr"] == "BinOp")
        && let [operation, span] = inner.as_slice()
        && operation["op"] == "Add"
    {
        let offset = |name: &str| span[name].as_u64().unwrap_or_default() as usize;
        if above.is_multiple_of(CHAIN) {
            insertions.extend([(offset("start_offset"), true), (offset("end_offset"), false)]);
        }
        collect(&operation["left"], above + 1, insertions);
        collect(&operation["right"], 0, insertions);
        return;
    }
    match node {
        Json::Array(nodes) => nodes.iter().for_each(|node| collect(node, 0, insertions)),
        // A constant is the template's own, and may look like anything.
        Json::Object(node) if node.get("expr").is_none_or(|kind| kind != "Const") => {
            node.values().for_each(|node| collect(node, 0, insertions));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(source: &str) -> String {
        with_counted_sums(source, "test", &SyntaxConfig::default()).unwrap()
    }

    #[test]
    fn sums_and_nothing_else_are_put_into_the_function() {
        for (source, expected) in [
            ("{{ a + b }}", "{{ __sum(a + b) }}"),
            ("é{{ (a + b) * c + d|f(x+y) }}", "é{{ __sum((__sum(a + b)) * c + d|f(__sum(x+y))) }}"),
            ("{{ a + (b + c) }}", "{{ __sum(a + (__sum(b + c))) }}"),
            ("{{ a + b + c - d }}", "{{ __sum(a + b + c) - d }}"),
            (
                "{% set x = a + b, -c + d if e + f else [g + h] %}",
                "{% set x = __sum(a + b), __sum(-c + d) if __sum(e + f) else [__sum(g + h)] %}",
            ),
            (
                "{%- for m in a +\n b -%}{{ m[i + 1:] }}{%- endfor %}",
                "{%- for m in __sum(a +\n b) -%}{{ m[__sum(i + 1):] }}{%- endfor %}",
            ),
            ("{# a + b #}a + b{{ 'a + b' ~ +1 }}", "{# a + b #}a + b{{ 'a + b' ~ +1 }}"),
            ("{{ a + }}", "{{ a + }}"),
            (
                r#"{{ {"expr": "BinOp", "inner": [{"op": "Add"}, {"start_offset": 99, "end_offset": 1}]} }}"#,
                r#"{{ {"expr": "BinOp", "inner": [{"op": "Add"}, {"start_offset": 99, "end_offset": 1}]} }}"#,
            ),
        ] {
            assert_eq!(counted(source), expected);
        }
    }

    #[test]
    fn long_chains_are_not_nested_deeply() {
        let source = format!("{{{{ {} }}}}", ["a"; 200].join(" + "));
        let calls = counted(&source).matches(FUNCTION).count();
        assert_eq!(calls, 199usize.div_ceil(CHAIN));
        assert!(machinery::parse(&counted(&source), "test", SyntaxConfig::default()).is_ok());
    }
}
