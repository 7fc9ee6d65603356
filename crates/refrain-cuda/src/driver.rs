//! The driver: found and initialised once for the process; its errors.

use crate::bindings::driver::{CUresult, DriverTable};
use crate::library::{self, CudaOptions, Folders};
use refrain_device::DeviceError;
use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Name of the driver's library.
const LIBRARY: &str = "libcuda.so.1";

/// Where it lies on systems whose loader doesn't know: under Windows and in containers that mount it.
const FOLDERS: [&str; 2] = ["/usr/lib/wsl/lib", "/usr/local/nvidia/lib64"];

/// The loaded and initialised driver.
pub(crate) struct Driver {
    pub(crate) table: DriverTable,
    /// The newest CUDA that it supports: 13000 is 13.0.
    version: i32,
    /// Release of the kernel module, such as `580.95.05`, where the system tells.
    release: Option<String>,
}

impl Driver {
    /// The driver of this machine.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is none, or it is too old, or it can't start: what was looked for, and
    /// what to do. Nothing is remembered of a failure.
    pub(crate) fn get(options: &CudaOptions) -> Result<&'static Driver, DeviceError> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        static LOADING: Mutex<()> = Mutex::new(());
        let _one = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = DRIVER.get() {
            return Ok(driver);
        }
        let driver = load(options).map_err(unavailable)?;
        Ok(DRIVER.get_or_init(|| driver))
    }

    /// Major version of the newest CUDA that the driver supports: 12 or 13. Code from a later compiler may not load.
    pub(crate) fn major(&self) -> u32 {
        (self.version / 1000).unsigned_abs()
    }

    /// Such as `CUDA 13.0, driver 580.95.05`.
    pub(crate) fn describe(&self) -> String {
        let cuda = format!("CUDA {}.{}", self.version / 1000, self.version % 1000 / 10);
        self.release.as_ref().map_or_else(|| cuda.clone(), |release| format!("{cuda}, driver {release}"))
    }

    /// Name and meaning of a code in the driver's words.
    pub(crate) fn text(&self, code: u32) -> String {
        let word = |lookup: unsafe extern "C" fn(u32, *mut *const c_char) -> u32| {
            let mut text = std::ptr::null();
            // SAFETY: the function stores a pointer to a constant, or null for a code that it doesn't know.
            unsafe {
                if lookup(code, &raw mut text) != 0 || text.is_null() {
                    return None;
                }
                Some(CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        match (word(self.table.cuGetErrorName), word(self.table.cuGetErrorString)) {
            (Some(name), Some(text)) => format!("{name}: {text}"),
            (Some(name), None) => name,
            _ => "a code that this driver doesn't explain".to_owned(),
        }
    }

    /// The error of a call that returned `code`.
    #[cold]
    pub(crate) fn error(&self, device: &str, call: String, code: u32) -> DeviceError {
        let (device, text) = (device.to_owned(), self.text(code));
        if is_fatal(code) {
            DeviceError::Lost { device, call, code: code.into(), text }
        } else {
            DeviceError::Driver { device, call, code: code.into(), text }
        }
    }
}

pub(crate) fn unavailable(why: String) -> DeviceError {
    DeviceError::Unavailable { device: "cuda", why }
}

fn load(options: &CudaOptions) -> Result<Driver, String> {
    let usual = FOLDERS.iter().map(PathBuf::from).filter(|folder| folder.is_dir()).collect();
    let folders = Folders { usual, ..library::folders(options) };
    let found = library::find(&[LIBRARY], &folders).map_err(|why| {
        format!(
            "NVIDIA's driver library {why}; install NVIDIA's driver (525 or newer); in a container, start it with the \
             GPUs (docker run --gpus all)"
        )
    })?;
    // SAFETY: the driver's library, which stays loaded: it is never dropped.
    let table = unsafe { DriverTable::load(&found.library) }.map_err(|symbol| {
        format!(
            "{} has no {symbol}: the driver is too old; install NVIDIA's driver 525 (CUDA 12.0) or newer",
            found.name
        )
    })?;
    std::mem::forget(found.library);
    let mut driver = Driver { table, version: 0, release: kernel_module() };
    // SAFETY: plain calls; the version is stored before they return.
    let code = unsafe {
        (driver.table.cuDriverGetVersion)(&raw mut driver.version);
        (driver.table.cuInit)(0)
    };
    if code != 0 {
        let (described, text) = (driver.describe(), driver.text(code));
        return Err(format!("the driver ({described}) does not start: cuInit gave {code} ({text}){}", advice(code)));
    }
    Ok(driver)
}

/// What to do about a driver that doesn't start.
fn advice(code: u32) -> &'static str {
    const NO_DEVICE: u32 = CUresult::CUDA_ERROR_NO_DEVICE as u32;
    const STUB: u32 = CUresult::CUDA_ERROR_STUB_LIBRARY as u32;
    const MISMATCH: u32 = CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH as u32;
    const COMPAT: u32 = CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE as u32;
    match code {
        NO_DEVICE => {
            "; nvidia-smi says whether the system sees the GPU, CUDA_VISIBLE_DEVICES may hide it, and a container has to be \
             started with it (docker run --gpus all)"
        }
        STUB => {
            "; the library is the toolkit's stub for linking: take its folder off LD_LIBRARY_PATH so that the driver's own \
             is found"
        }
        MISMATCH => "; the driver's library and its kernel module are of different releases: restart the machine",
        COMPAT => "; the forward-compatibility library is for data-centre GPUs: take it off LD_LIBRARY_PATH",
        _ => "; see whether nvidia-smi works, and what the system's log says about NVRM",
    }
}

/// Whether a code means that the context can't be used any more: every later call fails too, and only a new process
/// helps.
pub(crate) fn is_fatal(code: u32) -> bool {
    use CUresult as C;
    const FATAL: [CUresult; 22] = [
        C::CUDA_ERROR_DEINITIALIZED,
        C::CUDA_ERROR_DEVICE_UNAVAILABLE,
        C::CUDA_ERROR_ECC_UNCORRECTABLE,
        C::CUDA_ERROR_NVLINK_UNCORRECTABLE,
        C::CUDA_ERROR_CONTAINED,
        C::CUDA_ERROR_ILLEGAL_ADDRESS,
        C::CUDA_ERROR_LAUNCH_TIMEOUT,
        C::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        C::CUDA_ERROR_ASSERT,
        C::CUDA_ERROR_HARDWARE_STACK_ERROR,
        C::CUDA_ERROR_ILLEGAL_INSTRUCTION,
        C::CUDA_ERROR_MISALIGNED_ADDRESS,
        C::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        C::CUDA_ERROR_INVALID_PC,
        C::CUDA_ERROR_LAUNCH_FAILED,
        C::CUDA_ERROR_TENSOR_MEMORY_LEAK,
        C::CUDA_ERROR_SYSTEM_NOT_READY,
        C::CUDA_ERROR_MPS_CONNECTION_FAILED,
        C::CUDA_ERROR_MPS_RPC_FAILURE,
        C::CUDA_ERROR_MPS_CLIENT_TERMINATED,
        C::CUDA_ERROR_EXTERNAL_DEVICE,
        C::CUDA_ERROR_UNKNOWN,
    ];
    FATAL.iter().any(|&fatal| fatal as u32 == code)
}

/// Release of NVIDIA's kernel module.
fn kernel_module() -> Option<String> {
    parse_kernel_module(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The first word of the first line that looks like a release: `NVRM version: NVIDIA UNIX x86_64 Kernel Module
/// 580.95.05 Tue ...`.
fn parse_kernel_module(text: &str) -> Option<String> {
    let is_release = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_release).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_end_the_context_are_told_from_those_that_do_not() {
        let fatal = [4, 46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 802, 911, 999];
        assert!(fatal.into_iter().all(is_fatal));
        // Invalid value, out of memory, invalid image, not found, not ready, out of resources, capture errors, a failed
        // update, and a code that no header knows.
        let mild = [0, 1, 2, 200, 209, 400, 500, 600, 701, 900, 901, 908, 910, 4711];
        assert!(!mild.into_iter().any(is_fatal));
    }

    #[test]
    fn the_release_is_read_from_both_kinds_of_kernel_module() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@x)\n";
        assert_eq!(parse_kernel_module(closed).as_deref(), Some("535.183.01"));
        assert_eq!(parse_kernel_module(open).as_deref(), Some("580.95.05"));
        assert_eq!(parse_kernel_module("nonsense"), None);
    }

    #[test]
    fn advice_fits_the_code() {
        assert!(advice(100).contains("CUDA_VISIBLE_DEVICES"));
        assert!(advice(34).contains("stub"));
        assert!(advice(803).contains("restart"));
        assert!(advice(999).contains("nvidia-smi"));
    }
}
