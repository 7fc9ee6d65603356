//! Flags of `refrain bench startup`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::engine::EngineArgs;
use crate::cli::values::count_or_none;

/// Flags of `refrain bench startup`.
#[derive(Args, Clone, Debug)]
pub struct StartupArgs {
    /// The starts.
    #[command(flatten)]
    pub options: StartupOptions,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// The starts of `refrain bench startup`, by vLLM's names.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Benchmark")]
pub struct StartupOptions {
    /// Starts with an empty cache of compiled kernels
    #[arg(long, value_name = "STARTS", default_value_t = 3, value_parser = count_or_none)]
    pub num_iters_cold: usize,
    /// Starts that fill the cache for the measured warm ones
    #[arg(long, value_name = "STARTS", default_value_t = 1, value_parser = count_or_none)]
    pub num_iters_warmup: usize,
    /// Starts with a full cache
    #[arg(long, value_name = "STARTS", default_value_t = 3, value_parser = count_or_none)]
    pub num_iters_warm: usize,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    /// What the benchmark gives to the processes that it starts: start once, with kernels in the first folder, and write
    /// what it took to the file behind it
    #[arg(long, hide = true, num_args = 2, value_names = ["CACHE", "FILE"])]
    pub one_start: Vec<PathBuf>,
}
