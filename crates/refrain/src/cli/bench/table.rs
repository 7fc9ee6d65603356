//! Flags of `refrain bench table`.

use std::path::PathBuf;

use clap::Args;
use refrain_bench::table::Mode;

use crate::cli::engine::EngineArgs;
use crate::cli::values::{count, count_or_none, rate};

/// Flags of `refrain bench table`.
#[derive(Args, Clone, Debug)]
pub struct TableArgs {
    /// What is compared.
    #[command(flatten)]
    pub options: TableOptions,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What `refrain bench table` compares.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Benchmark")]
pub struct TableOptions {
    /// Prompt tokens of each request, several lengths [default: those of 1024,4096,8192,16384,24576 that the model
    /// takes]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = count)]
    pub lengths: Vec<usize>,
    /// Tokens to generate for each request
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = count)]
    pub output_len: usize,
    /// Modes to compare: of eager, compiled, graph, graph+compile and measured [default: eager,graph+compile,measured, with
    /// compiled instead of graph+compile on a device without graphs]
    #[arg(long, value_name = "MODES", value_delimiter = ',', value_parser = mode)]
    pub modes: Vec<Mode>,
    /// Requests that run side by side
    #[arg(long, value_name = "REQUESTS", default_value_t = 1, value_parser = count)]
    pub batch_size: usize,
    /// Measured rounds; each runs every length in every mode
    #[arg(long, value_name = "ROUNDS", default_value_t = 3, value_parser = count)]
    pub rounds: usize,
    /// Rounds before the measured ones
    #[arg(long, value_name = "ROUNDS", default_value_t = 1, value_parser = count_or_none)]
    pub warmup_rounds: usize,
    /// Memory bandwidth of the machine in bytes per second (40G) [default: measured]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub bandwidth: Option<f64>,
    /// Arithmetic of the machine in floating-point operations per second (3T) [default: measured on a GPU, estimated on
    /// a CPU]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub flops: Option<f64>,
    /// Write table.json, table.md and table.html into this folder, which is made if need be
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Write the JSON report to this file
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
}

impl TableArgs {
    /// Refuses modes that were asked for and that the flags of the engine rule out.
    ///
    /// # Errors
    /// A sentence that names both.
    pub fn check(&self) -> Result<(), String> {
        let modes = self.engine.compile.modes()?;
        for mode in &self.options.modes {
            let (compiled, replayed) = match mode {
                Mode::Eager | Mode::Measured => continue,
                Mode::Compiled => (true, false),
                Mode::Graph => (false, true),
                Mode::GraphCompile => (true, true),
            };
            modes.require(&format!("--modes {mode}"), compiled, replayed)?;
        }
        Ok(())
    }
}

impl TableOptions {
    /// The modes that are compared on a device: those that were asked for, or the default ones.
    pub fn modes(&self, has_graphs: bool) -> Vec<Mode> {
        match (self.modes.is_empty(), has_graphs) {
            (false, _) => self.modes.clone(),
            (true, true) => vec![Mode::Eager, Mode::GraphCompile, Mode::Measured],
            (true, false) => vec![Mode::Eager, Mode::Compiled, Mode::Measured],
        }
    }
}

fn mode(text: &str) -> Result<Mode, String> {
    text.parse()
}
