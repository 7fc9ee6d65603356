//! The figures of a serving benchmark, with vLLM's names and definitions.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::{Outcome, ServeOptions};
use crate::calendar::date_time;
use crate::columns::Table;
use crate::statistics::{mean, median, percentile, percentile_label, standard_deviation};

/// A time that is measured for every request (or every token).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricName {
    /// Time to the first token.
    Ttft,
    /// Mean time for each token after the first.
    Tpot,
    /// Time between two pieces of an answer.
    Itl,
    /// Time to the end of the answer.
    E2el,
}

impl MetricName {
    /// All of them, in the order of the report.
    pub const ALL: [MetricName; 4] = [MetricName::Ttft, MetricName::Tpot, MetricName::Itl, MetricName::E2el];

    /// The name in keys and flags.
    pub fn key(self) -> &'static str {
        match self {
            MetricName::Ttft => "ttft",
            MetricName::Tpot => "tpot",
            MetricName::Itl => "itl",
            MetricName::E2el => "e2el",
        }
    }

    fn heading(self) -> &'static str {
        match self {
            MetricName::Ttft => "Time to first token",
            MetricName::Tpot => "Time per output token (without the first)",
            MetricName::Itl => "Inter-token latency",
            MetricName::E2el => "End-to-end latency",
        }
    }
}

/// A limit on a metric of a request: one that keeps all limits is good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goodput {
    /// What is limited: not the inter-token latency.
    pub metric: MetricName,
    /// The limit.
    pub milliseconds: f64,
}

/// What a serving benchmark found.
#[derive(Debug)]
pub struct ServeReport {
    json: Map<String, Value>,
    percentile_metrics: Vec<MetricName>,
    percentiles: Vec<f64>,
}

/// Keys with one entry for each request.
const DETAILS: [&str; 7] = ["input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors"];

impl ServeReport {
    pub(super) fn new(options: &ServeOptions, model: String, duration: Duration, outcomes: Vec<Outcome>) -> Self {
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.to_owned(), value);
        put("date", json!(date_time(SystemTime::now())));
        put("backend", json!(options.api.name()));
        put("endpoint_type", json!(options.api.name()));
        put("label", json!(options.label));
        put("model_id", json!(model));
        // The server's own tokenizer counts.
        put("tokenizer_id", Value::Null);
        put("num_prompts", json!(outcomes.len()));
        let rate = options.arrivals.request_rate;
        put("request_rate", if rate.is_finite() { json!(rate) } else { json!("inf") });
        put("burstiness", json!(options.arrivals.burstiness));
        put("max_concurrency", json!(options.max_concurrency));
        for (key, value) in &options.metadata {
            put(key, json!(value));
        }

        let seconds = duration.as_secs_f64().max(f64::MIN_POSITIVE);
        let done: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.error.is_none()).collect();
        let input: usize = done.iter().map(|outcome| outcome.prompt_len).sum();
        let output: usize = done.iter().map(|outcome| outcome.output_len).sum();
        let good = done.iter().filter(|outcome| options.goodput.iter().all(|limit| limit.holds(outcome))).count();
        put("duration", json!(seconds));
        put("completed", json!(done.len()));
        put("failed", json!(outcomes.len() - done.len()));
        put("total_input_tokens", json!(input));
        put("total_output_tokens", json!(output));
        put("request_throughput", json!(done.len() as f64 / seconds));
        let goodput = (!options.goodput.is_empty()).then_some(good as f64 / seconds);
        put("request_goodput", json!(goodput));
        put("output_throughput", json!(output as f64 / seconds));
        put("total_token_throughput", json!((input + output) as f64 / seconds));
        put("max_output_tokens_per_s", json!(busiest_second(&done)));
        put("max_concurrent_requests", json!(most_at_once(&done)));
        for metric in MetricName::ALL {
            let milliseconds: Vec<f64> = metric.values(&done).iter().map(|seconds| seconds * 1e3).collect();
            let name = metric.key();
            put(&format!("mean_{name}_ms"), json!(mean(&milliseconds)));
            put(&format!("median_{name}_ms"), json!(median(&milliseconds)));
            put(&format!("std_{name}_ms"), json!(standard_deviation(&milliseconds)));
            for &percent in &options.percentiles {
                let key = format!("p{}_{name}_ms", percentile_label(percent));
                put(&key, json!(percentile(&milliseconds, percent)));
            }
        }

        let each = |value: fn(&Outcome) -> Value| Value::Array(outcomes.iter().map(value).collect());
        put("input_lens", each(|outcome| json!(outcome.prompt_len)));
        put("output_lens", each(|outcome| json!(outcome.output_len)));
        put("ttfts", each(|outcome| json!(outcome.ttft)));
        put("itls", each(|outcome| json!(outcome.itls)));
        put("latencies", each(|outcome| json!(outcome.latency)));
        put("start_times", each(|outcome| json!(outcome.start_time)));
        put("queue_times", each(|outcome| json!(outcome.queue_time)));
        put("generated_texts", each(|outcome| json!(outcome.text)));
        put("errors", each(|outcome| json!(outcome.error.as_ref().map(ToString::to_string).unwrap_or_default())));
        let percentile_metrics = options.percentile_metrics.clone();
        Self { json, percentile_metrics, percentiles: options.percentiles.clone() }
    }

    /// The report with vLLM's keys; without `detailed`, without what there is one of for every request.
    pub fn to_json(&self, detailed: bool) -> Map<String, Value> {
        let mut json = self.json.clone();
        if !detailed {
            json.retain(|key, _| !DETAILS.contains(&key.as_str()));
        }
        json
    }

    /// Requests that failed.
    pub fn failed(&self) -> usize {
        self.json["failed"].as_u64().unwrap_or(0) as usize
    }

    fn number(&self, key: &str) -> f64 {
        self.json.get(key).and_then(Value::as_f64).unwrap_or(0.0)
    }
}

impl Goodput {
    fn holds(&self, outcome: &Outcome) -> bool {
        let seconds = match self.metric {
            MetricName::Ttft => outcome.ttft,
            MetricName::Tpot => tpot(outcome).unwrap_or(0.0),
            MetricName::Itl => outcome.itls.iter().copied().fold(0.0, f64::max),
            MetricName::E2el => outcome.latency,
        };
        seconds * 1e3 <= self.milliseconds
    }
}

impl MetricName {
    fn values(self, outcomes: &[&Outcome]) -> Vec<f64> {
        let each = outcomes.iter();
        match self {
            MetricName::Ttft => each.map(|outcome| outcome.ttft).collect(),
            MetricName::Tpot => each.filter_map(|outcome| tpot(outcome)).collect(),
            MetricName::Itl => each.flat_map(|outcome| outcome.itls.iter().copied()).collect(),
            MetricName::E2el => each.map(|outcome| outcome.latency).collect(),
        }
    }
}

fn tpot(outcome: &Outcome) -> Option<f64> {
    (outcome.output_len > 1).then(|| (outcome.latency - outcome.ttft) / (outcome.output_len - 1) as f64)
}

/// Pieces of answers that arrived in the second in which most did.
fn busiest_second(outcomes: &[&Outcome]) -> f64 {
    let Some(start) = outcomes.iter().map(|outcome| outcome.start_time).min_by(f64::total_cmp) else { return 0.0 };
    let mut seconds: Vec<u32> = Vec::new();
    for outcome in outcomes {
        let mut now = outcome.start_time - start + outcome.ttft;
        for wait in std::iter::once(0.0).chain(outcome.itls.iter().copied()) {
            now += wait;
            let second = now as usize;
            if seconds.len() <= second {
                seconds.resize(second + 1, 0);
            }
            seconds[second] += 1;
        }
    }
    f64::from(seconds.into_iter().max().unwrap_or(0))
}

/// The most requests that were at the server at one time.
fn most_at_once(outcomes: &[&Outcome]) -> i64 {
    let mut changes: Vec<(f64, i64)> = outcomes
        .iter()
        .flat_map(|outcome| [(outcome.start_time, 1), (outcome.start_time + outcome.latency, -1)])
        .collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut most) = (0, 0);
    for (_, change) in changes {
        now += change;
        most = most.max(now);
    }
    most
}

impl fmt::Display for ServeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new("Serving benchmark");
        let whole = |key: &str| format!("{:.0}", self.number(key));
        let rounded = |key: &str| format!("{:.2}", self.number(key));
        table.row("Successful requests", whole("completed"));
        table.row("Failed requests", whole("failed"));
        table.row("Duration (s)", rounded("duration"));
        table.row("Total input tokens", whole("total_input_tokens"));
        table.row("Total generated tokens", whole("total_output_tokens"));
        table.row("Request throughput (req/s)", rounded("request_throughput"));
        if self.json["request_goodput"].is_number() {
            table.row("Request goodput (req/s)", rounded("request_goodput"));
        }
        table.row("Output token throughput (tok/s)", rounded("output_throughput"));
        table.row("Peak output token throughput (tok/s)", rounded("max_output_tokens_per_s"));
        table.row("Peak concurrent requests", whole("max_concurrent_requests"));
        table.row("Total token throughput (tok/s)", rounded("total_token_throughput"));
        for &metric in &self.percentile_metrics {
            let name = metric.key();
            let label = name.to_uppercase();
            table.heading(metric.heading());
            table.row(format!("Mean {label} (ms)"), rounded(&format!("mean_{name}_ms")));
            table.row(format!("Median {label} (ms)"), rounded(&format!("median_{name}_ms")));
            for &percent in &self.percentiles {
                let percent = percentile_label(percent);
                table.row(format!("P{percent} {label} (ms)"), rounded(&format!("p{percent}_{name}_ms")));
            }
        }
        let errors: Vec<&str> =
            self.json["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let failures = errors.iter().filter(|error| !error.is_empty());
        for (index, error) in failures.take(10).enumerate() {
            if index == 0 {
                table.heading("Failures, at most ten");
            }
            table.row(format!("{}", index + 1), (*error).to_owned());
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(start_time: f64, ttft: f64, itls: &[f64]) -> Outcome {
        let latency = ttft + itls.iter().sum::<f64>();
        Outcome { start_time, ttft, itls: itls.to_vec(), latency, output_len: itls.len() + 1, ..Outcome::default() }
    }

    #[test]
    fn peaks_are_those_of_the_timeline() {
        let first = outcome(10.0, 0.5, &[0.1, 0.1, 1.0]);
        let second = outcome(10.2, 0.1, &[0.1]);
        // Begins when the second one ends: never three at once.
        let third = outcome(10.4, 5.0, &[]);
        let outcomes = [&first, &second, &third];
        assert_eq!(most_at_once(&outcomes), 2);
        assert_eq!(busiest_second(&outcomes), 5.0);
        assert_eq!((most_at_once(&[]), busiest_second(&[])), (0, 0.0));
    }

    #[test]
    fn the_first_token_is_not_in_the_time_per_output_token() {
        assert_eq!(tpot(&outcome(0.0, 3.0, &[1.0, 2.0])), Some(1.5));
        assert_eq!(tpot(&outcome(0.0, 3.0, &[])), None);
        let limit = Goodput { metric: MetricName::Tpot, milliseconds: 1500.0 };
        assert!(limit.holds(&outcome(0.0, 3.0, &[1.0, 2.0])));
        assert!(!limit.holds(&outcome(0.0, 3.0, &[1.0, 2.1])));
    }
}
