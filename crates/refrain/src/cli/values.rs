//! Values of flags that need more than a number parser.

use std::str::FromStr;

use refrain_model::Dtype;

/// A whole number with vLLM's suffixes: `k`, `m`, `g`, `t` are powers of 1000 and take decimals (`25.6k`), `K`, `M`,
/// `G`, `T` are powers of 1024 and don't.
///
/// # Errors
/// A sentence that says what would be right.
pub fn human_readable_int(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let wrong = || {
        format!(
            "{text:?} is no whole number; write 32768, 32k (= 32000), 25.6k (= 25600), 32K (= 32768) or 1M (= 1048576)"
        )
    };
    let Some(suffix) = text.chars().last().filter(|last| !last.is_ascii_digit()) else {
        return text.parse().map_err(|_| wrong());
    };
    let number = &text[..text.len() - suffix.len_utf8()];
    let Some(power) = "kmgt".find(suffix.to_ascii_lowercase()).map(|index| index as u32 + 1) else {
        return Err(wrong());
    };
    let too_large = || format!("{text:?} is too large");
    if suffix.is_ascii_uppercase() {
        let number: usize = number.parse().map_err(|_| {
            if number.parse::<f64>().is_ok() {
                format!(
                    "{text:?}: {suffix} is a power of 1024 and takes no decimals; did you mean {number}{}, a power of \
                     1000?",
                    suffix.to_ascii_lowercase()
                )
            } else {
                wrong()
            }
        })?;
        return 1024usize.pow(power).checked_mul(number).ok_or_else(too_large);
    }
    if !number.starts_with(|first: char| first.is_ascii_digit()) || number.contains(['e', 'E']) {
        return Err(wrong());
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let value = number * 1000f64.powi(power as i32);
    if value < u64::MAX as f64 { Ok(value as usize) } else { Err(too_large()) }
}

/// `--max-model-len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxModelLen {
    /// As much as the model has, or as fits.
    Auto,
    /// So many tokens.
    Tokens(usize),
}

impl FromStr for MaxModelLen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "-1" => Ok(MaxModelLen::Auto),
            text => match human_readable_int(text) {
                Ok(0) => Err("must be at least 1, or auto".to_owned()),
                Ok(tokens) => Ok(MaxModelLen::Tokens(tokens)),
                Err(message) => Err(format!("{message}, or auto")),
            },
        }
    }
}

/// A number in `(0, 1]`.
///
/// # Errors
/// A sentence that says what would be right.
pub fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("must be above 0 and at most 1, such as 0.90".to_owned()),
    }
}

/// Most of anything that is counted: far beyond every real machine, and small enough that no product of counts overflows.
const MOST: usize = 1 << 32;
/// The same for numbers of bytes.
const MOST_BYTES: usize = 1 << 50;
/// The same for the tokens, prompts and rounds of a benchmark or an estimate, which are held or squared.
const MOST_COUNT: usize = 1 << 22;

fn whole_number(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let negative = text.trim().strip_prefix('-').is_some_and(|number| human_readable_int(number).is_ok());
    match if negative { 0 } else { human_readable_int(text)? } {
        value if value < least || negative => Err(format!("must be at least {least}")),
        value if value > most => Err(format!("must be at most {most}")),
        value => Ok(value),
    }
}

/// A whole number of at least 1, with suffixes.
///
/// # Errors
/// A sentence that says what would be right.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    whole_number(text, 1, MOST)
}

/// A number of bytes, at least 1, with suffixes.
///
/// # Errors
/// A sentence that says what would be right.
pub fn bytes(text: &str) -> Result<usize, String> {
    whole_number(text, 1, MOST_BYTES)
}

/// How many tokens, prompts or rounds: at least 1.
///
/// # Errors
/// A sentence that says what would be right.
pub fn count(text: &str) -> Result<usize, String> {
    whole_number(text, 1, MOST_COUNT)
}

/// The same, or 0.
///
/// # Errors
/// A sentence that says what would be right.
pub fn count_or_none(text: &str) -> Result<usize, String> {
    whole_number(text, 0, MOST_COUNT)
}

/// A finite number above 0, or `inf`.
///
/// # Errors
/// A sentence that says what would be right.
pub fn positive_or_infinite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 => Ok(value),
        _ => Err("must be above 0, or inf".to_owned()),
    }
}

/// A rate, whose suffixes are all powers of 1000: nobody means 1024 here.
///
/// # Errors
/// A sentence that says what would be right.
pub fn rate(text: &str) -> Result<f64, String> {
    match human_readable_int(&text.to_ascii_lowercase())? {
        0 => Err("must be above 0".to_owned()),
        rate => Ok(rate as f64),
    }
}

/// `NAME=VALUE`.
///
/// # Errors
/// A sentence that says what would be right.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

/// A JSON object.
///
/// # Errors
/// What the JSON parser says.
pub fn json_object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let wrong = |why: &str| format!("must be a JSON object such as '{{\"temperature\": 0.7}}': {why}");
    match super::json::parse(text) {
        Ok((_, Some(twice))) => Err(super::json::given_twice(&twice)),
        Ok((serde_json::Value::Object(map), None)) => Ok(map),
        Ok(_) => Err(wrong("it is another value")),
        Err(error) => Err(wrong(&error.to_string())),
    }
}

/// `--dtype`, with vLLM's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DtypeArg {
    /// The type of the checkpoint's matrices
    Auto,
    /// Weights and keys and values in BF16
    Bfloat16,
    /// Weights and keys and values in F16, computed with in F32
    #[value(alias = "half")]
    Float16,
    /// Computed with in F32 throughout
    #[value(alias = "float")]
    Float32,
}

impl DtypeArg {
    /// The type; none for `auto`.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            DtypeArg::Auto => None,
            DtypeArg::Bfloat16 => Some(Dtype::Bf16),
            DtypeArg::Float16 => Some(Dtype::F16),
            DtypeArg::Float32 => Some(Dtype::F32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn suffixes_are_those_of_vllm() {
        let cases = [
            ("32768", 32768),
            ("32k", 32000),
            ("32K", 32768),
            ("25.6k", 25600),
            ("1M", 1 << 20),
            ("1m", 1_000_000),
            ("2g", 2_000_000_000),
            ("2G", 2 << 30),
            ("1t", 1_000_000_000_000),
            (" 7 ", 7),
            ("0", 0),
        ];
        for (text, value) in cases {
            assert_eq!(human_readable_int(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_explained() {
        assert!(human_readable_int("25.6K").unwrap_err().contains("25.6k"));
        for text in ["", "k", "1e3k", "-1", "1.5", "inf", "infk", "nank", "32 k x", "99999999T", "1é", "-5k", "1e30g"]
        {
            assert!(human_readable_int(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_values_have_their_ranges() {
        assert_eq!("auto".parse(), Ok(MaxModelLen::Auto));
        assert_eq!("-1".parse(), Ok(MaxModelLen::Auto));
        assert_eq!("8K".parse(), Ok(MaxModelLen::Tokens(8192)));
        assert!("0".parse::<MaxModelLen>().is_err());
        assert_eq!(fraction("0.90"), Ok(0.9));
        for text in ["0", "1.01", "-1", "nan", "inf", "x"] {
            assert!(fraction(text).is_err(), "{text}");
        }
        assert_eq!(positive_or_infinite("inf"), Ok(f64::INFINITY));
        assert!(positive_or_infinite("nan").is_err() && positive_or_infinite("0").is_err());
        assert_eq!(pair("a = b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("=b").is_err() && pair("a").is_err());
        assert!(json_object("[1]").is_err() && json_object("{").is_err() && json_object("{\"a\": 1}").is_ok());
        assert!(json_object("{\"a\": 1, \"a\": 1}").unwrap_err().starts_with("a: it is given twice"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_number_parser_panic(text in ".{0,12}") {
            let _ = human_readable_int(&text);
        }

        #[test]
        fn plain_numbers_are_themselves(value in 0usize..1 << 50) {
            prop_assert_eq!(human_readable_int(&value.to_string()), Ok(value));
            prop_assert_eq!(human_readable_int(&format!("{}k", value >> 12)), Ok((value >> 12) * 1000));
        }
    }
}
