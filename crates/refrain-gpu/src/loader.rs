//! How kernels become code: taken from packs that were compiled before, from the disk cache, or compiled now, each
//! once.

mod cache;
mod entry;
mod images;
mod pack;
mod parallel;
mod private;
mod unit;

pub use cache::{Cached, DEFAULT_CACHE_BYTES, KernelCache};
pub use images::compile;
pub use pack::{Pack, PackError, write_pack};
pub use parallel::in_parallel;
pub use private::{CacheError, PrivateFolder};
pub use unit::{CompileUnit, Digest, image_key, source_files, source_key};

use crate::kernel::Kernel;
use images::{Images, Origin};
use refrain_device::{DeviceError, FunctionId, KernelResources, KernelSource, ModuleId, Runtime};
use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A kernel on the device.
#[derive(Clone, Copy, Debug)]
pub struct LoadedKernel {
    /// What is launched.
    pub function: FunctionId,
    /// What it needs.
    pub resources: KernelResources,
}

/// Where kernels are looked for before they are compiled.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Folder of the disk cache, the user's own; none: nothing is kept.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes that it may take.
    pub cache_bytes: u64,
    /// Folders with packs (`sm_90a.kernels`, ...), the first one first. That none of them has one for the device is noted.
    pub pack_dirs: Vec<PathBuf>,
    /// Folders that may have packs, looked at where none are given.
    pub usual_pack_dirs: Vec<PathBuf>,
    /// Threads that compile, at least 1.
    pub jobs: usize,
}

impl Default for KernelOptions {
    /// No cache, no packs, a thread for each processor.
    fn default() -> KernelOptions {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        KernelOptions {
            cache_dir: None,
            cache_bytes: DEFAULT_CACHE_BYTES,
            pack_dirs: Vec::new(),
            usual_pack_dirs: Vec::new(),
            jobs,
        }
    }
}

/// What [`Kernels::prepare`] did. Kernels that share their code count once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrepareReport {
    /// Kernels that were loaded before.
    pub loaded_before: usize,
    /// Kernels from packs.
    pub from_packs: usize,
    /// Kernels from the disk cache.
    pub from_cache: usize,
    /// Kernels that were compiled.
    pub compiled: usize,
    /// Time that it took.
    pub elapsed: Duration,
    /// What the user should know: packs and entries of the cache that could not be used, and why.
    pub notes: Vec<String>,
}

impl PrepareReport {
    /// Both, where more kernels were wanted afterwards.
    pub(crate) fn and(self, more: PrepareReport) -> PrepareReport {
        PrepareReport {
            loaded_before: self.loaded_before,
            from_packs: self.from_packs + more.from_packs,
            from_cache: self.from_cache + more.from_cache,
            compiled: self.compiled + more.compiled,
            elapsed: self.elapsed + more.elapsed,
            notes: self.notes.into_iter().chain(more.notes).collect(),
        }
    }
}

impl Display for PrepareReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.loaded_before, "loaded before"),
            (self.from_packs, "from packs"),
            (self.from_cache, "from the cache"),
            (self.compiled, "compiled"),
        ];
        write!(f, "{} in {:.1} s", parts.iter().map(|(count, _)| count).sum::<usize>(), self.elapsed.as_secs_f64())?;
        let said = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let said: Vec<String> = said.collect();
        if said.is_empty() { Ok(()) } else { write!(f, " ({})", said.join(", ")) }
    }
}

/// The code of a unit on the device, once somebody has asked for it.
#[derive(Default)]
struct LoadedUnit {
    module: Option<ModuleId>,
    /// By entry, with the dynamic shared memory that it may have.
    functions: HashMap<&'static str, (u32, LoadedKernel)>,
}

/// The kernels of one device. What is loaded stays loaded as long as the runtime lives.
pub struct Kernels {
    runtime: Arc<dyn Runtime>,
    images: Images,
    jobs: usize,
    /// Each behind a lock of its own, so that a kernel that two threads want is compiled once and others beside it.
    units: Mutex<HashMap<CompileUnit, Arc<Mutex<LoadedUnit>>>>,
    ready: Mutex<HashMap<Kernel, LoadedKernel>>,
}

impl Kernels {
    /// None yet, and neither cache nor packs.
    pub fn new(runtime: Arc<dyn Runtime>) -> Kernels {
        Kernels::with(runtime, KernelOptions::default())
    }

    /// None yet. A pack or a cache that can't be used is noted in the report of [`Kernels::prepare`].
    pub fn with(runtime: Arc<dyn Runtime>, options: KernelOptions) -> Kernels {
        let images = Images::new(&runtime.info().arch, &options);
        Kernels { images, jobs: options.jobs, units: Mutex::default(), ready: Mutex::default(), runtime }
    }

    /// The kernel, looked for, compiled and loaded if it is new.
    ///
    /// # Errors
    /// [`DeviceError::Compile`] when it does not compile, [`DeviceError::NoCode`] when there is neither a pack with it
    /// nor a compiler, others when it can't be loaded.
    pub fn get(&self, kernel: &Kernel) -> Result<LoadedKernel, DeviceError> {
        if let Some(found) = self.ready.lock().expect("no panic while it is held").get(kernel) {
            return Ok(*found);
        }
        let unit = CompileUnit::from(kernel);
        let slot = self.slot(&unit);
        let mut loaded = lock(&slot);
        let (module, _) = self.module(&unit, &mut loaded)?;
        // A function has one limit for all that launch it, so it only ever grows.
        let found = match loaded.functions.get(kernel.entry) {
            Some(&(shared_bytes, found)) if shared_bytes >= kernel.shared_bytes => found,
            _ => {
                let function = self.runtime.function(module, kernel.entry, kernel.shared_bytes)?;
                let found = LoadedKernel { function, resources: self.runtime.resources(function)? };
                loaded.functions.insert(kernel.entry, (kernel.shared_bytes, found));
                found
            }
        };
        self.ready.lock().expect("no panic while it is held").insert(kernel.clone(), found);
        Ok(found)
    }

    /// Makes all of these ready, in several threads, so that later calls of [`Kernels::get`] only look them up.
    /// `progress(done, total)` counts what has to be loaded.
    ///
    /// # Errors
    /// As [`Kernels::get`], for the first kernel that failed.
    pub fn prepare(&self, kernels: &[Kernel], progress: &dyn Fn(usize, usize)) -> Result<PrepareReport, DeviceError> {
        let start = Instant::now();
        let all: BTreeSet<CompileUnit> = kernels.iter().map(CompileUnit::from).collect();
        let count = all.len();
        let missing: Vec<CompileUnit> =
            all.into_iter().filter(|unit| lock(&self.slot(unit)).module.is_none()).collect();
        let load = |unit: &CompileUnit| self.module(unit, &mut lock(&self.slot(unit))).map(|(_, origin)| origin);
        let origins = in_parallel(&missing, self.jobs, load, progress)?;
        for kernel in kernels {
            self.get(kernel)?;
        }
        let from = |wanted| origins.iter().filter(|&&origin| origin == Some(wanted)).count();
        let (from_packs, from_cache, compiled) = (from(Origin::Pack), from(Origin::Cache), from(Origin::Compiler));
        Ok(PrepareReport {
            loaded_before: count - from_packs - from_cache - compiled,
            from_packs,
            from_cache,
            compiled,
            elapsed: start.elapsed(),
            notes: self.images.take_notes(),
        })
    }

    fn slot(&self, unit: &CompileUnit) -> Arc<Mutex<LoadedUnit>> {
        self.units.lock().expect("no panic while it is held").entry(unit.clone()).or_default().clone()
    }

    /// The module of a unit and, when it was loaded just now, from where.
    fn module(&self, unit: &CompileUnit, loaded: &mut LoadedUnit) -> Result<(ModuleId, Option<Origin>), DeviceError> {
        if let Some(module) = loaded.module {
            return Ok((module, None));
        }
        let (module, origin) = self.images.load(&*self.runtime, unit)?;
        loaded.module = Some(module);
        Ok((module, Some(origin)))
    }
}

/// A thread that panicked in a compiler has left the unit as it was: not loaded.
fn lock(slot: &Mutex<LoadedUnit>) -> std::sync::MutexGuard<'_, LoadedUnit> {
    slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a compiler is given for a kernel.
pub fn kernel_source(kernel: &Kernel) -> KernelSource {
    CompileUnit::from(kernel).source()
}
