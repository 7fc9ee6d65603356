//! `refrain bench`.

mod startup;
mod table;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use refrain::cli::bench::{BenchCommand, LatencyArgs, ServeArgs, ThroughputArgs, WorkloadArgs};
use refrain::load::{Loaded, Report};
use refrain_bench::serve::ServeOptions;
use refrain_bench::table::StartPhase;
use refrain_bench::{Arrivals, BANDWIDTH_BUFFER_BYTES, EngineFacts, RandomWorkload, Vocabulary, latency, throughput};
use refrain_program::StepShape;
use serde_json::{Map, Value, json};

use super::{Invocation, load_engine, print, progress_bar, runtime};

/// Runs a benchmark, prints its report and writes it to a file.
pub fn run(command: &BenchCommand, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    match command {
        BenchCommand::Latency(args) => run_latency(args, invocation),
        BenchCommand::Throughput(args) => run_throughput(args, invocation),
        BenchCommand::Table(args) => table::run(args, invocation),
        BenchCommand::Startup(args) => startup::run(args, invocation),
        BenchCommand::Serve(args) => run_serve(args),
    }
}

fn run_latency(args: &LatencyArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    let batch = (args.options.batch_size * args.options.n).max(1);
    let loaded = load_engine(&args.engine, Some((batch, "the batch")), invocation)?;
    // What the CPU's memory can do says nothing about a GPU; `refrain device` measures those.
    let skip_bandwidth = args.options.skip_bandwidth || loaded.engine.device().kind != "cpu";
    let options = latency::LatencyOptions {
        input_len: args.options.input_len,
        output_len: args.options.output_len,
        batch_size: args.options.batch_size,
        n: args.options.n,
        num_iters_warmup: args.options.num_iters_warmup,
        num_iters: args.options.num_iters,
        seed: args.engine.model.seed.unwrap_or(0),
        bandwidth_bytes: if skip_bandwidth { 0 } else { BANDWIDTH_BUFFER_BYTES },
    };
    let facts = facts(&loaded, invocation);
    let bar = progress_bar("Iterations")?;
    let report = runtime()?.block_on(latency::run(&loaded.engine, &options, facts, &bar))?;
    finish(&report.to_string(), &report.to_json(), args.options.output_json.as_deref())
}

fn run_throughput(args: &ThroughputArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    let loaded = load_engine(&args.engine, None, invocation)?;
    let vocabulary = Vocabulary::Below(loaded.engine.config().vocab_size as u32);
    let workload = workload(&args.options.workload, vocabulary, args.engine.model.seed.unwrap_or(0));
    let facts = facts(&loaded, invocation);
    let bar = progress_bar("Requests")?;
    let run = throughput::run(&loaded.engine, &workload, args.options.n, facts, &bar);
    let report = runtime()?.block_on(run)?;
    finish(&report.to_string(), &report.to_json(), args.options.output_json.as_deref())
}

fn run_serve(args: &ServeArgs) -> anyhow::Result<()> {
    let mut headers = args.header.clone();
    if let Some(key) = &args.api_key {
        headers.push(("authorization".to_owned(), format!("Bearer {key}")));
    }
    let host = if args.host.contains(':') { format!("[{}]", args.host) } else { args.host.clone() };
    let mut extra_body = args.sampling.to_json();
    extra_body.extend(args.extra_body.clone().unwrap_or_default());
    let vocabulary = args.vocab_size.map_or(Vocabulary::Ids(Vec::new()), Vocabulary::Below);
    let options = ServeOptions {
        base_url: args.base_url.clone().unwrap_or_else(|| format!("http://{host}:{}", args.port)),
        headers,
        api: args.backend.into(),
        model: args.model.clone(),
        workload: workload(&args.workload, vocabulary, args.seed),
        arrivals: Arrivals { request_rate: args.request_rate, burstiness: args.burstiness, seed: args.seed },
        max_concurrency: args.max_concurrency,
        num_warmups: args.num_warmups,
        ignore_eos: true,
        extra_body,
        ready_timeout: Duration::from_secs(args.ready_check_timeout_sec),
        percentile_metrics: args.percentile_metrics.clone(),
        percentiles: args.metric_percentiles.clone(),
        goodput: args.goodput.clone(),
        label: args.label.clone(),
        metadata: args.metadata.clone(),
    };
    let bar = if args.disable_tqdm { ProgressBar::hidden() } else { progress_bar("Requests")? };
    let report = runtime()?.block_on(refrain_bench::serve::run(&options, &bar))?;
    finish(&report.to_string(), &report.to_json(true), args.output_json.as_deref())?;
    match report.failed() {
        0 => Ok(()),
        failed => bail!("{failed} requests failed"),
    }
}

fn workload(args: &WorkloadArgs, vocabulary: Vocabulary, seed: u64) -> RandomWorkload {
    RandomWorkload {
        num_prompts: args.num_prompts,
        input_len: args.input_len,
        output_len: args.output_len,
        range_ratio: args.random_range_ratio,
        prefix_len: args.random_prefix_len,
        vocabulary,
        seed,
    }
}

fn facts(loaded: &Loaded, invocation: &Invocation<'_>) -> EngineFacts {
    let device = loaded.engine.device();
    let mut extra = Map::new();
    extra.insert("memory_plan".to_owned(), loaded.report.memory_json());
    extra.insert("weights_seconds".to_owned(), json!(loaded.report.weights_seconds));
    extra.insert("settings".to_owned(), Value::Object(loaded.report.settings.to_json()));
    EngineFacts {
        model_id: loaded.model.name.clone(),
        device: format!("{}: {} ({})", device.kind, device.name, device.compute),
        threads: loaded.report.threads,
        decode_weight_bytes: loaded.program.step_cost(&StepShape::decode(1, 0)).weight_bytes,
        load_seconds: loaded.report.load_seconds(),
        process_start: invocation.process_start,
        extra,
    }
}

/// The parts of loading, in order.
fn start_phases(report: &Report) -> Vec<StartPhase> {
    report.phases().into_iter().map(|(name, seconds)| StartPhase { name, seconds }).collect()
}

fn finish(text: &str, json: &Map<String, Value>, file: Option<&Path>) -> anyhow::Result<()> {
    print(text.as_bytes())?;
    if let Some(file) = file {
        let text = serde_json::to_string_pretty(json)? + "\n";
        std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(())
}
