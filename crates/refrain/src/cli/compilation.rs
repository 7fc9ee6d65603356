//! `--compilation-config` and `-cc.KEY=VALUE`, with vLLM's keys (`CompilationConfig` in its `vllm/config/compilation.py`).

mod keys;
mod sizes;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use refrain_device::GraphMode;
use serde_json::Value;

use super::json;
use keys::{KEYS, Other, PASSES};
use sizes::{listed, size, size_list};

/// What runs: the program as the model is written down, or the one that the passes have rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompilationMode {
    /// Op by op.
    None,
    /// Rewritten by the passes.
    VllmCompile,
}

impl fmt::Display for CompilationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CompilationMode::None => "NONE",
            CompilationMode::VllmCompile => "VLLM_COMPILE",
        })
    }
}

/// By vLLM's name in any case of letters, by its number, or by our short name.
impl FromStr for CompilationMode {
    type Err = String;

    fn from_str(text: &str) -> Result<CompilationMode, String> {
        match text.to_ascii_uppercase().as_str() {
            "NONE" | "EAGER" | "0" => Ok(CompilationMode::None),
            "VLLM_COMPILE" | "COMPILE" | "3" => Ok(CompilationMode::VllmCompile),
            "STOCK_TORCH_COMPILE" | "DYNAMO_TRACE_ONCE" | "1" | "2" => Err(format!(
                "{text} is a way of PyTorch's compiler, and there is no PyTorch here; give VLLM_COMPILE (3, compile) or NONE \
                 (0, eager)"
            )),
            _ => Err(format!("{text:?} is none of VLLM_COMPILE (3, compile) and NONE (0, eager)")),
        }
    }
}

/// A list of sizes, ascending, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The sizes.
    pub sizes: Vec<u32>,
    /// How the list differs from what was given; none when it doesn't.
    pub note: Option<String>,
}

/// What was asked for about compiled modes and graphs. `None` is what nobody said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompilationConfig {
    /// `mode`.
    pub mode: Option<CompilationMode>,
    /// `cudagraph_mode`.
    pub cudagraph_mode: Option<GraphMode>,
    /// `cudagraph_capture_sizes`: numbers of sequences that decode.
    pub cudagraph_capture_sizes: Option<Sizes>,
    /// `max_cudagraph_capture_size`.
    pub max_cudagraph_capture_size: Option<u32>,
    /// `prefill_capture_sizes`, ours: numbers of tokens.
    pub prefill_capture_sizes: Option<Sizes>,
    /// `compile_ranges_endpoints`: numbers of tokens at which a range ends.
    pub compile_ranges_endpoints: Option<Sizes>,
    /// `compile_sizes`: numbers of tokens with kernels of their own.
    pub compile_sizes: Option<Sizes>,
    /// `pass_config`: the switches that were set.
    pub passes: BTreeMap<&'static str, bool>,
}

impl CompilationConfig {
    /// What `--cudagraph-capture-sizes` and `--max-cudagraph-capture-size` say.
    pub fn of_flags(sizes: &[u32], most: Option<u32>) -> CompilationConfig {
        CompilationConfig {
            cudagraph_capture_sizes: (!sizes.is_empty()).then(|| listed(sizes)),
            max_cudagraph_capture_size: most,
            ..CompilationConfig::default()
        }
    }

    /// One value of the flag: a JSON object, the mode by itself as in `-O` of old, or `.KEY=VALUE` of `-cc.KEY=VALUE`.
    ///
    /// # Errors
    /// A sentence that names the key, what is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<CompilationConfig, String> {
        let mut config = CompilationConfig::default();
        if let Some(assignment) = text.strip_prefix('.') {
            let (key, value) = assignment.split_once('=').ok_or("must be -cc.KEY=VALUE")?;
            // What is no JSON is a text: -cc.mode=NONE.
            let value = match json::parse(value) {
                Ok((_, Some(twice))) => return Err(json::given_twice(&twice)),
                Ok((value, None)) => value,
                Err(_) => Value::String(value.to_owned()),
            };
            match key.split_once('.') {
                Some(("pass_config", pass)) => config.pass(pass, &value)?,
                _ => config.set(key, &value)?,
            }
            return Ok(config);
        }
        match json::parse(text) {
            Ok((_, Some(twice))) => return Err(json::given_twice(&twice)),
            Ok((Value::Object(map), _)) => map.iter().try_for_each(|(key, value)| config.set(key, value))?,
            Ok((value @ Value::Number(_), _)) => config.set("mode", &value)?,
            Ok(_) => return Err("must be a JSON object, such as '{\"mode\": \"NONE\"}'".to_owned()),
            Err(error) => return Err(format!("must be a JSON object, such as '{{\"mode\": \"NONE\"}}': {error}")),
        }
        Ok(config)
    }

    /// All values of the flag together.
    ///
    /// # Errors
    /// A sentence about a key that was given two different values.
    pub fn merge(all: &[CompilationConfig]) -> Result<CompilationConfig, String> {
        let mut merged = CompilationConfig::default();
        for config in all {
            let CompilationConfig {
                mode,
                cudagraph_mode,
                cudagraph_capture_sizes,
                max_cudagraph_capture_size,
                prefill_capture_sizes,
                compile_ranges_endpoints,
                compile_sizes,
                passes,
            } = config.clone();
            once("mode", &mut merged.mode, mode)?;
            once("cudagraph_mode", &mut merged.cudagraph_mode, cudagraph_mode)?;
            once("cudagraph_capture_sizes", &mut merged.cudagraph_capture_sizes, cudagraph_capture_sizes)?;
            once("max_cudagraph_capture_size", &mut merged.max_cudagraph_capture_size, max_cudagraph_capture_size)?;
            once("prefill_capture_sizes", &mut merged.prefill_capture_sizes, prefill_capture_sizes)?;
            once("compile_ranges_endpoints", &mut merged.compile_ranges_endpoints, compile_ranges_endpoints)?;
            once("compile_sizes", &mut merged.compile_sizes, compile_sizes)?;
            for (pass, on) in passes {
                let mut before = merged.passes.get(pass).copied();
                once(pass, &mut before, Some(on))?;
                merged.passes.insert(pass, on);
            }
        }
        Ok(merged)
    }

    /// The keys that were given.
    pub fn given(&self) -> Vec<&'static str> {
        let keys = [
            ("mode", self.mode.is_some()),
            ("cudagraph_mode", self.cudagraph_mode.is_some()),
            ("cudagraph_capture_sizes", self.cudagraph_capture_sizes.is_some()),
            ("max_cudagraph_capture_size", self.max_cudagraph_capture_size.is_some()),
            ("prefill_capture_sizes", self.prefill_capture_sizes.is_some()),
            ("compile_ranges_endpoints", self.compile_ranges_endpoints.is_some()),
            ("compile_sizes", self.compile_sizes.is_some()),
            ("pass_config", !self.passes.is_empty()),
        ];
        keys.into_iter().filter_map(|(key, given)| given.then_some(key)).collect()
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        // Python's None: as if it had not been said.
        if value.is_null() && KEYS.iter().any(|known| known.name == key) {
            return Ok(());
        }
        let named = |why: String| format!("{key}: {why}");
        match key {
            "mode" | "level" => {
                let mode = text_or_number(value).and_then(|text| text.parse()).map_err(named)?;
                once(key, &mut self.mode, Some(mode))
            }
            "cudagraph_mode" => {
                self.cudagraph_mode = Some(graph_mode(value).map_err(named)?);
                Ok(())
            }
            "cudagraph_capture_sizes" => {
                self.cudagraph_capture_sizes = Some(size_list(value).map_err(named)?);
                Ok(())
            }
            "max_cudagraph_capture_size" => {
                self.max_cudagraph_capture_size = Some(size(value).map_err(named)?);
                Ok(())
            }
            "prefill_capture_sizes" => {
                self.prefill_capture_sizes = Some(size_list(value).map_err(named)?);
                Ok(())
            }
            "compile_ranges_endpoints" | "compile_ranges_split_points" => {
                let sizes = Some(size_list(value).map_err(named)?);
                once(key, &mut self.compile_ranges_endpoints, sizes)
            }
            "compile_sizes" => {
                self.compile_sizes = Some(size_list(value).map_err(named)?);
                Ok(())
            }
            "pass_config" => match value {
                Value::Object(map) => map.iter().try_for_each(|(pass, value)| self.pass(pass, value)),
                _ => Err(named(format!("{value} is no JSON object, such as {{\"fuse_silu_mul\": false}}"))),
            },
            _ => without_effect("key", key, value, KEYS),
        }
    }

    /// A switch of `pass_config`.
    fn pass(&mut self, name: &str, value: &Value) -> Result<(), String> {
        let given = name;
        // vLLM's name for a pass that we have.
        let name = if name == "enable_qk_norm_rope_fusion" { "fuse_qk_norm_rope_append" } else { name };
        let Some(known) = PASSES.iter().find(|known| known.name == name && known.other.is_none()) else {
            return without_effect("pass", name, value, PASSES).map_err(|why| format!("pass_config.{why}"));
        };
        let on = match value {
            Value::Null => return Ok(()),
            Value::Bool(on) => *on,
            Value::String(text) if text.eq_ignore_ascii_case("true") => true,
            Value::String(text) if text.eq_ignore_ascii_case("false") => false,
            _ => return Err(format!("pass_config.{name}: {value} is neither true nor false")),
        };
        // By both of its names.
        let mut before = self.passes.get(known.name).copied();
        once(given, &mut before, Some(on)).map_err(|why| format!("pass_config.{why}"))?;
        self.passes.insert(known.name, on);
        Ok(())
    }
}

/// One size, as a flag has it.
///
/// # Errors
/// A sentence with the nearest size that is possible.
pub fn size_of_flag(text: &str) -> Result<u32, String> {
    size(&Value::String(text.to_owned()))
}

/// Whether a setting of this name is a key of the JSON that has an effect.
pub(super) fn is_key(name: &str) -> bool {
    KEYS.iter().any(|key| key.name == name && key.other.is_none())
}

/// Sets what may be said once, or twice alike.
fn once<T: PartialEq>(key: &str, to: &mut Option<T>, value: Option<T>) -> Result<(), String> {
    match (&to, &value) {
        (Some(before), Some(now)) if before != now => {
            Err(format!("{key}: it is given twice, with different values; give it once"))
        }
        (_, None) => Ok(()),
        _ => {
            *to = value;
            Ok(())
        }
    }
}

fn text_or_number(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(format!("{value} is no name")),
    }
}

/// By name, or by the number that vLLM has for it.
fn graph_mode(value: &Value) -> Result<GraphMode, String> {
    match text_or_number(value)?.as_str() {
        "0" => Ok(GraphMode::None),
        "1" => Ok(GraphMode::Piecewise),
        "2" => Ok(GraphMode::Full),
        name => name.parse(),
    }
}

/// From which likeness on, of 0 to 1, a name may be a misspelt other one.
const ALIKE: f64 = 0.8;

/// A name that has no effect here: fine with the value that asks for what is done anyway, else answered with why not.
fn without_effect(what: &str, name: &str, value: &Value, known: &[keys::Key]) -> Result<(), String> {
    let Some(key) = known.iter().find(|known| known.name == name) else {
        let useful = || known.iter().filter(|known| known.other.is_none()).map(|known| known.name);
        let like =
            useful().map(|known| (strsim::jaro_winkler(known, name), known)).filter(|(likeness, _)| *likeness > ALIKE);
        return Err(match like.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((_, nearest)) => format!("{name}: there is no such {what}; did you mean {nearest}?"),
            None => format!("{name}: there is no such {what}; there are {}", useful().collect::<Vec<_>>().join(", ")),
        });
    };
    let Some(Other { why, harmless }) = key.other else { return Err(format!("{name}: it can't stand here")) };
    if harmless.contains(&value.to_string().as_str()) { Ok(()) } else { Err(format!("{name}: {why}")) }
}
