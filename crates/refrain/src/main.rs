//! The `refrain` program.
#![forbid(unsafe_code)]

mod commands;
mod logging;

use std::process::ExitCode;
use std::time::Instant;

use refrain::cli;

fn main() -> ExitCode {
    let process_start = Instant::now();
    let (cli, origins) = match cli::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    logging::start(cli.log_level());
    for warning in cli::unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        tracing::warn!("{warning}");
    }
    match commands::run(cli, &origins, process_start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", commands::message(&error));
            ExitCode::FAILURE
        }
    }
}
