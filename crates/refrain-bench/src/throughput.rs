//! `bench throughput`: how much an engine does when it is given everything at once.

use std::fmt;
use std::time::Instant;

use indicatif::ProgressBar;
use refrain_engine::EngineHandle;
use serde_json::{Map, Value, json};

use crate::columns::Table;
use crate::offline::{EngineFacts, rate, request, run_all};
use crate::{BenchError, RandomWorkload, peak_memory_bytes};

/// What was measured.
#[derive(Clone, Debug)]
pub struct ThroughputReport {
    facts: EngineFacts,
    /// Seconds from the submission to the last token.
    pub elapsed_time: f64,
    /// Requests.
    pub num_requests: usize,
    /// Prompt tokens of all requests.
    pub total_prompt_tokens: usize,
    /// Generated tokens of all requests.
    pub total_output_tokens: usize,
    /// The most memory the process had resident.
    pub peak_memory_bytes: Option<u64>,
}

/// Runs the benchmark: `n` answers to each prompt of the workload. `progress` advances by one with each finished
/// request.
///
/// # Errors
/// [`BenchError`] if the requests don't fit the engine, or it refuses or fails one.
pub async fn run(
    engine: &EngineHandle,
    workload: &RandomWorkload,
    n: usize,
    facts: EngineFacts,
    progress: &ProgressBar,
) -> Result<ThroughputReport, BenchError> {
    let max_model_len = engine.config().max_model_len;
    if workload.longest() > max_model_len {
        let longest = workload.longest();
        let why = format!("input and output are up to {longest} tokens together, --max-model-len is {max_model_len}");
        return Err(BenchError::Option { option: "--input-len", why });
    }
    if workload.num_prompts == 0 || n == 0 {
        return Err(BenchError::Option { option: "--num-prompts", why: "must be at least 1, as must --n".to_owned() });
    }
    let requests: Vec<_> = workload
        .samples()
        .into_iter()
        .flat_map(|sample| std::iter::repeat_n(sample, n))
        .enumerate()
        .map(|(index, sample)| request(index.to_string(), sample, workload.seed.wrapping_add(index as u64)))
        .collect();
    let num_requests = requests.len();
    progress.set_length(num_requests as u64);
    let start = Instant::now();
    let timelines = run_all(engine, requests, || progress.inc(1)).await?;
    let elapsed_time = start.elapsed().as_secs_f64();
    progress.finish_and_clear();
    Ok(ThroughputReport {
        facts,
        elapsed_time,
        num_requests,
        total_prompt_tokens: timelines.iter().map(|timeline| timeline.prompt_len).sum(),
        total_output_tokens: timelines.iter().map(|timeline| timeline.tokens.len()).sum(),
        peak_memory_bytes: peak_memory_bytes(),
    })
}

impl ThroughputReport {
    fn total_num_tokens(&self) -> usize {
        self.total_prompt_tokens + self.total_output_tokens
    }

    /// The report with vLLM's keys, and ours after them.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.to_owned(), value);
        put("model_id", json!(self.facts.model_id));
        put("elapsed_time", json!(self.elapsed_time));
        put("num_requests", json!(self.num_requests));
        put("total_num_tokens", json!(self.total_num_tokens()));
        put("requests_per_second", json!(rate(self.num_requests, self.elapsed_time)));
        put("tokens_per_second", json!(rate(self.total_num_tokens(), self.elapsed_time)));
        put("total_prompt_tokens", json!(self.total_prompt_tokens));
        put("total_output_tokens", json!(self.total_output_tokens));
        put("output_tokens_per_second", json!(rate(self.total_output_tokens, self.elapsed_time)));
        put("peak_memory_bytes", json!(self.peak_memory_bytes));
        json.extend(self.facts.to_json());
        json
    }
}

impl fmt::Display for ThroughputReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = |count: usize| format!("{:.2}", rate(count, self.elapsed_time));
        let mut table = Table::new("Throughput");
        table.row("Model", self.facts.model_id.clone());
        table.row("Device", self.facts.device.clone());
        table.row("Requests", self.num_requests.to_string());
        table.row("Prompt tokens", self.total_prompt_tokens.to_string());
        table.row("Generated tokens", self.total_output_tokens.to_string());
        table.row("Elapsed time (s)", format!("{:.2}", self.elapsed_time));
        table.row("Requests (req/s)", per_second(self.num_requests));
        table.row("All tokens (tok/s)", per_second(self.total_num_tokens()));
        table.row("Generated tokens (tok/s)", per_second(self.total_output_tokens));
        table.row("Load time (s)", format!("{:.3}", self.facts.load_seconds));
        if let Some(peak) = self.peak_memory_bytes {
            table.row("Peak memory (MiB)", format!("{:.1}", peak as f64 / f64::from(1 << 20)));
        }
        table.fmt(f)
    }
}
