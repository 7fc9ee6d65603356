//! The HIP runtime, loaded and initialised; its version and its errors.

use crate::api::{Graphs, Hip, Status, status};
use crate::library;
use crate::toolkit::{HipOptions, Loaded, file_of};
use refrain_device::DeviceError;
use std::ffi::{CStr, c_char, c_void};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The device file of the kernel driver, AMD's and Hygon's.
const KERNEL_DRIVER: &str = "/dev/kfd";

pub(crate) struct Driver {
    pub(crate) hip: Hip,
    pub(crate) graphs: Result<Graphs, Vec<&'static str>>,
    pub(crate) loaded: Loaded,
}

impl Driver {
    /// Loads and initialises HIP.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is none, or it finds no device.
    pub(crate) fn load(options: &HipOptions) -> Result<Driver, DeviceError> {
        let library::Found { loaded, hip, graphs } = library::find(options)?;
        let driver = Driver { hip, graphs, loaded };
        // SAFETY: flags must be 0; it may be called any number of times.
        match unsafe { (driver.hip.hipInit)(0) } {
            status::SUCCESS => Ok(driver),
            status::NO_DEVICE | status::INVALID_DEVICE => Err(driver.no_device()),
            code => {
                Err(unavailable(format!("{} can't start: hipInit failed: {}", driver.describe(), driver.text(code))))
            }
        }
    }

    /// Number of devices; at least 1.
    pub(crate) fn count(&self) -> Result<usize, DeviceError> {
        let mut count = 0;
        // SAFETY: the number is stored before the call returns.
        match unsafe { (self.hip.hipGetDeviceCount)(&raw mut count) } {
            status::SUCCESS if count > 0 => Ok(usize::try_from(count).unwrap_or(0)),
            status::SUCCESS | status::NO_DEVICE | status::INVALID_DEVICE => Err(self.no_device()),
            code => Err(self.error("hip", "hipGetDeviceCount".to_owned(), code)),
        }
    }

    /// Version and file, such as `HIP 6.3.42133 (/opt/rocm/lib/libamdhip64.so.6)`.
    pub(crate) fn describe(&self) -> String {
        format!("{} ({})", self.version(), self.file().display())
    }

    /// `HIP 6.3.42133`; with the kernel driver's version where that is another.
    pub(crate) fn version(&self) -> String {
        let (mut runtime, mut driver) = (0, 0);
        // SAFETY: the numbers are stored before the calls return.
        unsafe {
            (self.hip.hipRuntimeGetVersion)(&raw mut runtime);
            if let Some(get) = self.hip.hipDriverGetVersion {
                get(&raw mut driver);
            }
        }
        let text = |version: i32| format!("{}.{}.{}", version / 10_000_000, version / 100_000 % 100, version % 100_000);
        if driver == runtime || driver == 0 {
            format!("HIP {}", text(runtime))
        } else {
            format!("HIP {}, driver {}", text(runtime), text(driver))
        }
    }

    /// The file that was loaded.
    pub(crate) fn file(&self) -> PathBuf {
        file_of(self.hip.hipInit as *const c_void).unwrap_or_else(|| PathBuf::from(&self.loaded.name))
    }

    /// HIP's words for a code: its name and what it means.
    pub(crate) fn text(&self, code: Status) -> String {
        let words = |get: unsafe extern "C" fn(Status) -> *const c_char| {
            // SAFETY: HIP answers any code with a static string, or null.
            let text = unsafe { get(code) };
            // SAFETY: not null, so it ends with a zero and is never freed.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = self.hip.hipGetErrorName.and_then(words);
        let text = words(self.hip.hipGetErrorString);
        match (name, text) {
            (Some(name), Some(text)) if name != text => format!("{name}: {text}"),
            (Some(text), _) | (None, Some(text)) => text,
            (None, None) => "unknown".to_owned(),
        }
    }

    /// The error of a call that failed before, or apart from, any device that is open.
    pub(crate) fn error(&self, device: &str, call: String, code: Status) -> DeviceError {
        DeviceError::Driver { device: device.to_owned(), call, code: i64::from(code), text: self.text(code) }
    }

    fn no_device(&self) -> DeviceError {
        unavailable(format!("{} finds no GPU: {}", self.describe(), kernel_driver(Path::new(KERNEL_DRIVER))))
    }
}

pub(crate) fn unavailable(why: String) -> DeviceError {
    DeviceError::Unavailable { device: "hip", why }
}

/// What the kernel driver's file says about a missing device, and what to do.
fn kernel_driver(file: &Path) -> String {
    let name = file.display();
    match OpenOptions::new().read(true).write(true).open(file) {
        Ok(_) => format!("{name} can be opened, so HIP_VISIBLE_DEVICES may hide it, or the card is not supported"),
        Err(error) if error.kind() == ErrorKind::NotFound => format!(
            "{name} does not exist; load the kernel driver of the card (amdgpu, or Hygon's), or give the container this \
             device and /dev/dri"
        ),
        Err(error) => format!("{name} can't be opened ({error}); add the user to the groups render and video"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kernel_driver_says_what_to_load() {
        assert!(
            kernel_driver(Path::new("/nowhere/kfd")).contains("/nowhere/kfd does not exist; load the kernel driver")
        );
    }

    #[test]
    fn a_driver_that_can_be_opened_is_not_what_is_missing() {
        assert!(kernel_driver(Path::new("/dev/null")).contains("HIP_VISIBLE_DEVICES"));
    }

    #[test]
    fn a_driver_that_can_not_be_opened_asks_for_the_groups() {
        // A folder can't be opened for writing, whoever asks.
        assert!(kernel_driver(Path::new("/")).contains("groups render and video"));
    }
}
