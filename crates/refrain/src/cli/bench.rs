//! Flags of `refrain bench`. Names and defaults are those of `vllm bench`.

mod startup;
mod table;

pub use startup::{StartupArgs, StartupOptions};
pub use table::{TableArgs, TableOptions};

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use refrain_bench::serve::{Api, Goodput, MetricName};
use serde_json::{Map, Value};

use super::chat::SamplingArgs;
use super::engine::EngineArgs;
use super::values::{at_least_one, count, count_or_none, json_object, pair, positive_or_infinite};

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// How long one batch takes
    #[command(after_help = LATENCY_EXAMPLE)]
    Latency(LatencyArgs),
    /// How much the engine does when it is given everything at once
    #[command(after_help = THROUGHPUT_EXAMPLE)]
    Throughput(ThroughputArgs),
    /// The same prompts in several modes, side by side, over a range of input lengths
    #[command(after_help = TABLE_EXAMPLE)]
    Table(TableArgs),
    /// How long a process takes until it serves, with an empty cache of compiled kernels and with a full one
    #[command(after_help = STARTUP_EXAMPLE)]
    Startup(StartupArgs),
    /// What the users of a running server see
    #[command(after_help = SERVE_EXAMPLE)]
    Serve(ServeArgs),
}

const LATENCY_EXAMPLE: &str = "\
Example:
  refrain bench latency --batch-size 1 --input-len 512 --output-len 128 --num-iters 5 --output-json latency.json";

const THROUGHPUT_EXAMPLE: &str = "\
Example:
  refrain bench throughput --num-prompts 32 --input-len 512 --output-len 64";

const TABLE_EXAMPLE: &str = "\
Example:
  refrain bench table ./Qwen3.5-4B --max-model-len 32768 --modes eager,graph+compile,measured --output-dir table";

const STARTUP_EXAMPLE: &str = "\
Example:
  refrain bench startup ./Qwen3.5-4B --device cuda:0 --num-iters-cold 1 --num-iters-warm 3 --output-json startup.json";

const SERVE_EXAMPLE: &str = "\
Example:
  refrain serve &
  refrain bench serve --num-prompts 64 --max-concurrency 8 --input-len 256 --output-len 64";

impl BenchCommand {
    /// The engine that it loads, if it loads one.
    pub fn engine(&self) -> Option<&EngineArgs> {
        match self {
            BenchCommand::Latency(args) => Some(&args.engine),
            BenchCommand::Throughput(args) => Some(&args.engine),
            BenchCommand::Table(args) => Some(&args.engine),
            BenchCommand::Startup(args) => Some(&args.engine),
            BenchCommand::Serve(_) => None,
        }
    }
}

/// Flags of `refrain bench latency`.
#[derive(Args, Clone, Debug)]
pub struct LatencyArgs {
    /// The batch.
    #[command(flatten)]
    pub options: LatencyOptions,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// The batch of `refrain bench latency`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Benchmark")]
pub struct LatencyOptions {
    /// Prompt tokens of each request
    #[arg(long, value_name = "TOKENS", default_value_t = 32, value_parser = count)]
    pub input_len: usize,
    /// Tokens to generate for each request
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = count)]
    pub output_len: usize,
    /// Prompts in the batch
    #[arg(long, value_name = "PROMPTS", default_value_t = 8, value_parser = count)]
    pub batch_size: usize,
    /// Answers to each prompt
    #[arg(long, value_name = "ANSWERS", default_value_t = 1, value_parser = count)]
    pub n: usize,
    /// Batches before the measured ones
    #[arg(long, value_name = "BATCHES", default_value_t = 10, value_parser = count_or_none)]
    pub num_iters_warmup: usize,
    /// Measured batches
    #[arg(long, value_name = "BATCHES", default_value_t = 30, value_parser = count)]
    pub num_iters: usize,
    /// Don't measure the memory bandwidth, which takes a buffer of 1 GiB
    #[arg(long)]
    pub skip_bandwidth: bool,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    /// Accepted: the engine's token ids are measured, text is never made
    #[arg(long)]
    pub disable_detokenize: bool,
}

/// Flags of `refrain bench throughput`.
#[derive(Args, Clone, Debug)]
pub struct ThroughputArgs {
    /// The requests.
    #[command(flatten)]
    pub options: ThroughputOptions,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// The requests of `refrain bench throughput`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Benchmark")]
pub struct ThroughputOptions {
    /// Prompts
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// Answers to each prompt
    #[arg(long, value_name = "ANSWERS", default_value_t = 1, value_parser = count)]
    pub n: usize,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    /// Accepted: the engine's token ids are measured, text is never made
    #[arg(long)]
    pub disable_detokenize: bool,
}

/// Random prompts.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Benchmark")]
pub struct WorkloadArgs {
    /// Where prompts come from: random token ids
    #[arg(long, value_name = "NAME", default_value = "random", value_parser = ["random"])]
    pub dataset_name: String,
    /// Number of prompts
    #[arg(long, value_name = "PROMPTS", default_value_t = 1000, value_parser = count)]
    pub num_prompts: usize,
    /// Prompt tokens
    #[arg(long, visible_alias = "random-input-len", value_name = "TOKENS", default_value_t = 1024, value_parser = count)]
    pub input_len: usize,
    /// Tokens to generate
    #[arg(long, visible_alias = "random-output-len", value_name = "TOKENS", default_value_t = 128, value_parser = count)]
    pub output_len: usize,
    /// Spread lengths evenly over [len * (1 - ratio), len * (1 + ratio)]
    #[arg(long, value_name = "RATIO", default_value_t = 0.0, value_parser = range_ratio)]
    pub random_range_ratio: f64,
    /// Tokens at the start that all prompts share, on top of --input-len
    #[arg(long, visible_alias = "prefix-len", value_name = "TOKENS", default_value_t = 0, value_parser = count_or_none)]
    pub random_prefix_len: usize,
}

/// Flags of `refrain bench serve`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Benchmark")]
pub struct ServeArgs {
    /// Address of the server [default: http://HOST:PORT]
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// Host of the server
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port of the server
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// Endpoint: openai is /v1/completions with token ids, openai-chat is /v1/chat/completions
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = Backend::Openai)]
    pub backend: Backend,
    /// Model to ask for [default: the server's first]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Key to send; also read from OPENAI_API_KEY
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// More headers
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, num_args = 1..)]
    pub header: Vec<(String, String)>,
    /// Prompts
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// Draw token ids below this [default: the tokens of a text, asked from the server]
    #[arg(long, value_name = "SIZE")]
    pub vocab_size: Option<u32>,
    /// Seed of prompts and arrivals
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// Requests per second; inf sends all at once
    #[arg(long, value_name = "RATE", default_value = "inf", value_parser = positive_or_infinite)]
    pub request_rate: f64,
    /// Shape of the gamma distribution of the intervals: 1 is a Poisson process, less is burstier, inf is regular
    #[arg(long, value_name = "SHAPE", default_value = "1.0", value_parser = positive_or_infinite)]
    pub burstiness: f64,
    /// Most requests at the server at a time [default: no limit]
    #[arg(long, value_name = "REQUESTS", value_parser = at_least_one)]
    pub max_concurrency: Option<usize>,
    /// Requests before the measured ones
    #[arg(long, value_name = "REQUESTS", default_value_t = 0, value_parser = count_or_none)]
    pub num_warmups: usize,
    /// Accepted: answers to random prompts always go on after the end-of-sequence token
    #[arg(long)]
    pub ignore_eos: bool,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// More members of every request
    #[arg(long, value_name = "JSON", value_parser = json_object, help_heading = "Benchmark")]
    pub extra_body: Option<Map<String, Value>>,
    /// Seconds to wait for the server to come up
    #[arg(long, value_name = "SECONDS", default_value_t = 0, help_heading = "Benchmark")]
    pub ready_check_timeout_sec: u64,
    /// Times to print: of ttft, tpot, itl, e2el
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = metric_name,
          default_value = "ttft,tpot,itl,e2el", help_heading = "Report")]
    pub percentile_metrics: Vec<MetricName>,
    /// Percentiles of them
    #[arg(long, value_name = "PERCENTS", value_delimiter = ',', value_parser = percent, default_value = "99",
          help_heading = "Report")]
    pub metric_percentiles: Vec<f64>,
    /// Limits that a request must keep to count as good, in milliseconds: ttft:200 tpot:50 e2el:5000
    #[arg(long, value_name = "NAME:MS", value_parser = goodput, num_args = 1.., help_heading = "Report")]
    pub goodput: Vec<Goodput>,
    /// Name of this run, for the report
    #[arg(long, value_name = "TEXT", help_heading = "Report")]
    pub label: Option<String>,
    /// More members of the report
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, num_args = 1.., help_heading = "Report")]
    pub metadata: Vec<(String, String)>,
    /// Write the report to this file, with the times of every request
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub output_json: Option<PathBuf>,
    /// Show no progress bar
    #[arg(long, help_heading = "Report")]
    pub disable_tqdm: bool,
}

/// `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// /v1/completions with token ids
    #[value(alias = "vllm")]
    Openai,
    /// /v1/chat/completions
    OpenaiChat,
}

impl From<Backend> for Api {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Openai => Api::Completions,
            Backend::OpenaiChat => Api::Chat,
        }
    }
}

fn range_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("must be at least 0 and below 1".to_owned()),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("must be a number from 0 to 100".to_owned()),
    }
}

fn metric_name(text: &str) -> Result<MetricName, String> {
    MetricName::ALL
        .into_iter()
        .find(|metric| metric.key() == text.trim())
        .ok_or_else(|| "must be of ttft, tpot, itl and e2el".to_owned())
}

fn goodput(text: &str) -> Result<Goodput, String> {
    let wrong = || "must be ttft, tpot or e2el with milliseconds, such as ttft:200".to_owned();
    let (name, limit) = text.split_once(':').ok_or_else(wrong)?;
    let metric = metric_name(name).map_err(|_| wrong())?;
    match limit.parse::<f64>() {
        Ok(milliseconds) if milliseconds >= 0.0 && metric != MetricName::Itl => Ok(Goodput { metric, milliseconds }),
        _ => Err(wrong()),
    }
}
