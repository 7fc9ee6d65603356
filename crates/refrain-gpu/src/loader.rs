//! Kernels ready to launch: compiled when they are first asked for, each once.

use crate::kernel::Kernel;
use crate::sources::{HEADERS, source};
use refrain_device::{DeviceError, FunctionId, KernelResources, KernelSource, Runtime};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A kernel on the device.
#[derive(Clone, Copy, Debug)]
pub struct LoadedKernel {
    /// What is launched.
    pub function: FunctionId,
    /// What it needs.
    pub resources: KernelResources,
}

/// The kernels of one device.
pub struct Kernels {
    runtime: Arc<dyn Runtime>,
    loaded: Mutex<HashMap<Kernel, LoadedKernel>>,
}

impl Kernels {
    /// None yet.
    pub fn new(runtime: Arc<dyn Runtime>) -> Kernels {
        Kernels { runtime, loaded: Mutex::default() }
    }

    /// The kernel, compiled and loaded if it is new.
    ///
    /// # Errors
    /// [`DeviceError`] when it can't be compiled or loaded.
    pub fn get(&self, kernel: &Kernel) -> Result<LoadedKernel, DeviceError> {
        let mut loaded = self.loaded.lock().expect("no panic while it is held");
        if let Some(found) = loaded.get(kernel) {
            return Ok(*found);
        }
        let compiled = self.runtime.compiler()?.compile(&kernel_source(kernel), &self.runtime.info().arch)?;
        let module = self.runtime.load_module(&compiled.image)?;
        let function = self.runtime.function(module, kernel.entry, kernel.shared_bytes)?;
        let found = LoadedKernel { function, resources: self.runtime.resources(function)? };
        loaded.insert(kernel.clone(), found);
        Ok(found)
    }
}

/// What a compiler is given for a kernel.
pub fn kernel_source(kernel: &Kernel) -> KernelSource {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    KernelSource {
        name: kernel.source.to_owned(),
        text: source(kernel.source).to_owned(),
        headers: HEADERS.iter().map(owned).collect(),
        defines: kernel.defines.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    }
}
