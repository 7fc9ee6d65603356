//! One NVIDIA GPU: opening it, and what is kept for it.

mod operations;

use crate::bindings::driver::{CUdevice_attribute as Attribute, CUresult, DriverTable};
use crate::context::Context;
use crate::devices;
use crate::driver::{Driver, unavailable};
use crate::gemm::CublasLt;
use crate::graphs::Graphs;
use crate::library::CudaOptions;
use crate::nvrtc::NvrtcCompiler;
use refrain_device::{DeviceError, Runtime, RuntimeInfo};
use std::io;
use std::sync::{Arc, OnceLock};

/// An NVIDIA GPU. Handles of streams, events, modules and kernels are the driver's own: as the trait says, they belong
/// to the runtime that made them, and the driver does not check whether they are still alive.
///
/// A capture ends on the thread on which it began, and only that thread is kept from allocating meanwhile.
pub struct CudaRuntime {
    info: RuntimeInfo,
    options: CudaOptions,
    compiler: OnceLock<Result<NvrtcCompiler, String>>,
    gemm: OnceLock<Result<CublasLt, String>>,
    graphs: Graphs,
    context: Arc<Context>,
}

impl CudaRuntime {
    /// Opens a device by the index that the driver gives it.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is no driver, no such device, or it can't be used: why, and what to do.
    pub fn open(index: usize, options: &CudaOptions) -> Result<Arc<CudaRuntime>, DeviceError> {
        let driver = Driver::get(options)?;
        let count = devices::count(driver)?;
        if index >= count {
            let there = if count == 1 { "only cuda:0".to_owned() } else { format!("cuda:0 to cuda:{}", count - 1) };
            return Err(unavailable(format!("there is no cuda:{index}, {} finds {there}", driver.describe())));
        }
        let device = devices::device(driver, index)?;
        let summary = devices::summary(driver, index, device)?;
        if let Some(problem) = summary.problem {
            return Err(unavailable(format!("cuda:{index} ({}): {problem}", summary.name)));
        }
        let attribute = |which| devices::attribute(driver, device, which);
        let info = RuntimeInfo {
            kind: "cuda",
            index,
            name: summary.name,
            arch: summary.arch,
            driver: driver.describe(),
            wave: 32,
            processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            mma: summary.compute_capability >= (8, 0),
            overlap: summary.compute_capability >= (9, 0),
        };
        let context = Arc::new(Context::retain(driver, index, device)?);
        context.make_current()?;
        Ok(Arc::new(CudaRuntime {
            info,
            options: options.clone(),
            compiler: OnceLock::new(),
            gemm: OnceLock::new(),
            graphs: Graphs::new(context.clone()),
            context,
        }))
    }

    /// The driver's functions, with this device's context current.
    #[inline]
    fn enter(&self) -> Result<&'static DriverTable, DeviceError> {
        self.context.make_current()?;
        Ok(&self.context.driver.table)
    }

    /// The error of an allocation.
    #[cold]
    fn allocation(&self, call: &str, bytes: usize, what: &'static str, code: u32) -> DeviceError {
        if code != CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 {
            return self.context.driver.error(&self.context.label, format!("{call} of {bytes} bytes for {what}"), code);
        }
        let free = match self.memory() {
            Ok(memory) => format!("; {} of {} bytes of device memory are free", memory.free, memory.total),
            Err(_) => String::new(),
        };
        let said = format!("{}: {call} gave {}{free}", self.context.label, self.context.driver.text(code));
        DeviceError::OutOfMemory { bytes, what, source: io::Error::new(io::ErrorKind::OutOfMemory, said) }
    }
}
