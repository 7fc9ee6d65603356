//! Sizes and lists of them.

use serde_json::Value;

use super::Sizes;

/// One size. Whether a step can have it is known once the limits of steps are.
///
/// # Errors
/// A sentence with the nearest size.
pub(super) fn size(value: &Value) -> Result<u32, String> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        value => value.to_string(),
    };
    let wrong = |nearest: f64| Err(format!("{text} is no size; the nearest is {nearest}"));
    match text.parse::<f64>() {
        Ok(number) if number.is_nan() => Err(format!("{text} is no whole number")),
        Err(_) => Err(format!("{text} is no whole number")),
        Ok(number) if number < 1.0 => wrong(1.0),
        Ok(number) if number > f64::from(u32::MAX) => Err(format!("{text} is no size; no step is as large as that")),
        Ok(number) if number.fract() != 0.0 => wrong(number.round()),
        Ok(number) => Ok(number as u32),
    }
}

/// A list of sizes: JSON, or numbers with commas between them.
///
/// # Errors
/// A sentence about the first that is impossible.
pub(super) fn size_list(value: &Value) -> Result<Sizes, String> {
    let given: Vec<u32> = match value {
        Value::Array(values) => values.iter().map(size).collect::<Result<_, _>>()?,
        Value::String(text) => {
            text.split(',').map(|text| size(&Value::String(text.to_owned()))).collect::<Result<_, _>>()?
        }
        Value::Number(_) => vec![size(value)?],
        _ => return Err(format!("{value} is no list of sizes, such as [1, 2, 4]")),
    };
    if given.is_empty() {
        return Err("the list is empty; leave it out for the default sizes".to_owned());
    }
    Ok(listed(&given))
}

/// Sizes as a list.
pub(super) fn listed(given: &[u32]) -> Sizes {
    let mut sizes = given.to_vec();
    sizes.sort_unstable();
    sizes.dedup();
    let mut changes = Vec::new();
    if !given.is_sorted() {
        changes.push("sorted".to_owned());
    }
    if let Some(twice) = sizes.iter().find(|size| given.iter().filter(|given| given == size).count() > 1) {
        changes.push(format!("{twice} was given twice"));
    }
    Sizes { sizes, note: (!changes.is_empty()).then(|| changes.join(", ")) }
}
