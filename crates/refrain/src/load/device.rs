//! Which device computes: the flag, what the machine has, and the backend for it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use refrain_cpu::{CpuBackend, CpuOptions, UsableMemory};
use refrain_cuda::{CudaOptions, CudaRuntime};
use refrain_device::{Backend, DeviceError, Footprint, PoolSizes, Runtime, StepLimits};
use refrain_gpu::{
    GpuBackend, GpuOptions, GraphOptions, KernelOptions, PrepareReport, Products, ProductsChoice, Target,
};
use refrain_hip::{HipOptions, HipRuntime};
use refrain_program::{CompileOptions, CompiledRange, Program, WeightSource};
use refrain_sim::{SimOptions, SimRuntime};

use crate::cli::Origin;

/// `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda(usize),
    /// An AMD or Hygon GPU.
    Hip(usize),
    /// The simulated GPU: slow, for trying things out where there is none.
    Sim,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let (kind, index) = text.split_once(':').map_or((text, None), |(kind, index)| (kind, Some(index)));
        let number = || match index {
            None => Ok(0),
            Some(index) => index.parse().map_err(|_| format!("{index:?} is no number of a device; write {kind}:0")),
        };
        match (kind, index) {
            ("auto", None) => Ok(DeviceChoice::Auto),
            ("cpu", None) => Ok(DeviceChoice::Cpu),
            ("sim", None) => Ok(DeviceChoice::Sim),
            ("cuda", _) => Ok(DeviceChoice::Cuda(number()?)),
            ("hip" | "rocm", _) => Ok(DeviceChoice::Hip(number()?)),
            _ => Err("must be auto, cpu, cuda, cuda:N, hip, hip:N or sim".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => write!(f, "auto"),
            DeviceChoice::Cpu => write!(f, "cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceChoice::Hip(index) => write!(f, "hip:{index}"),
            DeviceChoice::Sim => write!(f, "sim"),
        }
    }
}

/// What GPUs are looked for and compiled with.
#[derive(Clone, Debug, Default)]
pub struct GpuSettings {
    /// Folders with the libraries of CUDA or HIP, before those that the system knows; or the file of HIP's library.
    pub library_dirs: Vec<PathBuf>,
    /// Architecture of an AMD or Hygon GPU, instead of what its driver tells.
    pub arch: Option<String>,
    /// Where compiled kernels are kept; `None` keeps none.
    pub kernel_cache_dir: Option<PathBuf>,
    /// Folders with packs of kernels compiled ahead.
    pub kernel_pack_dirs: Vec<PathBuf>,
    /// Folders that may have packs, looked at where none are given.
    pub usual_kernel_pack_dirs: Vec<PathBuf>,
    /// Whose matrix products are used.
    pub products: ProductsChoice,
    /// How programs are compiled; `None` is not at all.
    pub compile: Option<CompileOptions>,
    /// What is recorded as graphs.
    pub graphs: GraphOptions,
}

impl GpuSettings {
    /// How the CUDA libraries are looked for.
    pub fn cuda(&self) -> CudaOptions {
        CudaOptions { library_dirs: self.library_dirs.clone() }
    }

    /// How the HIP libraries are looked for.
    pub fn hip(&self) -> HipOptions {
        // A file is the library itself, whatever it is called.
        let (files, library_dirs): (Vec<_>, Vec<_>) =
            self.library_dirs.iter().cloned().partition(|path| path.is_file());
        let library = files.into_iter().next();
        HipOptions { library, library_dirs, arch: self.arch.clone(), ..HipOptions::default() }
    }

    /// Where kernels are looked for.
    pub fn kernels(&self) -> KernelOptions {
        KernelOptions {
            cache_dir: self.kernel_cache_dir.clone(),
            pack_dirs: self.kernel_pack_dirs.clone(),
            usual_pack_dirs: self.usual_kernel_pack_dirs.clone(),
            ..KernelOptions::default()
        }
    }
}

/// A device that was found.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // there is one, and it does not move
pub enum Device {
    /// The CPU.
    Cpu(CpuOptions),
    /// A GPU.
    Gpu(Arc<dyn Runtime>, Box<GpuSettings>),
}

/// Opens what the flag asks for. `auto` takes a CPU only where no GPU can be used, and says why.
///
/// # Errors
/// [`DeviceError`] when the device that was named can't be used.
pub fn open(choice: DeviceChoice, cpu: CpuOptions, gpu: &GpuSettings) -> Result<(Device, Origin), DeviceError> {
    let found = |runtime: Arc<dyn Runtime>| Device::Gpu(runtime, Box::new(gpu.clone()));
    let cuda = |index| CudaRuntime::open(index, &gpu.cuda()).map(|runtime| found(runtime));
    let hip = |index| HipRuntime::open(&gpu.hip(), index).map(|runtime| found(runtime));
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu(cpu), Origin::Given)),
        DeviceChoice::Cuda(index) => Ok((cuda(index)?, Origin::Given)),
        DeviceChoice::Hip(index) => Ok((hip(index)?, Origin::Given)),
        DeviceChoice::Sim => Ok((found(SimRuntime::new(sim_options())), Origin::Given)),
        DeviceChoice::Auto => {
            // Where they can't be listed, the first says why it can't be opened, if it can't.
            let count = |devices: Result<usize, DeviceError>| devices.unwrap_or(1);
            let cudas = count(refrain_cuda::devices(&gpu.cuda()).map(|devices| devices.len()));
            let hips = count(refrain_hip::devices(&gpu.hip()).map(|devices| devices.len()));
            let all = (0..cudas).map(DeviceChoice::Cuda).chain((0..hips).map(DeviceChoice::Hip));
            Ok(match first_usable(all, |choice| open(choice, cpu, gpu)) {
                Some((device, _)) => (device, Origin::Derived("the first GPU that can be used".to_owned())),
                None => (Device::Cpu(cpu), Origin::Derived("no GPU can be used; `refrain device` says why".to_owned())),
            })
        }
    }
}

/// The first of some devices that can be opened.
fn first_usable<T>(
    choices: impl IntoIterator<Item = DeviceChoice>,
    open: impl Fn(DeviceChoice) -> Result<T, DeviceError>,
) -> Option<T> {
    choices.into_iter().find_map(|choice| open(choice).inspect_err(|reason| tracing::debug!("{choice}: {reason}")).ok())
}

/// A simulated GPU of a size that holds small models.
fn sim_options() -> SimOptions {
    SimOptions { memory_bytes: 4 << 30, ..SimOptions::default() }
}

/// A program with its weights on a device.
pub struct Ready {
    /// What executes steps.
    pub backend: Box<dyn Backend>,
    /// What the passes have done, for each range of rows; none when nothing is compiled.
    pub compiled: Vec<CompiledRange>,
    /// How the kernels became code, and whose products are used; `None` on a CPU.
    pub gpu: Option<(PrepareReport, Products)>,
}

impl Device {
    /// As the flag names it.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(_) => "cpu".to_owned(),
            Device::Gpu(runtime, _) => match runtime.info().kind {
                "sim" => "sim".to_owned(),
                kind => format!("{kind}:{}", runtime.info().index),
            },
        }
    }

    /// Sets what is recorded as graphs.
    pub(super) fn set_graphs(&mut self, graphs: GraphOptions) {
        match self {
            Device::Cpu(_) => {}
            Device::Gpu(_, settings) => settings.graphs = graphs,
        }
    }

    /// Why there are no graphs here; none where there are.
    pub fn why_no_graphs(&self) -> Option<&'static str> {
        match self {
            Device::Cpu(_) => Some("a CPU has no launches to save"),
            Device::Gpu(..) => None,
        }
    }

    /// Why programs are not compiled for ranges of sizes here; none where they are.
    pub(super) fn why_no_ranges(&self) -> Option<&'static str> {
        match self {
            Device::Cpu(_) => Some("a CPU compiles one program for steps of any size"),
            Device::Gpu(..) => None,
        }
    }

    /// Memory that the engine may plan with.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn usable(&self) -> Result<UsableMemory, DeviceError> {
        match self {
            Device::Cpu(_) => Ok(refrain_cpu::usable_memory()),
            Device::Gpu(runtime, _) => {
                Ok(UsableMemory { bytes: runtime.memory()?.total as u64, limited_by: "device memory" })
            }
        }
    }

    /// Device memory in use, as the driver reports it: all of it, whoever uses it. `None` on a CPU.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn in_use(&self) -> Result<Option<usize>, DeviceError> {
        match self {
            Device::Cpu(_) => Ok(None),
            Device::Gpu(runtime, _) => runtime.memory().map(|memory| Some(memory.total - memory.free)),
        }
    }

    /// What the backend needs for a program.
    ///
    /// # Errors
    /// [`DeviceError`] when the device can't run it, or can't say what memory it has.
    pub fn footprint(&self, program: &Program) -> Result<impl Fn(&StepLimits) -> Footprint, DeviceError> {
        let (target, held) = match self {
            Device::Cpu(_) => (None, 0),
            Device::Gpu(runtime, settings) => {
                let library = settings.products.of(&**runtime)?.are_the_library_s();
                let least = StepLimits { max_tokens: 1, max_segments: 1, max_logit_rows: 1, max_model_len: 1 };
                refrain_gpu::check_program(&**runtime, program, &least, library)?;
                let memory = runtime.memory()?;
                (Some(Target::from(runtime.info())), memory.total - memory.free)
            }
        };
        Ok(move |limits: &StepLimits| match (self, &target) {
            (Device::Cpu(options), _) => refrain_cpu::footprint(program, limits, options),
            (Device::Gpu(_, settings), Some(target)) => {
                let graphs = settings.graphs.reserved_bytes();
                let (compile, code) = (settings.compile.as_ref(), refrain_gpu::code_bytes(target));
                Footprint { held, graphs, code, ..refrain_gpu::footprint(program, compile, limits, target) }
            }
            (Device::Gpu(..), None) => unreachable!("a GPU has a target"),
        })
    }

    /// Puts the program and its weights on the device. `kernels` is told of kernels that are ready, out of how many.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        limits: StepLimits,
        pools: PoolSizes,
        kernels: &dyn Fn(usize, usize),
    ) -> Result<Ready, DeviceError> {
        match self {
            Device::Cpu(options) => {
                let backend = CpuBackend::load(program, weights, limits, pools, options)?;
                let compiled = backend.compiled().to_vec();
                Ok(Ready { backend: Box::new(backend), compiled, gpu: None })
            }
            Device::Gpu(runtime, settings) => {
                let GpuSettings { products, compile, graphs, .. } = *settings.clone();
                let options = GpuOptions { kernels: settings.kernels(), products, compile, graphs };
                let backend = GpuBackend::load(runtime.clone(), program, weights, limits, pools, &options, kernels)?;
                let compiled = backend.compiled().to_vec();
                let gpu = Some((backend.report().clone(), backend.products().clone()));
                Ok(Ready { backend: Box::new(backend), compiled, gpu })
            }
        }
    }

    /// Compute threads on a CPU; 0 on a GPU.
    pub fn threads(&self) -> usize {
        match self {
            Device::Cpu(options) => options.threads,
            Device::Gpu(..) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_printed() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3", "hip:1", "sim"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("rocm:2".parse(), Ok(DeviceChoice::Hip(2)));
        for text in ["abacus", "cpu:0", "cuda:x", "cuda:-1", "", "CUDA"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_architecture_that_is_given_is_that_of_hip() {
        let settings = GpuSettings { arch: Some("gfx906".to_owned()), ..GpuSettings::default() };
        assert_eq!(settings.hip().arch.as_deref(), Some("gfx906"));
    }

    #[test]
    fn a_gpu_that_cannot_be_used_is_passed_over_for_the_next() {
        let choices = [DeviceChoice::Cuda(0), DeviceChoice::Cuda(1), DeviceChoice::Hip(0)];
        let usable = |good: &[DeviceChoice]| {
            first_usable(choices, |choice| match good.contains(&choice) {
                true => Ok(choice),
                false => Err(DeviceError::Unavailable { device: "test", why: "it is broken".to_owned() }),
            })
        };
        assert_eq!(usable(&choices), Some(DeviceChoice::Cuda(0)));
        assert_eq!(usable(&choices[1..]), Some(DeviceChoice::Cuda(1)));
        assert_eq!(usable(&choices[2..]), Some(DeviceChoice::Hip(0)));
        assert_eq!(usable(&[]), None);
    }

    #[test]
    fn a_model_without_kernels_is_refused_before_its_memory_is_planned() {
        let json = r#"{"architectures": ["Qwen3_5ForCausalLM"], "num_hidden_layers": 4, "head_dim": 320}"#;
        let config = refrain_model::ModelConfig::from_json(json).unwrap();
        let cpu = CpuOptions { threads: 1, precision: refrain_cpu::Precision::F32, isa: None, passes: None };
        let device = |choice| open(choice, cpu, &GpuSettings::default()).unwrap().0;
        let program = |device: &Device| {
            let types = super::super::choose(None, None, refrain_model::Dtype::Bf16, device);
            Program::build(&config, &types).unwrap()
        };
        let sim = device(DeviceChoice::Sim);
        let error = sim.footprint(&program(&sim)).err().expect("no kernel takes heads of 320").to_string();
        assert!(
            error.starts_with("sim can't run this model: layer 3 (") && error.contains("head_dim is 320"),
            "{error}"
        );
        let cpu = device(DeviceChoice::Cpu);
        assert!(cpu.footprint(&program(&cpu)).is_ok());
    }
}
