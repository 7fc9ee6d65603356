//! Memory, scheduling, device and modes: everything about the engine that is not the model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use refrain_engine::{PolicyMode, SchedulingPolicy};
use refrain_gpu::{GraphOptions, ProductsChoice};
use refrain_model::Dtype;
use refrain_program::{CacheDtype, Fp8};

use super::compilation::{CompilationConfig, size_of_flag};
use super::model::ModelArgs;
use super::trace::TraceArgs;
use super::values::{DtypeArg, MaxModelLen, at_least_one, bytes, fraction, human_readable_int};
use crate::load::{DeviceChoice, GpuSettings, LoadOptions, ModeRequest, Modes, PerformanceMode, PolicyRequest};

/// Flags of vLLM that ask for what is not there yet: known, so that they are answered better than a misspelt flag is.
#[derive(Args, Clone, Debug)]
pub struct LaterArgs {
    /// Stages of a pipeline of devices
    #[arg(long, hide = true, value_parser = only("1", "a model on several devices is not available yet"))]
    pub pipeline_parallel_size: Option<String>,
    /// Copies of the model
    #[arg(long, hide = true, value_parser = only("1", "several copies are not available yet; start several servers"))]
    pub data_parallel_size: Option<String>,
    /// Quantized weights
    #[arg(long, hide = true, value_parser = only("none", "quantized weights are not available yet"))]
    pub quantization: Option<String>,
    /// Speculative decoding
    #[arg(long, hide = true, value_parser = only("null", "speculative decoding is not available yet"))]
    pub speculative_config: Option<String>,
    /// Weights outside the device
    #[arg(long, hide = true, value_parser = only("0", "offloading is not available yet; leave the flag out"))]
    pub cpu_offload_gb: Option<String>,
}

/// Accepts the one value that means what is there, and answers every other one with `why`.
pub(super) fn only(
    allowed: &'static str,
    why: &'static str,
) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| if text == allowed { Ok(text.to_owned()) } else { Err(why.to_owned()) }
}

/// All flags that make an engine.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// Which model, and how it is read.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How memory is divided.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Who runs when.
    #[command(flatten)]
    pub scheduler: SchedulerArgs,
    /// What computes.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Compiled modes and graphs.
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Where the time of steps goes.
    #[command(flatten)]
    pub trace: TraceArgs,
    /// What is not there yet.
    #[command(flatten)]
    pub later: LaterArgs,
}

/// How memory is divided.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Part of the memory that weights, activations and caches may take; on a CPU, of the memory that this process may
    /// use [default: 0.90]
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    pub gpu_memory_utilization: Option<f64>,

    /// Bytes for KV cache and GDN states together, instead of a part of the memory (8G, 500M)
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub kv_cache_memory_bytes: Option<usize>,

    /// Number of KV blocks, instead of as many as fit
    #[arg(long, value_name = "BLOCKS", value_parser = at_least_one)]
    pub num_gpu_blocks_override: Option<usize>,

    /// Tokens in a KV block: 16
    #[arg(long, value_name = "TOKENS", value_parser = block_size)]
    pub block_size: Option<usize>,

    /// Type of the cached keys and values: auto (that of --dtype), bfloat16, float16, float32, fp8 (fp8_e4m3) or fp8_e5m2
    /// [default: auto]
    #[arg(long, value_name = "TYPE", value_parser = kv_cache_dtype)]
    pub kv_cache_dtype: Option<KvCacheDtype>,

    /// Type of the GDN states: auto or float32
    #[arg(long, value_name = "TYPE", value_parser = ssm_cache_dtype)]
    pub mamba_ssm_cache_dtype: Option<String>,

    /// Reuse the cache of prompts that begin alike; not available yet
    #[arg(long)]
    pub enable_prefix_caching: bool,

    /// Compute every prompt anew; this is always so
    #[arg(long)]
    pub no_enable_prefix_caching: bool,
}

/// Who runs when.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scheduler")]
pub struct SchedulerArgs {
    /// Most sequences that run at a time [default: 64, or as many as fit]
    #[arg(long, value_name = "SEQUENCES", value_parser = at_least_one)]
    pub max_num_seqs: Option<usize>,

    /// Most tokens in one step; longer prompts are processed in several [default: 2048]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub max_num_batched_tokens: Option<usize>,

    /// Process long prompts in several steps; this is always so
    #[arg(long)]
    pub enable_chunked_prefill: bool,

    /// Process every prompt in one step; not available
    #[arg(long)]
    pub no_enable_chunked_prefill: bool,

    /// Who goes first when not everybody can: fcfs (first come, first served) or priority (the smallest number first)
    /// [default: fcfs]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "POLICY")]
    pub scheduling_policy: Option<SchedulingPolicyArg>,

    /// Most requests that may wait; more are refused with status 429. Unlike in vLLM, those that run don't count
    /// [default: no limit]
    #[arg(long, value_name = "REQUESTS", value_parser = at_least_one)]
    pub max_num_queued_reqs: Option<usize>,

    /// While the requests whose answers have not begun have that many prompt tokens, more are refused with status 429;
    /// the new request's own don't count, so a server with nothing to do takes any [default: no limit]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub max_num_queued_tokens: Option<usize>,
}

/// What computes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// What computes: auto (the first GPU that can be used, else the CPU), cpu, cuda, cuda:N, hip, hip:N, or sim (a
    /// simulated GPU, very slow) [default: auto]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub device: Option<DeviceChoice>,

    /// Where compiled kernels are kept [default: refrain/kernels in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub kernel_cache_dir: Option<PathBuf>,

    /// A folder with packs of kernels compiled ahead; may be given several times [default: kernel-packs beside the program,
    /// and refrain/kernel-packs in the user's data folder, where they exist]
    #[arg(long, value_name = "DIR", value_parser = existing_folder)]
    pub kernel_pack_dir: Vec<PathBuf>,

    /// A folder with the libraries of CUDA or HIP, or the file of HIP's library, looked at before the system's; may be
    /// given several times
    #[arg(long, value_name = "PATH")]
    pub gpu_library_dir: Vec<PathBuf>,

    /// Architecture of an AMD or Hygon GPU, such as gfx906 [default: what its driver tells]
    #[arg(long, value_name = "ARCH")]
    pub gpu_arch: Option<String>,

    /// Whose matrix products of many rows a GPU uses: auto (cuBLASLt's or rocBLAS's where it is found and has them all,
    /// else own), own, or library (it is an error if it can't be used) [default: auto]
    #[arg(long, value_name = "WHOSE", value_parser = gpu_products)]
    pub gpu_products: Option<ProductsChoice>,

    /// Threads of the CPU backend [default: one for each core that the process may use]
    #[arg(long, value_name = "THREADS", value_parser = at_least_one)]
    pub threads: Option<usize>,

    /// Devices that share the model: 1
    #[arg(long, value_name = "DEVICES", value_parser = tensor_parallel_size)]
    pub tensor_parallel_size: Option<usize>,
}

/// Compiled modes and graphs, by vLLM's names.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Modes")]
pub struct CompileArgs {
    /// Run the ops one by one: mode NONE and cudagraph_mode NONE
    #[arg(long)]
    pub enforce_eager: bool,

    /// Compiled modes and graphs, as JSON or as -cc.KEY=VALUE. Keys: mode (NONE or VLLM_COMPILE), pass_config (a switch
    /// for each pass), compile_ranges_endpoints and compile_sizes (numbers of tokens for which programs are compiled
    /// apart), cudagraph_mode (NONE, PIECEWISE, FULL, FULL_DECODE_ONLY or FULL_AND_PIECEWISE), cudagraph_capture_sizes
    /// (numbers of sequences that decode), max_cudagraph_capture_size, prefill_capture_sizes (numbers of tokens)
    #[arg(long, value_name = "JSON", value_parser = CompilationConfig::parse)]
    pub compilation_config: Vec<CompilationConfig>,

    /// Which way each step is run: measured (the fastest on this machine for such steps), static (compiled and replayed
    /// wherever it can be, as vLLM does), or always eager, compiled, graph or eager-graph [default: measured]
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    pub policy: Option<PolicyMode>,

    /// Seconds to spend at start on measuring how long steps take in each way, for --policy measured [default: 3, or 0.5
    /// without graphs]
    #[arg(long, value_name = "SECONDS", value_parser = budget)]
    pub policy_budget: Option<f64>,

    /// What --compilation-config begins with: 0 (ops one by one), 1 (VLLM_COMPILE and PIECEWISE), 2 or 3 (VLLM_COMPILE and
    /// FULL_AND_PIECEWISE) [default: 2]
    #[arg(long, short = 'O', value_name = "LEVEL", value_parser = optimization_level)]
    pub optimization_level: Option<u8>,

    /// Numbers of sequences for which steps that decode are recorded as graphs [default: 1 2 4 8 16 24 ... up to
    /// --max-num-seqs]
    #[arg(long, value_name = "SEQUENCES", num_args = 1.., value_parser = size_of_flag)]
    pub cudagraph_capture_sizes: Vec<u32>,

    /// The largest of the default --cudagraph-capture-sizes
    #[arg(long, value_name = "SEQUENCES", value_parser = size_of_flag)]
    pub max_cudagraph_capture_size: Option<u32>,

    /// Memory of the device that graphs may take (64M); what doesn't fit is not recorded [default: 64M]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub graph_memory_budget: Option<usize>,

    /// What begins otherwise: balanced (nothing), interactivity (a graph for each number of sequences up to 32) or
    /// throughput (twice as many tokens in a step) [default: balanced]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "MODE")]
    pub performance_mode: Option<PerformanceMode>,

    /// End with an error where a mode or a graph that was asked for can't be had, instead of saying so
    #[arg(long)]
    pub strict: bool,
}

impl CompileArgs {
    /// Which way steps are run.
    fn policy(&self) -> PolicyRequest {
        PolicyRequest { mode: self.policy, budget: self.policy_budget }
    }

    /// What the flags come to together.
    ///
    /// # Errors
    /// A sentence about what contradicts what.
    pub fn modes(&self) -> Result<Modes, String> {
        self.request().resolve(self.policy())
    }

    /// What the flags ask for.
    fn request(&self) -> ModeRequest {
        let of_flags = CompilationConfig::of_flags(&self.cudagraph_capture_sizes, self.max_cudagraph_capture_size);
        ModeRequest {
            enforce_eager: self.enforce_eager,
            optimization_level: self.optimization_level,
            configs: self.compilation_config.iter().cloned().chain([of_flags]).collect(),
            performance_mode: self.performance_mode,
            graphs_as_it_is: self.policy == Some(PolicyMode::EagerGraph),
            graph_memory_budget: self.graph_memory_budget,
            strict: self.strict,
        }
    }
}

impl DeviceArgs {
    /// What GPUs are looked for and compiled with.
    pub fn gpu_settings(&self) -> GpuSettings {
        GpuSettings {
            library_dirs: self.gpu_library_dir.clone(),
            arch: self.gpu_arch.clone(),
            kernel_cache_dir: self.kernel_cache_dir.clone().or_else(default_kernel_cache_dir),
            kernel_pack_dirs: self.kernel_pack_dir.clone(),
            usual_kernel_pack_dirs: usual_kernel_pack_dirs(),
            products: self.gpu_products.unwrap_or_default(),
            compile: None,
            graphs: GraphOptions::default(),
        }
    }
}

/// `refrain/kernels` in the user's cache folder; none for a user without a home.
fn default_kernel_cache_dir() -> Option<PathBuf> {
    Some(user_folder("XDG_CACHE_HOME", ".cache")?.join("refrain/kernels"))
}

/// `kernel-packs` beside the program, and `refrain/kernel-packs` in the user's data folder.
fn usual_kernel_pack_dirs() -> Vec<PathBuf> {
    let program = std::env::current_exe().ok().and_then(|program| program.canonicalize().ok());
    let beside = program.and_then(|program| Some(program.parent()?.join("kernel-packs")));
    let data = user_folder("XDG_DATA_HOME", ".local/share").map(|data| data.join("refrain/kernel-packs"));
    beside.into_iter().chain(data).collect()
}

/// A folder of the user's by the variable that names it, or where it usually lies; none for a user without a home.
fn user_folder(variable: &str, usual: &str) -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder(variable).or_else(|| Some(folder("HOME")?.join(usual)))
}

impl EngineArgs {
    /// What the flags ask for.
    pub fn load_options(&self) -> LoadOptions {
        let Self { model, memory, scheduler, device, compile, trace, later: _ } = self;
        LoadOptions {
            model: model.name(),
            resolve: model.resolve_options(),
            hub: model.hub_access(),
            tokenizer: model.tokenizer.clone(),
            skip_tokenizer_init: model.skip_tokenizer_init,
            chat_template: model.chat_template.clone(),
            generation_config: model.generation_source(),
            override_generation_config: model.override_generation_config.clone(),
            served_model_names: model.served_model_name.clone(),
            dtype: model.dtype.and_then(DtypeArg::dtype),
            kv_cache_dtype: memory.kv_cache_dtype.and_then(|KvCacheDtype(dtype)| dtype),
            max_model_len: match model.max_model_len {
                Some(MaxModelLen::Tokens(tokens)) => Some(tokens),
                Some(MaxModelLen::Auto) | None => None,
            },
            max_num_seqs: scheduler.max_num_seqs,
            max_num_batched_tokens: scheduler.max_num_batched_tokens,
            gpu_memory_utilization: memory.gpu_memory_utilization,
            kv_cache_memory_bytes: memory.kv_cache_memory_bytes,
            num_gpu_blocks_override: memory.num_gpu_blocks_override,
            scheduling_policy: scheduler.scheduling_policy.map(SchedulingPolicy::from),
            max_num_queued_reqs: scheduler.max_num_queued_reqs,
            max_num_queued_tokens: scheduler.max_num_queued_tokens,
            policy: compile.policy(),
            modes: compile.request(),
            device: device.device.unwrap_or_default(),
            gpu: device.gpu_settings(),
            threads: device.threads,
            seed: model.seed,
            trace: trace.request(),
        }
    }

    /// The flags that were given and that mean something to a server only.
    pub fn server_only(&self) -> Vec<&'static str> {
        let (model, scheduler) = (&self.model, &self.scheduler);
        let given = [
            ("--served-model-name", !model.served_model_name.is_empty()),
            ("--scheduling-policy", scheduler.scheduling_policy.is_some()),
            ("--max-num-queued-reqs", scheduler.max_num_queued_reqs.is_some()),
            ("--max-num-queued-tokens", scheduler.max_num_queued_tokens.is_some()),
        ];
        given.into_iter().filter_map(|(flag, given)| given.then_some(flag)).collect()
    }

    /// Refuses what is known but can't be had yet, and modes that contradict each other.
    ///
    /// # Errors
    /// A sentence that says what is there instead.
    pub fn check(&self) -> Result<(), String> {
        if self.memory.enable_prefix_caching && !self.memory.no_enable_prefix_caching {
            return Err("--enable-prefix-caching: prefix caching is not available yet; leave the flag out".to_owned());
        }
        if self.scheduler.no_enable_chunked_prefill && !self.scheduler.enable_chunked_prefill {
            return Err("--no-enable-chunked-prefill: long prompts are always processed in several steps; leave the \
                        flag out, and raise --max-num-batched-tokens for larger steps"
                .to_owned());
        }
        self.compile.modes().map(|_| ())
    }
}

/// `--scheduling-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchedulingPolicyArg {
    /// First come, first served
    Fcfs,
    /// The request with the smallest priority number first
    Priority,
}

impl From<SchedulingPolicyArg> for SchedulingPolicy {
    fn from(policy: SchedulingPolicyArg) -> Self {
        match policy {
            SchedulingPolicyArg::Fcfs => SchedulingPolicy::Fcfs,
            SchedulingPolicyArg::Priority => SchedulingPolicy::Priority,
        }
    }
}

/// `--kv-cache-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheDtype(pub Option<CacheDtype>);

fn kv_cache_dtype(text: &str) -> Result<KvCacheDtype, String> {
    Ok(KvCacheDtype(match text {
        "auto" => None,
        "bfloat16" => Some(Dtype::Bf16.into()),
        "float16" | "half" => Some(Dtype::F16.into()),
        "float32" | "float" => Some(Dtype::F32.into()),
        "fp8" | "fp8_e4m3" => Some(Fp8::E4m3.into()),
        "fp8_e5m2" => Some(Fp8::E5m2.into()),
        _ => return Err("must be auto, bfloat16, float16, float32, fp8, fp8_e4m3 or fp8_e5m2".to_owned()),
    }))
}

fn block_size(text: &str) -> Result<usize, String> {
    match human_readable_int(text) {
        Ok(refrain_device::BLOCK_TOKENS) => Ok(refrain_device::BLOCK_TOKENS),
        _ => Err("KV blocks have 16 tokens; leave the flag out or give 16".to_owned()),
    }
}

fn ssm_cache_dtype(text: &str) -> Result<String, String> {
    match text {
        "auto" | "float32" | "float" => Ok(text.to_owned()),
        _ => Err("GDN states are kept in float32; leave the flag out or give float32".to_owned()),
    }
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    text.parse()
}

fn existing_folder(text: &str) -> Result<PathBuf, String> {
    let folder = PathBuf::from(text);
    if folder.is_dir() { Ok(folder) } else { Err("there is no such folder".to_owned()) }
}

fn gpu_products(text: &str) -> Result<ProductsChoice, String> {
    text.parse()
}

fn budget(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number of seconds from 0 (measure nothing) to 600".to_owned()),
    }
}

fn policy(text: &str) -> Result<PolicyMode, String> {
    text.parse()
}

fn tensor_parallel_size(text: &str) -> Result<usize, String> {
    match human_readable_int(text)? {
        1 => Ok(1),
        0 => Err("must be 1".to_owned()),
        _ => Err("a model on several devices is not available yet; leave the flag out or give 1".to_owned()),
    }
}

fn optimization_level(text: &str) -> Result<u8, String> {
    match text {
        "0" | "1" | "2" | "3" => Ok(text.as_bytes()[0] - b'0'),
        _ => Err("must be 0, 1, 2 or 3".to_owned()),
    }
}
