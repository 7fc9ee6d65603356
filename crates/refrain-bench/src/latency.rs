//! `bench latency`: how long one batch takes from its submission to its last token.

use std::fmt;
use std::time::Instant;

use indicatif::ProgressBar;
use refrain_engine::EngineHandle;
use serde_json::{Map, Value, json};

use crate::columns::Table;
use crate::offline::{EngineFacts, Phases, request, run_all};
use crate::statistics::{mean, median, percentile, percentile_label, standard_deviation};
use crate::{
    BANDWIDTH_BUFFER_BYTES, BenchError, RandomWorkload, Sample, Vocabulary, peak_memory_bytes, read_bandwidth,
};

/// What to measure. Names and defaults are those of `vllm bench latency`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyOptions {
    /// Prompt tokens of each request.
    pub input_len: usize,
    /// Tokens to generate for each request.
    pub output_len: usize,
    /// Prompts in the batch.
    pub batch_size: usize,
    /// Answers to each prompt.
    pub n: usize,
    /// Batches before the measured ones.
    pub num_iters_warmup: usize,
    /// Measured batches.
    pub num_iters: usize,
    /// Seed of the prompts and of the sampling.
    pub seed: u64,
    /// Bytes to read in order to measure the memory bandwidth; 0 leaves it out.
    pub bandwidth_bytes: usize,
}

impl Default for LatencyOptions {
    fn default() -> Self {
        Self {
            input_len: 32,
            output_len: 128,
            batch_size: 8,
            n: 1,
            num_iters_warmup: 10,
            num_iters: 30,
            seed: 0,
            bandwidth_bytes: BANDWIDTH_BUFFER_BYTES,
        }
    }
}

const PERCENTILES: [f64; 6] = [10.0, 25.0, 50.0, 75.0, 90.0, 99.0];

/// What was measured. Times are in seconds, rates per second, medians over the iterations.
#[derive(Clone, Debug)]
pub struct LatencyReport {
    options: LatencyOptions,
    facts: EngineFacts,
    /// Of each measured batch.
    pub latencies: Vec<f64>,
    /// From submission until every request had its first token.
    pub time_to_first_token: f64,
    /// Prompt tokens over that time.
    pub prefill_tokens_per_second: f64,
    /// Tokens after that moment over the time they took.
    pub decode_tokens_per_second: f64,
    /// From the start of the process to the first token of the first batch.
    pub start_to_first_token: f64,
    /// Rate in bytes/s at which the machine reads memory, if it was measured.
    pub read_bandwidth: Option<f64>,
    /// The most memory the process had resident, before the bandwidth was measured.
    pub peak_memory_bytes: Option<u64>,
}

/// Runs the benchmark. `progress` advances by one with each iteration, warm-up included.
///
/// # Errors
/// [`BenchError`] if an option makes no sense or the engine refuses or fails a request.
pub async fn run(
    engine: &EngineHandle,
    options: &LatencyOptions,
    facts: EngineFacts,
    progress: &ProgressBar,
) -> Result<LatencyReport, BenchError> {
    check(options, engine.config().max_model_len)?;
    let workload = RandomWorkload {
        num_prompts: options.batch_size,
        input_len: options.input_len,
        output_len: options.output_len,
        range_ratio: 0.0,
        prefix_len: 0,
        vocabulary: Vocabulary::Below(engine.config().vocab_size as u32),
        seed: options.seed,
    };
    let samples = workload.samples();
    // The very first batch is one token long, so that the time to it does not depend on the lengths.
    let first = Sample { output_len: 1, ..samples[0].clone() };
    run_all(engine, vec![request("first".to_owned(), first, options.seed)], || ()).await?;
    let start_to_first_token = facts.process_start.elapsed().as_secs_f64();

    progress.set_length((options.num_iters_warmup + options.num_iters) as u64);
    let (mut latencies, mut phases) = (Vec::new(), Vec::new());
    for iteration in 0..options.num_iters_warmup + options.num_iters {
        let batch: Vec<_> = samples
            .iter()
            .flat_map(|sample| std::iter::repeat_n(sample, options.n))
            .enumerate()
            .map(|(index, sample)| request(format!("{iteration}-{index}"), sample.clone(), index as u64))
            .collect();
        let start = Instant::now();
        let timelines = run_all(engine, batch, || ()).await?;
        let latency = start.elapsed().as_secs_f64();
        progress.inc(1);
        if iteration >= options.num_iters_warmup {
            latencies.push(latency);
            phases.push(Phases::of(start, &timelines));
        }
    }
    progress.finish_and_clear();
    let middle = |value: fn(&Phases) -> f64| median(&phases.iter().map(value).collect::<Vec<_>>());
    let peak_memory_bytes = peak_memory_bytes();
    let read_bandwidth = (options.bandwidth_bytes > 0).then(|| read_bandwidth(facts.threads, options.bandwidth_bytes));
    Ok(LatencyReport {
        options: options.clone(),
        facts,
        latencies,
        time_to_first_token: middle(|phases| phases.prefill_seconds),
        prefill_tokens_per_second: middle(Phases::prefill_rate),
        decode_tokens_per_second: middle(Phases::decode_rate),
        start_to_first_token,
        read_bandwidth,
        peak_memory_bytes,
    })
}

fn check(options: &LatencyOptions, max_model_len: usize) -> Result<(), BenchError> {
    let least_one = [
        ("--input-len", options.input_len),
        ("--output-len", options.output_len),
        ("--batch-size", options.batch_size),
        ("--n", options.n),
        ("--num-iters", options.num_iters),
    ];
    if let Some((option, _)) = least_one.into_iter().find(|&(_, value)| value == 0) {
        return Err(BenchError::Option { option, why: "must be at least 1".to_owned() });
    }
    let length = options.input_len + options.output_len;
    if length > max_model_len {
        let why = format!("input and output are {length} tokens together, --max-model-len is {max_model_len}");
        return Err(BenchError::Option { option: "--input-len", why });
    }
    Ok(())
}

impl LatencyReport {
    /// The rate in bytes/s at which decoding reads weights.
    pub fn weight_read_rate(&self) -> f64 {
        let steps = self.decode_tokens_per_second / (self.options.batch_size * self.options.n) as f64;
        steps * self.facts.decode_weight_bytes as f64
    }

    /// Part of the memory bandwidth that decoding uses for weights, in percent, if the bandwidth was measured.
    pub fn bandwidth_percent(&self) -> Option<f64> {
        self.read_bandwidth.map(|bandwidth| 100.0 * self.weight_read_rate() / bandwidth)
    }

    /// The report with vLLM's keys, and ours after them.
    pub fn to_json(&self) -> Map<String, Value> {
        let percentiles: Map<String, Value> = PERCENTILES
            .iter()
            .map(|&percent| (percentile_label(percent), json!(percentile(&self.latencies, percent))))
            .collect();
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.to_owned(), value);
        put("model_id", json!(self.facts.model_id));
        put("avg_latency", json!(mean(&self.latencies)));
        put("std_latency", json!(standard_deviation(&self.latencies)));
        put("latencies", json!(self.latencies));
        put("percentiles", Value::Object(percentiles));
        put("input_len", json!(self.options.input_len));
        put("output_len", json!(self.options.output_len));
        put("batch_size", json!(self.options.batch_size));
        put("n", json!(self.options.n));
        put("num_iters_warmup", json!(self.options.num_iters_warmup));
        put("num_iters", json!(self.options.num_iters));
        put("time_to_first_token", json!(self.time_to_first_token));
        put("prefill_tokens_per_second", json!(self.prefill_tokens_per_second));
        put("decode_tokens_per_second", json!(self.decode_tokens_per_second));
        put("decode_weight_bytes", json!(self.facts.decode_weight_bytes));
        put("weight_read_rate", json!(self.weight_read_rate()));
        put("read_bandwidth", json!(self.read_bandwidth));
        put("bandwidth_percent", json!(self.bandwidth_percent()));
        put("peak_memory_bytes", json!(self.peak_memory_bytes));
        put("start_to_first_token", json!(self.start_to_first_token));
        json.extend(self.facts.to_json());
        json
    }
}

impl fmt::Display for LatencyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let mut table = Table::new(format!(
            "Latency of {} x {} prompt tokens and {} generated tokens",
            options.batch_size * options.n,
            options.input_len,
            options.output_len
        ));
        table.row("Model", self.facts.model_id.clone());
        table.row("Device", self.facts.device.clone());
        table.row("Average latency (s)", format!("{:.4}", mean(&self.latencies)));
        table.row("Standard deviation (s)", format!("{:.4}", standard_deviation(&self.latencies)));
        for percent in PERCENTILES {
            let label = format!("P{} latency (s)", percentile_label(percent));
            table.row(label, format!("{:.4}", percentile(&self.latencies, percent)));
        }
        table.heading("Phases, medians");
        table.row("Time to first token (ms)", format!("{:.2}", self.time_to_first_token * 1e3));
        table.row("Prefill (tok/s)", format!("{:.1}", self.prefill_tokens_per_second));
        table.row("Decode (tok/s)", format!("{:.1}", self.decode_tokens_per_second));
        if let (Some(bandwidth), Some(percent)) = (self.read_bandwidth, self.bandwidth_percent()) {
            let reads = format!("{:.2} of {:.2}", self.weight_read_rate() / 1e9, bandwidth / 1e9);
            table.row("Decode reads weights at (GB/s)", reads);
            table.row("Part of memory bandwidth (%)", format!("{percent:.1}"));
        }
        table.heading("Start and memory");
        table.row("Load time (s)", format!("{:.3}", self.facts.load_seconds));
        table.row("Process start to first token (s)", format!("{:.3}", self.start_to_first_token));
        if let Some(peak) = self.peak_memory_bytes {
            table.row("Peak memory (MiB)", format!("{:.1}", peak as f64 / f64::from(1 << 20)));
        }
        table.fmt(f)
    }
}
