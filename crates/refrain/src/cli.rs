//! The command line: flags and environment variables as they are given. What they come to is [`crate::load`]'s.
//!
//! This is the one place where environment variables are read. Each flag `--some-flag` can also be given as
//! `REFRAIN_SOME_FLAG`, which means exactly the flag; the flag goes before the variable.

pub mod bench;
pub mod chat;
pub mod compilation;
pub mod device;
pub mod engine;
pub mod explain;
mod json;
mod later;
pub mod model;
mod origins;
pub mod server;
pub mod trace;
pub mod values;

pub use origins::{Origin, Origins};

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::builder::{BoolishValueParser, OsStr, Resettable};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use engine::EngineArgs;

/// An LLM inference engine and OpenAI-compatible server for hybrid models.
#[derive(Clone, Debug, Parser)]
#[command(name = "refrain", version, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "\
Examples:
  refrain serve                          the embedded model at http://127.0.0.1:8000
  refrain chat --prompt 'Tell me a story about a fox.'
  refrain serve Qwen/Qwen3.5-0.8B --max-model-len 32K --dtype bfloat16

Every flag can be given as an environment variable: --max-model-len is REFRAIN_MAX_MODEL_LEN.")]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,

    /// How much is logged.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve a model over the OpenAI API
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Talk to a model in the terminal
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(Box<chat::ChatArgs>),
    /// Measure speed
    #[command(subcommand, after_help = BENCH_EXAMPLES)]
    Bench(Box<bench::BenchCommand>),
    /// Show what a model is made of and what it can cost at best
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(Box<explain::ExplainArgs>),
    /// List the devices with what was measured on them, and what can't be used and why
    #[command(after_help = DEVICE_EXAMPLES)]
    Device(device::DeviceCommandArgs),
    /// Print the completions of a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// Shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

const SERVE_EXAMPLES: &str = "\
Examples:
  refrain serve
  refrain serve --model ./Qwen3.5-4B --dtype bfloat16 --max-model-len 32768 --max-num-seqs 1
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Tell me a story.\"}]}'";

const CHAT_EXAMPLES: &str = "\
Examples:
  refrain chat
  refrain chat --prompt 'Tell me a story about a fox.' --max-tokens 200
  echo 'What is the capital of France?' | refrain chat --temperature 0
  cat story.txt | refrain chat --prompt 'What is this story about?'

In a conversation, /reset begins anew, /system TEXT changes the instruction, /exit or Ctrl-D leaves, Ctrl-C stops the
answer.";

const BENCH_EXAMPLES: &str = "\
Example:
  refrain bench latency --batch-size 1 --num-iters 5";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  refrain explain
  refrain explain ./Qwen3.5-4B --tokens 8192 --bandwidth 40G --flops 2T";

const DEVICE_EXAMPLES: &str = "\
Examples:
  refrain device
  refrain device --device cuda:0 --check --json";

const COMPLETIONS_EXAMPLES: &str = "\
Example:
  refrain completions bash > ~/.local/share/bash-completion/completions/refrain";

/// Flags of `refrain serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The server.
    #[command(flatten)]
    pub server: server::ServerArgs,
}

/// How much is logged.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// What to log on standard error: off, error, warn, info, debug or trace [default: info; warn for chat and explain]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "LEVEL", env = "REFRAIN_LOG", global = true)]
    pub log_level: Option<LogLevel>,

    /// Log warnings and errors only, and don't print the settings
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LogLevel {
    /// Nothing
    Off,
    /// What failed
    Error,
    /// What may be wrong, too
    Warn,
    /// What happens, too
    Info,
    /// Details, too
    Debug,
    /// Everything
    Trace,
}

impl Cli {
    /// How much is logged.
    pub fn log_level(&self) -> LogLevel {
        if self.log.quiet {
            return LogLevel::Warn;
        }
        self.log.log_level.unwrap_or(match self.command {
            Command::Serve(_) | Command::Bench(_) => LogLevel::Info,
            Command::Chat(_) | Command::Explain(_) | Command::Device(_) | Command::Completions { .. } => LogLevel::Warn,
        })
    }

    fn engine_args(&self) -> Option<&EngineArgs> {
        match &self.command {
            Command::Serve(args) => Some(&args.engine),
            Command::Chat(args) => Some(&args.engine),
            Command::Explain(args) => Some(&args.engine),
            Command::Bench(command) => command.engine(),
            Command::Device(_) | Command::Completions { .. } => None,
        }
    }
}

/// The command line of the program, with a variable for every flag.
pub fn command() -> clap::Command {
    with_variables(with_numbers(Cli::command()))
}

/// A negative number is a flag's value, so that the flag says what is wrong with it.
fn with_numbers(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let numbers = arg.get_action().takes_values() && !arg.is_positional();
            arg.allow_negative_numbers(numbers)
        })
        .mut_subcommands(with_numbers)
}

fn with_variables(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let Some(variable) = variable(&arg) else { return arg };
            // A variable that is set to nothing is as good as not set.
            let empty = std::env::var_os(&variable).is_some_and(|value| value.is_empty());
            let variable = if empty { Resettable::Reset } else { Resettable::Value(OsStr::from(variable)) };
            let arg = arg.env(variable).hide_env(true);
            if matches!(arg.get_action(), ArgAction::SetTrue) {
                arg.value_parser(BoolishValueParser::new())
            } else {
                arg
            }
        })
        .mut_subcommands(with_variables)
}

/// The variable of a flag: the one it names, or else its own name.
fn variable(arg: &clap::Arg) -> Option<String> {
    let long = arg.get_long().filter(|long| !["help", "version"].contains(long))?;
    let named = arg.get_env().and_then(|name| name.to_str()).map(str::to_owned);
    Some(named.unwrap_or_else(|| format!("REFRAIN_{}", long.replace('-', "_").to_uppercase())))
}

/// Reads a command line, program name first, and the environment.
///
/// # Errors
/// What is wrong with it, ready to be printed; asking for help or the version is such an error too.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Cli, Origins), clap::Error> {
    let mut command = command();
    let matches = match command.try_get_matches_from_mut(arguments.into_iter().map(long_form)) {
        Ok(matches) => matches,
        Err(error) => {
            return Err(match later::explain(&error) {
                Some(message) => command.error(ErrorKind::InvalidValue, message),
                None => name_variable(error, |variable| std::env::var(variable).ok()),
            });
        }
    };
    let cli = Cli::from_arg_matches(&matches)?;
    let origins = Origins::new(&command, &matches);
    if let Some(engine) = cli.engine_args() {
        let refuse = |message| command.clone().error(ErrorKind::InvalidValue, message);
        engine.check().map_err(refuse)?;
        if let Command::Bench(command) = &cli.command
            && let bench::BenchCommand::Table(table) = &**command
        {
            table.check().map_err(refuse)?;
        }
        if origins.given_twice(&engine.model) {
            let message = "the model is named twice, by --model and by itself; name it once".to_owned();
            return Err(refuse(message));
        }
    }
    Ok((cli, origins))
}

/// An impossible value is told as the flag's, even when nobody gave the flag: says so if a variable has it.
fn name_variable(mut error: clap::Error, value_of: impl Fn(&str) -> Option<String>) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let (flag, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    let mut variables = BTreeMap::new();
    collect_variables(&Cli::command(), &mut variables);
    let is_flag = |name: &&String| variables[*name].iter().any(|long| flag.split(' ').next() == Some(long));
    let variable = variables.keys().filter(is_flag).find(|name| value_of(name).as_ref() == Some(&value)).cloned();
    if let Some(variable) = variable {
        let tip = format!("the value is that of the variable {variable}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// vLLM has a few flags of one dash and several letters, which are no flags to clap: `-tp 1`, `-cc.mode=NONE`.
fn long_form(argument: OsString) -> OsString {
    const SHORT: [(&str, &str); 5] = [
        ("-tp", "--tensor-parallel-size"),
        ("-pp", "--pipeline-parallel-size"),
        ("-dp", "--data-parallel-size"),
        ("-cc", "--compilation-config"),
        ("--compilation-config", "--compilation-config"),
    ];
    let Some(text) = argument.to_str() else { return argument };
    for (short, long) in SHORT {
        match text.strip_prefix(short) {
            Some("") => return long.into(),
            Some(value) if value.starts_with('=') => return format!("{long}{value}").into(),
            Some(key) if key.starts_with('.') && long == "--compilation-config" => {
                return format!("{long}={key}").into();
            }
            _ => {}
        }
    }
    argument
}

/// A sentence about each variable that looks like ours and means nothing, such as `REFRAIN_MAX_MODEL_LENGTH`.
pub fn unknown_variables(variables: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let mut known = BTreeMap::new();
    collect_variables(&Cli::command(), &mut known);
    let mut unknown: Vec<String> = variables
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("REFRAIN_") && !known.contains_key(name))
        .collect();
    unknown.sort();
    unknown
        .into_iter()
        .map(|name| {
            let likeness = |candidate: &&String| (strsim::jaro_winkler(candidate, &name) * 1e6) as u64;
            match known.keys().max_by_key(likeness) {
                Some(nearest) => format!("the variable {name} means nothing; did you mean {nearest}?"),
                None => format!("the variable {name} means nothing"),
            }
        })
        .collect()
}

/// Every variable with the flags, `--max-model-len`, that it stands for.
fn collect_variables(command: &clap::Command, variables: &mut BTreeMap<String, BTreeSet<String>>) {
    for arg in command.get_arguments() {
        if let (Some(variable), Some(long)) = (variable(arg), arg.get_long()) {
            variables.entry(variable).or_default().insert(format!("--{long}"));
        }
    }
    command.get_subcommands().for_each(|command| collect_variables(command, variables));
}

#[cfg(test)]
mod tests;
