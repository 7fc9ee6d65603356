//! What each command does.

mod bench;
mod ceilings;
mod chat;
mod device;
mod explain;
mod serve;

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::CommandFactory;
use indicatif::{ProgressBar, ProgressStyle};
use refrain::cli::engine::EngineArgs;
use refrain::cli::{Cli, Command, LogLevel, Origin, Origins};
use refrain::load::{LoadOptions, Loaded, Prepared, load_prepared, prepare};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What every command is given.
pub struct Invocation<'a> {
    /// Where flags came from.
    pub origins: &'a Origins,
    /// Whether to print the settings.
    pub verbose: bool,
    /// When the process started.
    pub process_start: Instant,
}

/// Does what the command line says.
pub fn run(cli: Cli, origins: &Origins, process_start: Instant) -> anyhow::Result<()> {
    let invocation = Invocation { origins, verbose: cli.log_level() >= LogLevel::Info, process_start };
    let engine = match &cli.command {
        Command::Chat(args) => Some(&args.engine),
        Command::Explain(args) => Some(&args.engine),
        Command::Bench(command) => command.engine(),
        Command::Serve(_) | Command::Device(_) | Command::Completions { .. } => None,
    };
    for flag in engine.map(EngineArgs::server_only).unwrap_or_default() {
        tracing::warn!("{flag} has no effect here: it means something to `refrain serve` only");
    }
    if let Command::Explain(args) = &cli.command
        && args.engine.trace.trace_file.is_some()
    {
        tracing::warn!("--trace-file has no effect here: nothing is run");
    }
    match cli.command {
        Command::Serve(args) => serve::run(&args, &invocation),
        Command::Chat(args) => chat::run(&args, &invocation),
        Command::Bench(command) => bench::run(&command, &invocation),
        Command::Explain(args) => explain::run(&args, &invocation),
        Command::Device(args) => device::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "refrain", &mut script);
            print(&script)
        }
    }
}

/// An error with its causes in one line. Many errors already tell their cause; those are not told twice.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes to standard output. A reader that has gone away (`refrain explain | head`) is no error.
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}

/// Loads a model with a progress bar, and prints the settings. `sequences` is how many are run unless a flag says
/// otherwise, with the reason.
fn load_engine(
    args: &EngineArgs,
    sequences: Option<(usize, &str)>,
    invocation: &Invocation<'_>,
) -> anyhow::Result<Loaded> {
    let (loaded, ()) = load_engine_after(args.load_options(), sequences, invocation, |_| Ok(()))?;
    Ok(loaded)
}

/// The same with something that is done once the device is known and its memory still free.
fn load_engine_after<T>(
    mut options: LoadOptions,
    sequences: Option<(usize, &str)>,
    invocation: &Invocation<'_>,
    first: impl FnOnce(&Prepared) -> anyhow::Result<T>,
) -> anyhow::Result<(Loaded, T)> {
    let sequences = sequences.filter(|_| options.max_num_seqs.is_none());
    if let Some((count, _)) = sequences {
        options.max_num_seqs = Some(count);
    }
    let prepared = prepare(&options)?;
    let done = first(&prepared)?;
    let mut loaded = load_prepared(prepared, &options, &ProgressBar::new(0))?;
    let settings = &mut loaded.report.settings;
    settings.resolve(invocation.origins);
    if let Some((_, reason)) = sequences {
        settings.set_origin("max_num_seqs", Origin::Derived(reason.to_owned()));
    }
    if invocation.verbose {
        eprint!("{}", loaded.report);
    } else {
        loaded.report.memory.notes.iter().for_each(|note| tracing::warn!("{note}"));
    }
    Ok((loaded, done))
}

/// A bar over iterations or requests, on a terminal.
fn progress_bar(what: &str) -> anyhow::Result<ProgressBar> {
    let template = format!("{what} {{bar:40}} {{pos}}/{{len}} {{elapsed}} (about {{eta}} left)");
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(&template)?);
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    Ok(bar)
}

/// A runtime for HTTP and timers: the model's own threads do the work.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("can't start the runtime")
}

/// Ctrl-C and SIGTERM, from the moment this exists: until then they kill the process.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Receives them from now on. Needs a runtime.
    fn new() -> anyhow::Result<Self> {
        let receive = |kind| signal(kind).context("can't receive signals");
        Ok(Self { interrupt: receive(SignalKind::interrupt())?, terminate: receive(SignalKind::terminate())? })
    }

    /// Waits for the next of either.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn a_cause_is_told_once() {
        let inner = std::io::Error::other("no such file");
        let outer = anyhow::Error::new(inner).context("a.json: no such file");
        assert_eq!(super::message(&outer), "a.json: no such file");
        let outer = Err::<(), _>(std::io::Error::other("port in use")).context("can't listen").unwrap_err();
        assert_eq!(super::message(&outer), "can't listen: port in use");
    }
}
