//! Where the value of a flag came from.

use std::collections::HashMap;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::compilation;
use super::model::ModelArgs;

/// Where a setting's value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This environment variable.
    Environment(String),
    /// What the caller of [`crate::load::load`] gave; the command line says which of the above it was.
    Given,
    /// This file of the model.
    File(&'static str),
    /// What holds when nobody says anything.
    Default,
    /// Computed, for this reason.
    Derived(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Environment(variable) => write!(f, "environment {variable}"),
            Origin::Given => f.write_str("given"),
            Origin::File(name) => write!(f, "file {name}"),
            Origin::Default => f.write_str("default"),
            Origin::Derived(reason) => write!(f, "derived: {reason}"),
        }
    }
}

/// Where each flag of a parsed command line came from.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    explicit: HashMap<String, Origin>,
}

impl Origins {
    pub(super) fn new(command: &clap::Command, matches: &ArgMatches) -> Self {
        let mut origins = Self::default();
        let (mut command, mut matches) = (command, matches);
        loop {
            for arg in command.get_arguments() {
                let name = arg.get_id().as_str();
                // Global flags are only known to the commands that clap copied them to.
                let Ok(true) = matches.try_contains_id(name) else { continue };
                let origin = match matches.value_source(name) {
                    Some(ValueSource::CommandLine) => Origin::Flag,
                    Some(ValueSource::EnvVariable) => {
                        Origin::Environment(arg.get_env().unwrap_or_default().to_string_lossy().into_owned())
                    }
                    _ => continue,
                };
                origins.explicit.insert(name.to_owned(), origin);
            }
            let Some((name, inner)) = matches.subcommand() else { return origins };
            let Some(found) = command.find_subcommand(name) else { return origins };
            (command, matches) = (found, inner);
        }
    }

    /// Where the flag came from that has this name with underscores; [`Origin::Default`] if it wasn't given.
    pub fn of(&self, name: &str) -> Origin {
        self.explicit.get(name).cloned().unwrap_or(Origin::Default)
    }

    /// The origin of a setting: [`Origin::Given`] is replaced by where the flag of this name came from.
    pub fn resolve(&self, name: &str, origin: Origin) -> Origin {
        match origin {
            Origin::Given if name == "model" && self.of("model_positional") == Origin::Flag => Origin::Flag,
            // A key of the JSON came with it.
            Origin::Given if self.of(name) == Origin::Default && compilation::is_key(name) => {
                self.of("compilation_config")
            }
            Origin::Given => self.of(name),
            origin => origin,
        }
    }

    /// Whether the command line names the model both as a flag and as itself. A variable gives way to either.
    pub(super) fn given_twice(&self, model: &ModelArgs) -> bool {
        self.of("model") == Origin::Flag && model.model_positional.is_some()
    }
}
