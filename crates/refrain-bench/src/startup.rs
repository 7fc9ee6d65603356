//! `bench startup`: how long a process takes until it serves, with an empty cache of compiled kernels and with a full one.
//! Each start is a process of its own, which writes what it measured to a file.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::columns::Table;
use crate::statistics::{mean, median, percentile, percentile_label};

const PERCENTILES: [f64; 6] = [10.0, 25.0, 50.0, 75.0, 90.0, 99.0];

/// What one start took, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OneStart {
    /// Name of the model.
    pub model_id: String,
    /// The device and what it computes with.
    pub device: String,
    /// The parts of loading, in order.
    pub phases: Vec<(String, f64)>,
    /// Of that, compiling kernels or loading them from the cache.
    pub compilation_seconds: f64,
    /// From the start of the process until requests were taken.
    pub startup_seconds: f64,
    /// From the start of the process until the first token of a short prompt.
    pub first_token_seconds: f64,
}

/// All starts. Names of its JSON are those of `vllm bench startup`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartupReport {
    /// With an empty cache each.
    pub cold: Vec<OneStart>,
    /// With the cache that starts before them have filled.
    pub warm: Vec<OneStart>,
}

type Measure = fn(&OneStart) -> f64;

/// vLLM's two measures, and ours.
const MEASURES: [(&str, &str, Measure); 3] = [
    ("startup", "Until requests are taken (s)", |start| start.startup_seconds),
    ("compilation", "Of that, kernels (s)", |start| start.compilation_seconds),
    ("first_token", "Until the first token (s)", |start| start.first_token_seconds),
];

impl StartupReport {
    fn kinds(&self) -> [(&'static str, &'static str, &[OneStart]); 2] {
        [("cold", "Empty kernel cache", &self.cold), ("warm", "Full kernel cache", &self.warm)]
    }

    /// The report with vLLM's keys, and ours after them.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut json = Map::new();
        for (kind, _, starts) in self.kinds() {
            for (measure, _, value) in MEASURES {
                let values: Vec<f64> = starts.iter().map(value).collect();
                let percentiles: Map<String, Value> = PERCENTILES
                    .iter()
                    .map(|&percent| (percentile_label(percent), json!(percentile(&values, percent))))
                    .collect();
                json.insert(format!("avg_{kind}_{measure}_time"), json!(mean(&values)));
                json.insert(format!("{kind}_{measure}_times"), json!(values));
                json.insert(format!("{kind}_{measure}_percentiles"), Value::Object(percentiles));
            }
            let phases = phases(starts).into_iter().map(|(name, seconds)| (name, json!(seconds)));
            json.insert(format!("{kind}_phases"), Value::Object(phases.collect()));
        }
        if let Some(start) = self.cold.iter().chain(&self.warm).next() {
            json.insert("model_id".to_owned(), json!(start.model_id));
            json.insert("device".to_owned(), json!(start.device));
        }
        json
    }
}

/// The median of each phase, in the order of the first start.
fn phases(starts: &[OneStart]) -> Vec<(String, f64)> {
    let names = starts.first().map_or(Vec::new(), |start| start.phases.iter().map(|(name, _)| name.clone()).collect());
    let of = |name: &str| -> Vec<f64> {
        let each = starts.iter().flat_map(|start| &start.phases);
        each.filter(|(other, _)| other == name).map(|(_, seconds)| *seconds).collect()
    };
    names.into_iter().map(|name: String| (name.clone(), median(&of(&name)))).collect()
}

impl fmt::Display for StartupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new("Start of a process, medians");
        if let Some(start) = self.cold.iter().chain(&self.warm).next() {
            table.row("Model", start.model_id.clone());
            table.row("Device", start.device.clone());
        }
        for (_, title, starts) in self.kinds() {
            if starts.is_empty() {
                continue;
            }
            table.heading(format!("{title}, {} starts", starts.len()));
            for (_, name, value) in MEASURES {
                let values: Vec<f64> = starts.iter().map(value).collect();
                let (low, high) = (percentile(&values, 0.0), percentile(&values, 100.0));
                table.row(name, format!("{:.3} ({low:.3} to {high:.3})", median(&values)));
            }
            for (name, seconds) in phases(starts) {
                table.row(format!("  {name} (s)"), format!("{seconds:.3}"));
            }
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(kernels: f64, weights: f64) -> OneStart {
        OneStart {
            model_id: "tiny".to_owned(),
            device: "sim".to_owned(),
            phases: vec![("kernels".to_owned(), kernels), ("weights".to_owned(), weights)],
            compilation_seconds: kernels,
            startup_seconds: kernels + weights,
            first_token_seconds: kernels + weights + 0.25,
        }
    }

    fn report() -> StartupReport {
        StartupReport {
            cold: vec![start(4.0, 1.0), start(6.0, 1.0), start(5.0, 4.0)],
            warm: vec![start(0.5, 1.0), start(0.5, 1.0)],
        }
    }

    #[test]
    fn json_has_the_keys_of_vllm() {
        let json = report().to_json();
        assert_eq!(json["cold_startup_times"], json!([5.0, 7.0, 9.0]));
        assert_eq!(json["avg_cold_startup_time"], 7.0);
        assert_eq!(json["cold_startup_percentiles"]["50"], 7.0);
        assert_eq!(json["avg_warm_compilation_time"], 0.5);
        assert_eq!(json["warm_compilation_times"], json!([0.5, 0.5]));
        assert_eq!(json["cold_phases"], json!({ "kernels": 5.0, "weights": 1.0 }));
        assert_eq!(json["model_id"], "tiny");
    }

    #[test]
    fn text_tells_medians_and_spread() {
        let text = report().to_string();
        assert!(text.contains("7.000 (5.000 to 9.000)") && text.contains("Full kernel cache, 2 starts"), "{text}");
        let cold_only = StartupReport { warm: Vec::new(), ..report() }.to_string();
        assert!(!cold_only.contains("Full kernel cache"), "{cold_only}");
    }
}
