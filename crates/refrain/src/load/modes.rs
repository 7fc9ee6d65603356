//! Which modes run: what the flags about compiled modes and graphs come to together, and on a device.

use std::fmt::Display;

use refrain_device::{GraphMode, GraphReport, StepLimits};
use refrain_engine::PolicyMode;
use refrain_gpu::{DEFAULT_GRAPH_MEMORY_BUDGET, GraphOptions, Products, default_decode_sizes, default_prefill_sizes};
use refrain_program::{CompileOptions, FEW_ROWS, PassConfig};

use super::{Device, LoadError, PolicyRequest, Settings, human_bytes};
use crate::cli::Origin;
use crate::cli::compilation::{CompilationConfig, CompilationMode, Sizes};

#[cfg(test)]
mod tests;

/// The settings that say which modes were asked for and which run.
pub const MODE_SETTINGS: [&str; 13] = [
    "enforce_eager",
    "mode",
    "pass_config",
    "compile_ranges_endpoints",
    "compile_sizes",
    "cudagraph_mode",
    "performance_mode",
    "strict",
    "cudagraph_capture_sizes",
    "max_cudagraph_capture_size",
    "prefill_capture_sizes",
    "graph_memory_budget",
    "policy",
];

/// Those that say something about graphs only.
const GRAPH_SETTINGS: [&str; 4] =
    ["cudagraph_capture_sizes", "max_cudagraph_capture_size", "prefill_capture_sizes", "graph_memory_budget"];

/// What the flags ask for. The default is what holds when nobody says anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModeRequest {
    /// `--enforce-eager`.
    pub enforce_eager: bool,
    /// `--optimization-level`, 0 to 3.
    pub optimization_level: Option<u8>,
    /// Each `--compilation-config`.
    pub configs: Vec<CompilationConfig>,
    /// `--performance-mode`.
    pub performance_mode: Option<PerformanceMode>,
    /// Whether graphs are recorded of the program as it is beside those of the compiled one: for `--policy eager-graph`,
    /// and where `bench table` compares both.
    pub graphs_as_it_is: bool,
    /// `--graph-memory-budget`, bytes.
    pub graph_memory_budget: Option<usize>,
    /// `--strict`: what can't be had is an error.
    pub strict: bool,
}

/// `--performance-mode`, with vLLM's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PerformanceMode {
    /// The defaults
    #[default]
    Balanced,
    /// A graph for each number of sequences up to 32, so that few sequences are never padded
    Interactivity,
    /// Twice as many tokens in a step
    Throughput,
}

/// A mode and who wanted it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked<T> {
    /// The mode.
    pub mode: T,
    /// Where it comes from.
    pub origin: Origin,
}

/// What was asked for, with defaults and without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Modes {
    /// Whether the program is rewritten.
    pub compile: Asked<CompilationMode>,
    /// By which passes.
    pub passes: PassConfig,
    /// Which steps are replayed from graphs.
    pub graphs: Asked<GraphMode>,
    config: CompilationConfig,
    request: ModeRequest,
}

impl ModeRequest {
    /// Everything together, and with the rule for the ways to run steps.
    ///
    /// # Errors
    /// A sentence about a key that was given twice, or about two flags that contradict each other.
    pub fn resolve(&self, policy: PolicyRequest) -> Result<Modes, String> {
        let config = CompilationConfig::merge(&self.configs).map_err(|why| format!("--compilation-config: {why}"))?;
        self.refuse_contradictions(&config)?;
        let derived = |flag: &str| Origin::Derived(flag.to_owned());
        let (compile, graphs, origin) = match (self.enforce_eager, self.optimization_level) {
            (true, _) => (CompilationMode::None, GraphMode::None, derived("--enforce-eager")),
            (false, Some(0)) => (CompilationMode::None, GraphMode::None, derived("-O0")),
            (false, Some(1)) => (CompilationMode::VllmCompile, GraphMode::Piecewise, derived("-O1")),
            (false, Some(level)) => {
                (CompilationMode::VllmCompile, GraphMode::FullAndPiecewise, derived(&format!("-O{level}")))
            }
            (false, None) => (CompilationMode::VllmCompile, GraphMode::FullAndPiecewise, Origin::Default),
        };
        let mut passes = PassConfig::default();
        for (pass, on) in &config.passes {
            assert!(passes.set(pass, *on), "there is no pass {pass}, and its key was accepted");
        }
        let mut modes = Modes {
            compile: asked(config.mode, compile, &origin),
            passes,
            graphs: asked(config.cudagraph_mode, graphs, &origin),
            config,
            request: self.clone(),
        };
        modes.check_policy(policy)?;
        // Nothing is compiled, recorded or reserved for ways that a fixed rule never takes.
        if let Some(rule @ (PolicyMode::Eager | PolicyMode::Compiled)) = policy.mode {
            modes.graphs.rule_out("cudagraph_mode", GraphMode::None, rule)?;
            if rule == PolicyMode::Eager {
                modes.compile.rule_out("mode", CompilationMode::None, rule)?;
            }
        }
        modes.refuse_idle_keys()?;
        Ok(modes)
    }

    fn refuse_contradictions(&self, config: &CompilationConfig) -> Result<(), String> {
        if self.enforce_eager {
            let mode = config.mode.filter(|mode| *mode != CompilationMode::None).map(|mode| format!("mode is {mode}"));
            let graphs = config.cudagraph_mode.filter(|mode| *mode != GraphMode::None);
            let graphs = graphs.map(|mode| format!("cudagraph_mode is {mode}"));
            let level = self.optimization_level.filter(|level| *level > 0).map(|level| format!("there is -O{level}"));
            if let Some(other) = mode.or(graphs).or(level) {
                return Err(format!("--enforce-eager runs the ops one by one, but {other}; leave one of them out"));
            }
        }
        if let (Some(sizes), Some(most)) = (&config.cudagraph_capture_sizes, config.max_cudagraph_capture_size) {
            let largest = sizes.sizes.last().copied().unwrap_or(0);
            if largest != most {
                return Err(format!(
                    "max_cudagraph_capture_size is {most}, but the largest of \
                     cudagraph_capture_sizes is {largest}; give {largest}, or leave one of them out"
                ));
            }
        }
        Ok(())
    }
}

impl<T: Display + PartialEq> Asked<T> {
    /// Replaces a mode that a fixed rule has no use for, unless somebody wanted it.
    fn rule_out(&mut self, key: &str, none: T, rule: PolicyMode) -> Result<(), String> {
        if self.mode == none {
            return Ok(());
        }
        if self.origin != Origin::Default {
            let flag = self.flag(key);
            return Err(format!("--policy {rule} has no use for {flag}; leave one of them out"));
        }
        *self = Asked { mode: none, origin: Origin::Derived(format!("--policy {rule}")) };
        Ok(())
    }

    /// What set the mode, for people: the flag that it comes from, or its key.
    fn flag(&self, key: &str) -> String {
        match &self.origin {
            Origin::Derived(flag) => flag.clone(),
            _ => format!("-cc.{key}={}", self.mode),
        }
    }
}

/// A setting for what another one has ruled out.
fn contradiction(what: &str, other: &str) -> Result<(), String> {
    Err(format!("{what}, but with {other} there are none; leave one of them out"))
}

/// A setting that another one leaves without effect.
fn no_effect(what: &str, why: &str) -> String {
    format!("{what} has no effect, because {why}; leave one of them out")
}

/// What was given for a mode, or else its default.
fn asked<T>(given: Option<T>, default: T, origin: &Origin) -> Asked<T> {
    match given {
        Some(mode) => Asked { mode, origin: Origin::Given },
        None => Asked { mode: default, origin: origin.clone() },
    }
}

impl Modes {
    /// Refuses keys that the modes leave without effect.
    fn refuse_idle_keys(&self) -> Result<(), String> {
        let (graphs, compile, config) = (self.graphs.mode, self.compile.mode, &self.config);
        let no_prefill = [GraphMode::None, GraphMode::FullDecodeOnly].contains(&graphs);
        let on = config.passes.iter().find(|(_, on)| **on).map(|(pass, _)| *pass);
        let uncompiled = compile == CompilationMode::None;
        let idle = [
            ("cudagraph_capture_sizes", graphs == GraphMode::None && config.cudagraph_capture_sizes.is_some()),
            ("max_cudagraph_capture_size", graphs == GraphMode::None && config.max_cudagraph_capture_size.is_some()),
            ("prefill_capture_sizes", no_prefill && config.prefill_capture_sizes.is_some()),
            ("compile_ranges_endpoints", uncompiled && config.compile_ranges_endpoints.is_some()),
            ("compile_sizes", uncompiled && config.compile_sizes.is_some()),
            (on.unwrap_or("pass_config"), uncompiled && on.is_some()),
        ];
        if let Some((key, _)) = idle.into_iter().find(|(_, idle)| *idle) {
            let (name, mode, origin) = match key.contains("capture") {
                true => ("cudagraph_mode", graphs.to_string(), &self.graphs.origin),
                false => ("mode", compile.to_string(), &self.compile.origin),
            };
            return Err(match origin {
                Origin::Derived(flag) => no_effect(key, &format!("{name} is {mode} with {flag}")),
                _ => format!("{key} has no effect, because {name} is {mode}; leave it out, or give another {name}"),
            });
        }
        if graphs == GraphMode::None && self.request.graph_memory_budget.is_some() {
            let flag = self.graphs.flag("cudagraph_mode");
            return Err(no_effect("--graph-memory-budget", &format!("cudagraph_mode is NONE with {flag}")));
        }
        if self.request.performance_mode == Some(PerformanceMode::Interactivity) {
            let what = "--performance-mode interactivity records graphs";
            if graphs == GraphMode::None {
                return contradiction(what, &self.graphs.flag("cudagraph_mode"));
            }
            if config.cudagraph_capture_sizes.is_some() {
                let sizes = "cudagraph_capture_sizes says of which sizes";
                return Err(format!("{what} of sizes of its own, but {sizes}; leave one of them out"));
            }
        }
        Ok(())
    }

    /// Refuses a rule for the ways to run steps where the modes leave none of its ways, and seconds for measuring where
    /// nothing is to be measured.
    fn check_policy(&self, policy: PolicyRequest) -> Result<(), String> {
        let compiled = self.compile.mode != CompilationMode::None;
        let replayed = self.graphs.mode != GraphMode::None;
        let (mode, graphs) = (self.compile.flag("mode"), self.graphs.flag("cudagraph_mode"));
        let both = if mode == graphs { mode } else { format!("{mode} and {graphs}") };
        if let Some(seconds) = policy.budget {
            let budget = format!("--policy-budget {seconds}");
            if let Some(rule) = policy.mode.filter(|rule| *rule != PolicyMode::Measured) {
                return Err(no_effect(&budget, &format!("nothing is measured for --policy {rule}")));
            }
            if !compiled && !replayed {
                return Err(no_effect(&budget, &format!("steps can be run in one way only with {both}")));
            }
        }
        match policy.mode {
            Some(PolicyMode::Compiled) => self.require("--policy compiled", true, false),
            Some(rule @ (PolicyMode::Graph | PolicyMode::EagerGraph)) => {
                self.require(&format!("--policy {rule}"), false, true)
            }
            Some(PolicyMode::Static) if !compiled && !replayed => {
                contradiction("--policy static takes compiled steps and graphs", &both)
            }
            _ => Ok(()),
        }
    }

    /// Refuses what needs compiled steps, or graphs, where there are none.
    ///
    /// # Errors
    /// A sentence that names both.
    pub fn require(&self, what: &str, compiled: bool, replayed: bool) -> Result<(), String> {
        if compiled && self.compile.mode == CompilationMode::None {
            return contradiction(&format!("{what} runs compiled steps"), &self.compile.flag("mode"));
        }
        if replayed && self.graphs.mode == GraphMode::None {
            return contradiction(&format!("{what} replays graphs"), &self.graphs.flag("cudagraph_mode"));
        }
        Ok(())
    }

    /// Refuses what can't be had on a device where that was asked for, and may not be left out.
    pub(super) fn check_device(&self, device: &Device) -> Result<(), LoadError> {
        let refused = |(setting, asked): (&'static str, String)| {
            self.instead(setting, device)
                .map(|(_, why)| format!("{setting} {asked} can't be had: not applicable: {why}"))
        };
        match self.given().into_iter().find_map(refused) {
            Some(why) if self.request.strict => Err(LoadError::Setting { flag: "--strict", why }),
            _ => Ok(()),
        }
    }

    /// What was asked for that not every device has, in the order of the table.
    fn given(&self) -> Vec<(&'static str, String)> {
        let (config, request) = (&self.config, &self.request);
        let sizes = |sizes: &Option<Sizes>| sizes.as_ref().map(|sizes| list(&sizes.sizes, Some(sizes)));
        let mode = (self.graphs.origin != Origin::Default).then(|| self.graphs.mode.to_string());
        let settings = [
            ("compile_ranges_endpoints", sizes(&config.compile_ranges_endpoints)),
            ("compile_sizes", sizes(&config.compile_sizes)),
            ("cudagraph_mode", mode),
            ("performance_mode", request.performance_mode.map(|mode| format!("{mode:?}").to_lowercase())),
            ("cudagraph_capture_sizes", sizes(&config.cudagraph_capture_sizes)),
            ("max_cudagraph_capture_size", config.max_cudagraph_capture_size.map(|size| size.to_string())),
            ("prefill_capture_sizes", sizes(&config.prefill_capture_sizes)),
            ("graph_memory_budget", request.graph_memory_budget.map(human_bytes)),
        ];
        settings.into_iter().filter_map(|(setting, asked)| Some((setting, asked?))).collect()
    }

    /// What holds instead of a setting that a device can't have, and why; `None` where it can.
    fn instead(&self, setting: &str, device: &Device) -> Option<(&'static str, &'static str)> {
        let no_graphs = device.why_no_graphs().filter(|_| self.graphs.mode != GraphMode::None);
        let graphs = |instead| no_graphs.map(|why| (instead, why));
        match setting {
            "compile_ranges_endpoints" | "compile_sizes" => device.why_no_ranges().map(|why| ("none", why)),
            "cudagraph_mode" => graphs("NONE"),
            "performance_mode" => {
                let interactive = self.request.performance_mode == Some(PerformanceMode::Interactivity);
                graphs("balanced").filter(|_| interactive)
            }
            _ if GRAPH_SETTINGS.contains(&setting) => graphs("none"),
            _ => None,
        }
    }

    /// How the program is compiled; `None` is not at all.
    pub fn compile_options(&self) -> Option<CompileOptions> {
        let given = |sizes: &Option<Sizes>| sizes.as_ref().map_or(Vec::new(), |sizes| sizes.sizes.clone());
        let mut options = CompileOptions { passes: self.passes, ..CompileOptions::default() };
        options.endpoints.extend(given(&self.config.compile_ranges_endpoints));
        // A range of one size ends with it, and the one before ends before it.
        options.endpoints.extend(given(&self.config.compile_sizes).into_iter().flat_map(|size| [size - 1, size]));
        options.endpoints.retain(|endpoint| *endpoint > 0);
        options.endpoints.sort_unstable();
        options.endpoints.dedup();
        (self.compile.mode == CompilationMode::VllmCompile).then_some(options)
    }

    /// Refuses ranges and sizes that no step reaches.
    pub(super) fn check_ranges(&self, limits: &StepLimits) -> Result<(), LoadError> {
        let most = limits.max_tokens as u32;
        for (key, sizes) in [
            ("compile_ranges_endpoints", &self.config.compile_ranges_endpoints),
            ("compile_sizes", &self.config.compile_sizes),
        ] {
            let largest = sizes.as_ref().and_then(|sizes| sizes.sizes.last().copied()).unwrap_or(0);
            if largest > most {
                let why = format!(
                    "{key}: no step has {largest} tokens; at most {most} (--max-num-batched-tokens), which is the nearest"
                );
                return Err(LoadError::Setting { flag: "--compilation-config", why });
            }
        }
        Ok(())
    }

    /// What is recorded, whatever the limits of steps are.
    pub fn graph_options(&self) -> GraphOptions {
        let sizes = |sizes: &Option<Sizes>| sizes.as_ref().map(|sizes| sizes.sizes.clone());
        GraphOptions {
            mode: self.graphs.mode,
            decode_sizes: sizes(&self.config.cudagraph_capture_sizes),
            prefill_sizes: sizes(&self.config.prefill_capture_sizes),
            as_it_is_too: self.request.graphs_as_it_is,
            budget_bytes: self.request.graph_memory_budget.unwrap_or(DEFAULT_GRAPH_MEMORY_BUDGET),
            strict: self.request.strict,
        }
    }

    /// What is recorded for steps within some limits.
    ///
    /// # Errors
    /// [`LoadError`] about a size that no step has, with the nearest.
    pub fn graph_options_for(&self, limits: &StepLimits) -> Result<GraphOptions, LoadError> {
        let largest = limits.max_segments.min(limits.max_tokens) as u32;
        if let Some(most) = self.config.max_cudagraph_capture_size.filter(|most| *most > largest) {
            let why = format!("{most} is out of range; 1 to {largest} (--max-num-seqs), the nearest is {largest}");
            return Err(LoadError::Setting { flag: "--max-cudagraph-capture-size", why });
        }
        let mut options = self.graph_options();
        let dense = (self.request.performance_mode == Some(PerformanceMode::Interactivity)).then_some(1..=32);
        if options.decode_sizes.is_none() && (dense.is_some() || self.config.max_cudagraph_capture_size.is_some()) {
            let defaults = default_decode_sizes(limits);
            let largest = defaults.last().copied().unwrap_or(1);
            let most = self.config.max_cudagraph_capture_size.unwrap_or(largest);
            let dense = dense.into_iter().flatten().filter(|size| *size < largest);
            let mut sizes: Vec<u32> =
                defaults.into_iter().chain(dense).filter(|size| *size < most).chain([most]).collect();
            sizes.sort_unstable();
            sizes.dedup();
            options.decode_sizes = Some(sizes);
        }
        if options.mode != GraphMode::None {
            options.sizes(limits)?;
        }
        Ok(options)
    }

    /// Refuses a budget in which nothing found room. What the driver refused no budget would have helped.
    pub(super) fn check_report(&self, report: &GraphReport) -> Result<(), LoadError> {
        let nothing = report.recorded.is_empty() && report.refused.iter().all(|refused| refused.over_budget);
        match (self.request.graph_memory_budget, nothing, report.refused.last()) {
            (Some(bytes), true, Some(smallest)) => {
                let why = format!(
                    "{} hold no graph, not even {}: {}; or cudagraph_mode NONE",
                    human_bytes(bytes),
                    smallest.cell,
                    smallest.why
                );
                Err(LoadError::Setting { flag: "--graph-memory-budget", why })
            }
            _ => Ok(()),
        }
    }

    /// Which ranges that were asked for have no products of their own, as the vendor's library chooses them by itself;
    /// `None` where all have.
    ///
    /// # Errors
    /// The same, where nothing may be left out.
    pub(super) fn check_products(&self, products: &Products) -> Result<Option<String>, LoadError> {
        let (Products::Library(library), Some(sizes)) = (products, &self.config.compile_ranges_endpoints) else {
            return Ok(None);
        };
        let ends = self.compile_options().map_or(Vec::new(), |options| options.endpoints);
        let single = |end: &u32| ends.contains(&(end - 1));
        let idle: Vec<u32> = sizes.sizes.iter().copied().filter(|end| *end > FEW_ROWS as u32 && !single(end)).collect();
        if idle.is_empty() || self.compile.mode == CompilationMode::None {
            return Ok(None);
        }
        let why = format!(
            "compile_ranges_endpoints {}: products of more than {FEW_ROWS} rows are {library}'s, which chooses for each \
             number of rows by itself; compile_sizes has it measure some, --gpu-products own has kernels for each range",
            ranges(&idle)
        );
        if self.request.strict { Err(LoadError::Setting { flag: "--strict", why }) } else { Ok(Some(why)) }
    }

    /// The settings: what was asked for and, where that is something else, what runs and why.
    pub(super) fn describe(
        &self,
        settings: &mut Settings,
        device: &Device,
        limits: &StepLimits,
        graphs: &GraphOptions,
    ) {
        let request = &self.request;
        if request.enforce_eager {
            settings.push("enforce_eager", true, Origin::Given);
        }
        settings.push("mode", self.compile.mode, self.compile.origin.clone());
        let switched: Vec<String> =
            self.config.passes.iter().map(|(pass, on)| format!("{pass}={}", if *on { "on" } else { "off" })).collect();
        if !switched.is_empty() {
            settings.push("pass_config", switched.join(" "), Origin::Given);
        }
        let shown = |setting, asked: String| match self.instead(setting, device) {
            Some((instead, why)) => format!("{asked} -> {instead}: not applicable: {why}"),
            None => asked,
        };
        let given = |settings: &mut Settings, names: &[&str]| {
            for (setting, asked) in self.given().into_iter().filter(|(setting, _)| names.contains(setting)) {
                settings.push(setting, shown(setting, asked), Origin::Given);
            }
        };
        given(settings, &["compile_ranges_endpoints", "compile_sizes"]);
        let mode = shown("cudagraph_mode", self.graphs.mode.to_string());
        settings.push("cudagraph_mode", mode, self.graphs.origin.clone());
        given(settings, &["performance_mode"]);
        if request.strict {
            settings.push("strict", true, Origin::Given);
        }
        if device.why_no_graphs().is_some() {
            given(settings, &GRAPH_SETTINGS);
        }
        if graphs.mode == GraphMode::None || device.why_no_graphs().is_some() {
            return;
        }
        let from = |given: bool, flag: &str| match given {
            true => Origin::Given,
            false => Origin::Derived(flag.to_owned()),
        };
        let decode = graphs.decode_sizes.clone().unwrap_or_else(|| default_decode_sizes(limits));
        let sizes = self.config.cudagraph_capture_sizes.as_ref();
        let flag = match (self.config.max_cudagraph_capture_size, request.performance_mode) {
            (Some(_), _) => "max-cudagraph-capture-size",
            (None, Some(PerformanceMode::Interactivity)) => "performance-mode",
            _ => "max-num-seqs",
        };
        settings.push("cudagraph_capture_sizes", list(&decode, sizes), from(sizes.is_some(), flag));
        given(settings, &["max_cudagraph_capture_size"]);
        if graphs.mode != GraphMode::FullDecodeOnly {
            let prefill = graphs.prefill_sizes.clone().unwrap_or_else(|| default_prefill_sizes(limits));
            let given = self.config.prefill_capture_sizes.is_some();
            let text = list(&prefill, self.config.prefill_capture_sizes.as_ref());
            settings.push("prefill_capture_sizes", text, from(given, "max-num-batched-tokens"));
        }
        settings.push_or(
            "graph_memory_budget",
            request.graph_memory_budget.map(human_bytes),
            human_bytes(graphs.budget_bytes),
        );
    }
}

/// Sizes, and how they differ from what was given.
fn list(sizes: &[u32], given: Option<&Sizes>) -> String {
    let note = given.and_then(|given| given.note.as_ref()).map_or(String::new(), |note| format!(" ({note})"));
    format!("{}{note}", ranges(sizes))
}

/// Numbers in few words: runs of equal steps as `8-256 by 8`.
fn ranges(sizes: &[u32]) -> String {
    let mut words = Vec::new();
    let mut rest = sizes;
    while let [first, tail @ ..] = rest {
        let step = tail.first().map_or(0, |next| next - first);
        let run = 1 + tail.iter().zip(1..).take_while(|(size, place)| **size == first + place * step).count();
        if run > 3 {
            words.push(format!("{first}-{} by {step}", rest[run - 1]));
            rest = &rest[run..];
        } else {
            words.push(first.to_string());
            rest = tail;
        }
    }
    words.join(" ")
}
