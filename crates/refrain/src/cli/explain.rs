//! Flags of `refrain explain`.

use std::num::NonZeroUsize;

use clap::Args;

use super::engine::EngineArgs;
use super::values::{count, rate};

/// Flags of `refrain explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// What to explain.
    #[command(flatten)]
    pub options: ExplainOptions,
    /// The engine that is explained.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What to explain.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Explanation")]
pub struct ExplainOptions {
    /// Tokens of the prompt whose prefill is estimated, and of the context in which a token is decoded
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = tokens)]
    pub tokens: NonZeroUsize,
    /// Memory bandwidth of the machine in bytes per second (40G) [default: measured]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub bandwidth: Option<f64>,
    /// Arithmetic of the machine in floating-point operations per second (3T) [default: an
    /// estimate from the processor's instructions and clock]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub flops: Option<f64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn tokens(text: &str) -> Result<NonZeroUsize, String> {
    NonZeroUsize::new(count(text)?).ok_or_else(|| "must be at least 1".to_owned())
}
