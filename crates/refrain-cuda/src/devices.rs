//! Which NVIDIA GPUs there are, and which can be used.

use crate::bindings::driver::{CUcomputemode, CUdevice, CUdevice_attribute, CUdevice_attribute as Attribute};
use crate::driver::{Driver, unavailable};
use crate::library::CudaOptions;
use refrain_device::DeviceError;
use std::ffi::CStr;

/// A GPU that the driver shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSummary {
    /// Its index, as in `cuda:0`.
    pub index: usize,
    /// Name for people.
    pub name: String,
    /// What code for it is compiled for, such as `sm_90a`.
    pub arch: String,
    /// Compute capability: major and minor.
    pub compute_capability: (u32, u32),
    /// All of its memory.
    pub memory_bytes: usize,
    /// Why it can't be used; `None` when it can.
    pub problem: Option<String>,
}

/// All GPUs that the driver shows, also those that can't be used.
///
/// # Errors
/// [`DeviceError::Unavailable`] when there is no driver, when it is too old, or when it shows no device.
pub fn devices(options: &CudaOptions) -> Result<Vec<DeviceSummary>, DeviceError> {
    let driver = Driver::get(options)?;
    (0..count(driver)?).map(|index| summary(driver, index, device(driver, index)?)).collect()
}

/// Number of devices; at least 1.
pub(crate) fn count(driver: &Driver) -> Result<usize, DeviceError> {
    let mut count = 0;
    // SAFETY: the number is stored before the call returns.
    let code = unsafe { (driver.table.cuDeviceGetCount)(&raw mut count) };
    check(driver, code, "cuDeviceGetCount")?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(unavailable(format!(
            "the driver ({}) shows no GPU; nvidia-smi says whether the system sees it, and CUDA_VISIBLE_DEVICES may hide it",
            driver.describe()
        ))),
    }
}

/// The driver's handle of a device.
pub(crate) fn device(driver: &Driver, index: usize) -> Result<CUdevice, DeviceError> {
    let mut device = 0;
    // SAFETY: as in `count`; an index out of range is an error.
    let code = unsafe { (driver.table.cuDeviceGet)(&raw mut device, i32::try_from(index).unwrap_or(i32::MAX)) };
    check(driver, code, "cuDeviceGet")?;
    Ok(device)
}

pub(crate) fn summary(driver: &Driver, index: usize, device: CUdevice) -> Result<DeviceSummary, DeviceError> {
    let mut name = [0; 256];
    let mut memory_bytes = 0;
    // SAFETY: at most 256 bytes with a zero at the end are stored, and a number.
    unsafe {
        check(driver, (driver.table.cuDeviceGetName)(name.as_mut_ptr(), 256, device), "cuDeviceGetName")?;
        check(driver, (driver.table.cuDeviceTotalMem_v2)(&raw mut memory_bytes, device), "cuDeviceTotalMem_v2")?;
    }
    // SAFETY: `name` was zeroed and the driver ends what it writes with a zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let major = attribute(driver, device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(driver, device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let mode = attribute(driver, device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)?;
    let prohibited = mode == CUcomputemode::CU_COMPUTEMODE_PROHIBITED as u32;
    let (arch, problem) = (arch(major, minor), problem(major, minor, prohibited));
    Ok(DeviceSummary { index, name, arch, compute_capability: (major, minor), memory_bytes, problem })
}

/// An attribute that is not negative.
pub(crate) fn attribute(driver: &Driver, device: CUdevice, which: CUdevice_attribute) -> Result<u32, DeviceError> {
    let mut value = 0;
    // SAFETY: the number is stored before the call returns.
    let code = unsafe { (driver.table.cuDeviceGetAttribute)(&raw mut value, which, device) };
    check(driver, code, "cuDeviceGetAttribute")?;
    Ok(u32::try_from(value).unwrap_or(0))
}

fn check(driver: &Driver, code: u32, call: &str) -> Result<(), DeviceError> {
    if code == 0 { Ok(()) } else { Err(driver.error("cuda", call.to_owned(), code)) }
}

/// What code for a compute capability is compiled for. From 9.0 on it is the variant with the instructions that are
/// not promised to later devices (`wgmma`, `setmaxnreg`), since code is compiled for the very device it runs on.
pub(crate) fn arch(major: u32, minor: u32) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

/// Why a device can't be used.
fn problem(major: u32, minor: u32, prohibited: bool) -> Option<String> {
    if major < 8 {
        return Some(format!("too old: compute capability {major}.{minor}, needs 8.0 (Ampere) or later"));
    }
    prohibited
        .then(|| "its compute mode is prohibited: an administrator can allow it by nvidia-smi -c DEFAULT".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_follow_the_compute_capability() {
        let cases = [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_86"),
            ((8, 9), "sm_89"),
            ((9, 0), "sm_90a"),
            ((10, 0), "sm_100a"),
            ((10, 3), "sm_103a"),
            ((12, 0), "sm_120a"),
        ];
        for ((major, minor), expected) in cases {
            assert_eq!(arch(major, minor), expected);
        }
    }

    #[test]
    fn old_and_prohibited_devices_say_so() {
        assert_eq!(problem(8, 0, false), None);
        assert_eq!(problem(7, 5, false).unwrap(), "too old: compute capability 7.5, needs 8.0 (Ampere) or later");
        assert!(problem(9, 0, true).unwrap().contains("nvidia-smi -c DEFAULT"));
    }
}
