//! From a model's name and some settings to a running engine.

mod device;
mod graphs;
mod modes;
mod passes;
mod plan;
mod policy;
mod progress;
mod settings;
mod texts;
mod timings;
mod types;

pub use device::{Device, DeviceChoice, GpuSettings, open};
pub use modes::{Asked, MODE_SETTINGS, ModeRequest, Modes, PerformanceMode};
pub use passes::Passes;
pub use plan::{DEFAULT_MAX_NUM_BATCHED_TOKENS, PlanInputs, Planned, plan};
pub use policy::PolicyRequest;
pub use settings::{Setting, Settings, human_bytes};
pub use types::{choose, describe_kv_cache, flag_name, precision};

use std::path::PathBuf;
use std::time::Instant;

use indicatif::ProgressBar;
use refrain_cpu::{CpuOptions, UsableMemory};
use refrain_device::{DeviceError, GraphReport};
use refrain_engine::{Engine, EngineConfig, EngineError, EngineHandle, MemoryError, MemoryPlan, SchedulingPolicy};
use refrain_gpu::ProductsChoice;
use refrain_model::{Dtype, HubAccess, Model, ModelError, ModelSource, ResolveOptions};
use refrain_program::{BuildOptions, CacheDtype, Program, ProgramError};
use refrain_server::TextEngine;
use serde_json::{Map, Value, json};

use crate::cli::Origin;
use crate::trace::{TraceRequest, trace};
use device::Ready;
use policy::Subject;

/// What to load and how. `None` is what nobody said; the default value loads the embedded model with the defaults.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Folder, `owner/name`, or the embedded model.
    pub model: Option<String>,
    /// Where models are looked for.
    pub resolve: ResolveOptions,
    /// Where downloads come from.
    pub hub: HubAccess,
    /// Another tokenizer: a folder or a tokenizer.json.
    pub tokenizer: Option<PathBuf>,
    /// No tokenizer at all.
    pub skip_tokenizer_init: bool,
    /// Another chat template.
    pub chat_template: Option<PathBuf>,
    /// Where sampling defaults come from.
    pub generation_config: Option<GenerationSource>,
    /// Sampling defaults that replace those.
    pub override_generation_config: Option<Map<String, Value>>,
    /// Names under which the model is served; empty is its own.
    pub served_model_names: Vec<String>,
    /// Type of weights and arithmetic; `None` is the checkpoint's.
    pub dtype: Option<Dtype>,
    /// Type of the KV cache; `None` is that of `dtype`.
    pub kv_cache_dtype: Option<CacheDtype>,
    /// Most tokens of a sequence; `None` is what the model has or what fits.
    pub max_model_len: Option<usize>,
    /// Most sequences that run.
    pub max_num_seqs: Option<usize>,
    /// Most tokens in a step.
    pub max_num_batched_tokens: Option<usize>,
    /// Part of the usable memory that may be taken.
    pub gpu_memory_utilization: Option<f64>,
    /// Bytes for the state pools instead.
    pub kv_cache_memory_bytes: Option<usize>,
    /// Number of KV blocks instead.
    pub num_gpu_blocks_override: Option<usize>,
    /// Who goes first.
    pub scheduling_policy: Option<SchedulingPolicy>,
    /// Most requests that may wait.
    pub max_num_queued_reqs: Option<usize>,
    /// Most prompt tokens that may wait.
    pub max_num_queued_tokens: Option<usize>,
    /// Which way steps are run.
    pub policy: PolicyRequest,
    /// Compiled modes and graphs.
    pub modes: ModeRequest,
    /// What computes.
    pub device: DeviceChoice,
    /// What GPUs are looked for and compiled with.
    pub gpu: GpuSettings,
    /// Compute threads of the CPU backend.
    pub threads: Option<usize>,
    /// Seed of requests without one.
    pub seed: Option<u64>,
    /// Which steps are traced, and where to.
    pub trace: Option<TraceRequest>,
}

/// Where sampling defaults come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerationSource {
    /// The model's generation_config.json.
    Model,
    /// Nowhere: vLLM's neutral defaults.
    Neutral,
    /// The generation_config.json of a folder.
    Folder(PathBuf),
}

/// `--gpu-memory-utilization` when nobody says otherwise.
pub const DEFAULT_UTILIZATION: f64 = 0.90;

/// A running engine and what it was made from.
pub struct Loaded {
    /// The model; its weights have been copied into the backend.
    pub model: Model,
    /// The program that runs.
    pub program: Program,
    /// The engine.
    pub engine: EngineHandle,
    /// The engine with text at both ends.
    pub text: TextEngine,
    /// Names under which the model is served, at least one.
    pub served_model_names: Vec<String>,
    /// What was decided.
    pub report: Report,
    /// What computes.
    pub device: Device,
    _closing: Closing,
}

/// Gives the device back before the process ends.
struct Closing(EngineHandle);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.stop_and_join();
    }
}

/// What was decided while loading, and how long it took.
#[derive(Clone, Debug)]
pub struct Report {
    /// Every setting with its value and origin.
    pub settings: Settings,
    /// Where the memory goes.
    pub memory: MemoryPlan,
    /// Memory that this process may use.
    pub usable: UsableMemory,
    /// Device memory in use once all was loaded and recorded, by the driver's word; `None` on a CPU.
    pub in_use: Option<usize>,
    /// What the passes have done.
    pub passes: Passes,
    /// What was recorded as graphs; `None` where there is no such thing.
    pub graphs: Option<GraphReport>,
    /// Compute threads of the CPU backend; 0 on a GPU.
    pub threads: usize,
    /// Seconds to read the model's files, without the weights.
    pub open_seconds: f64,
    /// Seconds to read and pack the weights and to start, kernels and graphs among it.
    pub weights_seconds: f64,
    /// Of that, to compile or load kernels; 0 on a CPU.
    pub kernels_seconds: f64,
    /// Seconds to measure, or to check, what steps cost.
    pub policy_seconds: f64,
}

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model can't be found or read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No program can be made for it.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A setting has a value that can't be had.
    #[error("{flag}: {why}")]
    Setting {
        /// The flag.
        flag: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A file that a flag names can't be read.
    #[error("{}: cannot read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that a flag names can't be written.
    #[error("{}: cannot write: {source}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The memory is not enough.
    #[error("{error}{}", what_fits(fits))]
    Memory {
        /// For what.
        error: MemoryError,
        /// Flags with the largest values with which it would be, each by itself.
        fits: Vec<String>,
    },
    /// The backend can't be loaded.
    #[error("{}{}", .0, what_helps(.0))]
    Device(#[from] DeviceError),
    /// The engine can't be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

fn what_fits(flags: &[String]) -> String {
    if flags.is_empty() { String::new() } else { format!("; it would be enough with {}", flags.join(", or with ")) }
}

/// What to do about an error of a device that doesn't say so itself.
fn what_helps(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::OutOfMemory { what: "pinned host memory", .. } => {
            "; give this process more memory that may be locked (ulimit -l, the container's limit), or run it with \
             --device cpu"
        }
        DeviceError::OutOfMemory { .. } => {
            "; end what else holds memory of the device, or ask for less (--gpu-memory-utilization, --max-model-len, \
             --max-num-seqs), or use another --device"
        }
        DeviceError::Compile { .. } => {
            "\nLet another compiler do it (--gpu-library-dir names the folder of another CUDA or HIP), or use a pack of \
             kernels that were compiled ahead (--kernel-pack-dir)"
        }
        _ => "",
    }
}

/// A model whose weights have not been read, the program for it, and the plan of its memory.
pub struct Prepared {
    /// The model.
    pub model: Model,
    /// The program.
    pub program: Program,
    /// The plan.
    pub planned: Planned,
    /// The device.
    pub device: Device,
    /// Every setting so far.
    pub settings: Settings,
    /// Compiled modes and graphs.
    pub modes: Modes,
    /// Memory that this process may use.
    pub usable: UsableMemory,
    open_seconds: f64,
}

/// Finds and opens a model and plans its memory, without reading weights.
///
/// # Errors
/// [`LoadError`].
pub fn prepare(options: &LoadOptions) -> Result<Prepared, LoadError> {
    let start = Instant::now();
    let mut settings = Settings::default();
    let source = ModelSource::resolve_from(options.model.as_deref(), &options.resolve, &options.hub)?;
    refuse_hub_settings(&source, &options.resolve)?;
    let mut model = Model::open(&source)?;
    let origin = if options.model.is_some() { Origin::Given } else { Origin::Default };
    settings.push("model", &model.name, origin);
    if let ModelSource::Hub { commit, .. } = &model.source {
        let origin = if options.resolve.revision.is_some() { Origin::Given } else { Origin::Default };
        settings.push("revision", format!("commit {commit}"), origin);
    }
    if !options.served_model_names.is_empty() {
        settings.push("served_model_name", options.served_model_names.join(" "), Origin::Given);
    }
    texts::replace(&mut model, options, &mut settings)?;

    let stored = model.checkpoint.widest_matrix_dtype();
    let threads = options.threads.unwrap_or_else(refrain_cpu::default_threads);
    let setting = |why| LoadError::Setting { flag: "--compilation-config", why };
    let modes = options.modes.resolve(options.policy).map_err(setting)?;
    let cpu = CpuOptions {
        threads,
        precision: precision(options.dtype.unwrap_or(stored)),
        isa: None,
        passes: modes.compile_options().map(|compile| compile.passes),
    };
    let gpu = GpuSettings { compile: modes.compile_options(), graphs: modes.graph_options(), ..options.gpu.clone() };
    let (mut device, device_origin) = open(options.device, cpu, &gpu)?;
    modes.check_device(&device)?;
    let types = choose(options.dtype, options.kv_cache_dtype, stored, &device);
    match options.dtype {
        Some(dtype) => settings.push("dtype", describe_types(dtype, &types, stored), Origin::Given),
        None => settings.push("dtype", describe_types(stored, &types, stored), Origin::File("*.safetensors")),
    }
    let kv_origin = match options.kv_cache_dtype {
        Some(_) => Origin::Given,
        None => Origin::Derived("dtype".to_owned()),
    };
    let program = Program::build(&model.config, &types)?;
    settings.push("kv_cache_dtype", describe_kv_cache(types.kv_cache, &program), kv_origin);

    let usable = device.usable()?;
    let inputs = PlanInputs {
        model_max_len: model.config.max_position_embeddings,
        max_model_len: options.max_model_len,
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: options.max_num_batched_tokens,
        throughput: options.modes.performance_mode == Some(PerformanceMode::Throughput),
        usable_bytes: usize::try_from(usable.bytes).unwrap_or(usize::MAX),
        utilization: options.gpu_memory_utilization.unwrap_or(DEFAULT_UTILIZATION),
        kv_cache_memory_bytes: options.kv_cache_memory_bytes,
        num_blocks_override: options.num_gpu_blocks_override,
    };
    let planned = plan(&inputs, device.footprint(&program)?)?;
    describe_plan(&mut settings, options, &planned);
    settings.push("device", device.name(), device_origin);
    modes.check_ranges(&planned.limits)?;
    let graphs = modes.graph_options_for(&planned.limits)?;
    modes.describe(&mut settings, &device, &planned.limits, &graphs);
    device.set_graphs(graphs);
    match &device {
        Device::Cpu(cpu) => {
            let derived = Origin::Derived("cores".to_owned());
            settings.push("threads", cpu.threads, if options.threads.is_some() { Origin::Given } else { derived });
        }
        Device::Gpu(_, gpu) => {
            if options.threads.is_some() {
                let why = format!("belongs to the CPU backend, but the device is {}; leave it out", device.name());
                return Err(LoadError::Setting { flag: "--threads", why });
            }
            if let Some(arch) = &gpu.arch {
                settings.push("gpu_arch", arch, Origin::Given);
            }
            let cache = gpu.kernel_cache_dir.as_ref().map_or("none".to_owned(), |dir| dir.display().to_string());
            settings.push("kernel_cache_dir", cache, Origin::Given);
            let (packs, origin) = if gpu.kernel_pack_dirs.is_empty() {
                (&gpu.usual_kernel_pack_dirs, Origin::Default)
            } else {
                (&gpu.kernel_pack_dirs, Origin::Given)
            };
            let packs: Vec<String> = packs.iter().map(|folder| folder.display().to_string()).collect();
            settings.push("kernel_pack_dir", packs.join(" "), origin);
        }
    }
    let open_seconds = start.elapsed().as_secs_f64();
    Ok(Prepared { model, program, planned, device, settings, modes, usable, open_seconds })
}

/// Refuses settings of a Hugging Face repository for a model that comes from elsewhere.
fn refuse_hub_settings(source: &ModelSource, resolve: &ResolveOptions) -> Result<(), LoadError> {
    let what = match source {
        ModelSource::Hub { .. } => return Ok(()),
        ModelSource::Folder(_) => "a folder",
        ModelSource::Embedded => "the embedded one",
    };
    let given = [("--revision", resolve.revision.is_some()), ("--download-dir", resolve.download_dir.is_some())];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => {
            let why = format!("belongs to a Hugging Face repository, but the model is {what}; leave it out");
            Err(LoadError::Setting { flag, why })
        }
    }
}

/// Loads a model and starts an engine on it. `progress` shows the kernels that are ready, and then the
/// bytes of weights that have been read.
///
/// # Errors
/// [`LoadError`].
pub fn load(options: &LoadOptions, progress: &ProgressBar) -> Result<Loaded, LoadError> {
    load_prepared(prepare(options)?, options, progress)
}

/// The rest of [`load`], after [`prepare`] with the same options.
///
/// # Errors
/// [`LoadError`].
pub fn load_prepared(prepared: Prepared, options: &LoadOptions, progress: &ProgressBar) -> Result<Loaded, LoadError> {
    let Prepared { model, program, planned, device, mut settings, modes, usable, open_seconds } = prepared;
    let start = Instant::now();
    let bytes = model.checkpoint.total_bytes();
    progress::show(progress, (0, 0), bytes);
    let weights = progress::Counted::new(&model.checkpoint, progress);
    let show_kernels = |ready, all| progress::show(progress, (ready, all), bytes);
    let Ready { mut backend, compiled, gpu } =
        device.load(&program, &weights, planned.limits, planned.memory.pools, &show_kernels)?;
    let kernels_seconds = gpu.as_ref().map_or(0.0, |(report, _)| report.elapsed.as_secs_f64());
    if let Some((report, products)) = gpu {
        settings.push("kernels", &report, Origin::Derived("model, modes and device".to_owned()));
        let origin = match options.gpu.products {
            ProductsChoice::Auto => Origin::Derived("what was found".to_owned()),
            ProductsChoice::Own | ProductsChoice::Library => Origin::Given,
        };
        let idle = modes.check_products(&products)?.map_or(String::new(), |idle| format!("; {idle}"));
        settings.push("gpu_products", format!("{products}{idle}"), origin);
    }
    let in_use = device.in_use()?;
    if let Some(in_use) = in_use.filter(|in_use| *in_use > planned.memory.total_bytes) {
        let (in_use, total) = (human_bytes(in_use), human_bytes(planned.memory.total_bytes));
        tracing::warn!(
            "the driver reports {in_use} in use, {total} were planned: another process came, or device code takes more than was thought"
        );
    }
    if let Some(report) = backend.graphs() {
        modes.check_report(report)?;
        graphs::describe(&mut settings, report);
    }
    let config = EngineConfig {
        max_num_seqs: planned.limits.max_segments,
        max_num_batched_tokens: planned.limits.max_tokens,
        max_model_len: planned.limits.max_model_len,
        pools: planned.memory.pools,
        scheduling_policy: options.scheduling_policy.unwrap_or_default(),
        max_num_queued_reqs: options.max_num_queued_reqs,
        max_num_queued_tokens: options.max_num_queued_tokens,
        eos_token_ids: model.eos_token_ids(),
        vocab_size: program.vocab_size,
        seed: options.seed.unwrap_or(0),
    };
    let graphs = backend.graphs().cloned();
    let folder = options.gpu.kernel_cache_dir.as_ref().map(|folder| folder.join("timings"));
    let compile = modes.compile_options();
    let subject = Subject {
        device: &device,
        program: &program,
        compile: compile.as_ref(),
        limits: planned.limits,
        pools: planned.memory.pools,
        folder: folder.as_deref(),
    };
    let policy::Started { policy, effective, seconds } =
        options.policy.start(&mut *backend, &subject, options.modes.strict, progress)?;
    progress.finish_and_clear();
    settings.push("policy", effective, if options.policy.mode.is_some() { Origin::Given } else { Origin::Default });
    let engine = Engine::start_with(backend, config, policy)?;
    if let Some(request) = &options.trace {
        let unusable = |error| LoadError::Write { file: request.file.clone(), source: error };
        engine.trace(trace(request).map_err(unusable)?);
        settings.push("trace_file", request.file.display(), Origin::Given);
        settings.push("trace_steps", format!("{} to {}", request.steps.start, request.steps.end - 1), Origin::Given);
    }
    let defaults = (&model.generation).into();
    let text = TextEngine::new(engine.clone(), model.tokenizer.clone(), model.template.clone(), defaults);
    let served_model_names = if options.served_model_names.is_empty() {
        vec![model.name.clone()]
    } else {
        options.served_model_names.clone()
    };
    let report = Report {
        settings,
        passes: Passes(compiled),
        graphs,
        memory: planned.memory,
        usable,
        in_use,
        threads: device.threads(),
        open_seconds,
        weights_seconds: start.elapsed().as_secs_f64() - seconds,
        kernels_seconds,
        policy_seconds: seconds,
    };
    let closing = Closing(engine.clone());
    Ok(Loaded { model, program, engine, text, served_model_names, report, device, _closing: closing })
}

fn describe_types(dtype: Dtype, types: &BuildOptions, stored: Dtype) -> String {
    let name = flag_name(dtype);
    match (types.weights == dtype, types.weights == stored) {
        (true, true) => name.to_owned(),
        (true, false) => format!("{name} (weights converted from {})", flag_name(stored)),
        (false, _) => format!("{name} (weights stay {})", flag_name(types.weights)),
    }
}

fn describe_plan(settings: &mut Settings, options: &LoadOptions, planned: &Planned) {
    settings.push("max_model_len", planned.limits.max_model_len, planned.max_model_len_origin.clone());
    settings.push("max_num_seqs", planned.limits.max_segments, planned.max_num_seqs_origin.clone());
    settings.push("max_num_batched_tokens", planned.limits.max_tokens, planned.max_num_batched_tokens_origin.clone());
    match options.kv_cache_memory_bytes {
        Some(bytes) => settings.push("kv_cache_memory_bytes", human_bytes(bytes), Origin::Given),
        None => settings.push_or("gpu_memory_utilization", options.gpu_memory_utilization, DEFAULT_UTILIZATION),
    }
    let blocks = format!("{} KV blocks of {} tokens", planned.memory.pools.blocks, refrain_device::BLOCK_TOKENS);
    match options.num_gpu_blocks_override {
        Some(_) => settings.push("num_gpu_blocks_override", blocks, Origin::Given),
        None => settings.push("block_size", blocks, Origin::Derived("memory plan".to_owned())),
    }
    let policy = match options.scheduling_policy.unwrap_or_default() {
        SchedulingPolicy::Fcfs => "fcfs",
        SchedulingPolicy::Priority => "priority",
    };
    settings.push_or("scheduling_policy", options.scheduling_policy.map(|_| policy), policy);
    settings.push_or("max_num_queued_reqs", options.max_num_queued_reqs, "no limit");
    settings.push_or("max_num_queued_tokens", options.max_num_queued_tokens, "no limit");
    settings.push_or("seed", options.seed, 0);
}

impl Report {
    /// Seconds from the start of loading to a running engine.
    pub fn load_seconds(&self) -> f64 {
        self.open_seconds + self.weights_seconds + self.policy_seconds
    }

    /// The parts of loading with their seconds, in order.
    pub fn phases(&self) -> [(&'static str, f64); 5] {
        let graphs = self.graphs.as_ref().map_or(0.0, |graphs| graphs.seconds);
        [
            ("model files opened", self.open_seconds),
            ("kernels", self.kernels_seconds),
            ("weights, and all else", self.weights_seconds - self.kernels_seconds - graphs),
            ("graphs recorded", graphs),
            ("ways to run steps measured", self.policy_seconds),
        ]
    }

    /// What came of the graphs; null where there is no such thing.
    pub fn graphs_json(&self) -> Value {
        self.graphs.as_ref().map_or(Value::Null, graphs::to_json)
    }

    /// The memory plan: each use in bytes, the sum, and what could be used.
    pub fn memory_json(&self) -> Value {
        let uses = self.memory.lines.iter().map(|line| json!({ "what": line.what, "bytes": line.bytes }));
        json!({
            "uses": uses.collect::<Vec<_>>(),
            "total_bytes": self.memory.total_bytes,
            "usable_bytes": self.usable.bytes,
            "limited_by": self.usable.limited_by,
            "in_use_bytes": self.in_use,
            "notes": self.memory.notes,
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "Settings")?;
        write!(f, "{}", self.settings)?;
        writeln!(f, "Memory")?;
        let total = ("total".to_owned(), self.memory.total_bytes);
        let in_use = self.in_use.map(|bytes| ("in use, as the driver reports".to_owned(), bytes));
        let lines = self.memory.lines.iter().map(|line| (line.what.clone(), line.bytes));
        let lines = lines.chain([total]).chain(in_use);
        let lines: Vec<_> = lines.collect();
        let width = lines.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        for (what, bytes) in &lines {
            writeln!(f, "  {what:<width$}  {:>9}", human_bytes(*bytes))?;
        }
        let usable = human_bytes(usize::try_from(self.usable.bytes).unwrap_or(usize::MAX));
        writeln!(f, "  {:<width$}  {usable:>9}  ({})", "usable", self.usable.limited_by)?;
        for note in &self.memory.notes {
            writeln!(f, "  note: {note}")?;
        }
        write!(f, "{}", self.passes)?;
        if let Some(report) = &self.graphs {
            write!(f, "{}", graphs::Refused(&report.refused))?;
        }
        writeln!(f, "Seconds")?;
        let phases = self.phases().into_iter().filter(|(_, seconds)| *seconds > 0.0);
        phases
            .chain([("total", self.load_seconds())])
            .try_for_each(|(what, seconds)| writeln!(f, "  {what:<26}  {seconds:>6.2}"))
    }
}
