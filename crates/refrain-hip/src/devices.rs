//! Which AMD and Hygon GPUs there are, and which can be used.

use crate::api::status;
use crate::driver::Driver;
use crate::toolkit::HipOptions;
use refrain_device::DeviceError;
use std::ffi::{CStr, c_int, c_void};

/// A GPU that the driver shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSummary {
    /// Its index, as in `hip:0`.
    pub index: usize,
    /// Name for people.
    pub name: String,
    /// What code for it is compiled for, such as `gfx906`; empty where nobody tells.
    pub arch: String,
    /// Threads of a wave: 32 or 64.
    pub wave: u32,
    /// Compute units.
    pub processors: u32,
    /// Most bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// All of its memory.
    pub memory_bytes: usize,
    /// Why it can't be used; `None` when it can.
    pub problem: Option<String>,
}

/// All GPUs that HIP shows, also those that can't be used.
///
/// # Errors
/// [`DeviceError::Unavailable`] when there is no HIP library, or it shows no device.
pub fn devices(options: &HipOptions) -> Result<Vec<DeviceSummary>, DeviceError> {
    let driver = Driver::load(options)?;
    (0..driver.count()?).map(|index| summary(&driver, options, index)).collect()
}

/// Numbers of `hipDeviceAttribute_t`: HIP 5.0 counted them anew.
struct Numbering {
    wave: c_int,
    processors: c_int,
    shared_bytes: c_int,
}
const NUMBERINGS: [Numbering; 2] = [
    Numbering { wave: 87, processors: 63, shared_bytes: 74 },
    // HIP 4, on which older releases of DTK are built.
    Numbering { wave: 9, processors: 14, shared_bytes: 7 },
];
/// `hipDeviceAttributeGcnArchName` of HIP 5: stores a text of up to 256 bytes where others store a number.
const ARCH_NAME: c_int = 10004;

/// What a device says of itself.
pub(crate) fn summary(driver: &Driver, options: &HipOptions, index: usize) -> Result<DeviceSummary, DeviceError> {
    let device = c_int::try_from(index).unwrap_or(c_int::MAX);
    let check = |code, call: &str| match code {
        status::SUCCESS => Ok(()),
        code => Err(driver.error(&format!("hip:{index}"), call.to_owned(), code)),
    };
    let (mut name, mut memory_bytes) = ([0; 256], 0);
    // SAFETY: at most 256 bytes with a zero at the end are stored, and a number.
    unsafe {
        check((driver.hip.hipDeviceGetName)(name.as_mut_ptr(), 256, device), "hipDeviceGetName")?;
        check((driver.hip.hipDeviceTotalMem)(&raw mut memory_bytes, device), "hipDeviceTotalMem")?;
    }
    name[255] = 0;
    // SAFETY: it ends with a zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut found = DeviceSummary {
        index,
        arch: options.arch.clone().or_else(|| told_arch(driver, device, &name)).unwrap_or_default(),
        name,
        wave: 0,
        processors: 0,
        shared_bytes: 0,
        memory_bytes,
        problem: None,
    };
    let readings = NUMBERINGS.map(|numbers| {
        let read = |number| attribute(driver, device, number).unwrap_or(0);
        (read(numbers.wave), read(numbers.processors), read(numbers.shared_bytes))
    });
    match readings.iter().find(|reading| plausible(**reading)) {
        Some(&(wave, processors, shared_bytes)) => {
            (found.wave, found.processors, found.shared_bytes) = (wave, processors, shared_bytes);
        }
        None => {
            let (wave, processors, shared_bytes) = readings[0];
            found.problem = Some(format!(
                "{} gives it waves of {wave} threads, {processors} compute units and {shared_bytes} bytes of shared memory, \
                 which can't be: its numbering of attributes is not known",
                driver.describe()
            ));
        }
    }
    if arch_in(&found.arch).is_none() {
        found.problem.get_or_insert(if found.arch.is_empty() {
            format!(
                "{} doesn't tell its architecture; give --gpu-arch (gfx906 for MI50, MI60 and Z100)",
                driver.describe()
            )
        } else {
            format!("{:?} is no architecture; they look like gfx906", found.arch)
        });
    }
    Ok(found)
}

/// Waves of 32 or 64 threads, at least one compute unit, a size of shared memory that hardware has.
fn plausible((wave, processors, shared_bytes): (u32, u32, u32)) -> bool {
    matches!(wave, 32 | 64) && (1..=4096).contains(&processors) && (16 << 10..=1 << 20).contains(&shared_bytes)
}

fn attribute(driver: &Driver, device: c_int, number: c_int) -> Option<u32> {
    let mut value = 0;
    // SAFETY: the attributes of both numberings that are read are numbers, stored before the call returns.
    let code = unsafe { (driver.hip.hipDeviceGetAttribute)(&raw mut value, number, device) };
    if code == status::SUCCESS { u32::try_from(value).ok() } else { None }
}

/// The architecture as the driver tells it. No struct of properties is declared here: its layout differs between HIP 5, HIP
/// 6 and DTK. It is let into a buffer several times as large as any of them, and what looks like an architecture is
/// found in it; HIP 5 also has an attribute with nothing but the name.
fn told_arch(driver: &Driver, device: c_int, name: &str) -> Option<String> {
    let mut buffer = [0_u64; 2048];
    // SAFETY: the buffer is larger than what the attribute stores (256 bytes), and than a number.
    let code = unsafe { (driver.hip.hipDeviceGetAttribute)(buffer.as_mut_ptr().cast(), ARCH_NAME, device) };
    if code == status::SUCCESS
        && let Some(arch) = arch_in_memory(&buffer)
    {
        return Some(arch);
    }
    for properties in [driver.hip.hipGetDevicePropertiesR0600, driver.hip.hipGetDeviceProperties].into_iter().flatten()
    {
        buffer.fill(0);
        // SAFETY: the buffer of 16 KiB is larger than the struct of any version (HIP 7: 1472 bytes).
        let code = unsafe { properties(buffer.as_mut_ptr().cast::<c_void>(), device) };
        if code == status::SUCCESS
            && let Some(arch) = arch_in_memory(&buffer)
        {
            return Some(arch);
        }
    }
    name.split_whitespace().find_map(arch_in)
}

/// The first text in memory that is an architecture.
fn arch_in_memory(words: &[u64]) -> Option<String> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.split(|&byte| byte == 0).filter_map(|text| std::str::from_utf8(text).ok()).find_map(arch_in)
}

/// `gfx906` of `gfx906:sramecc+:xnack-`; nothing where that is no architecture.
fn arch_in(text: &str) -> Option<String> {
    let plain = text.split(':').next().unwrap_or_default();
    let digits = plain.strip_prefix("gfx")?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    ((3..=4).contains(&digits.len()) && digits.bytes().all(is_digit)).then(|| plain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_no_part_of_an_architecture() {
        assert_eq!(arch_in("gfx906:sramecc+:xnack-").as_deref(), Some("gfx906"));
        assert_eq!(arch_in("gfx90a").as_deref(), Some("gfx90a"));
        assert_eq!(arch_in("gfx1030").as_deref(), Some("gfx1030"));
        for text in ["", "gfx", "gfx9", "gfx90606", "gfxzzz", "sm_90", "xgfx906"] {
            assert_eq!(arch_in(text), None, "{text}");
        }
    }

    #[test]
    fn an_architecture_is_found_wherever_it_stands_in_memory() {
        let mut bytes = vec![0xff; 16];
        bytes.extend(b"AMD Instinct gfx\0\0\0");
        bytes.extend(b"gfx906:sramecc+\0garbage");
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let words: Vec<u64> = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(arch_in_memory(&words).as_deref(), Some("gfx906"));
        assert_eq!(arch_in_memory(&[0; 8]), None);
    }

    #[test]
    fn only_what_hardware_has_is_plausible() {
        assert!(plausible((64, 60, 65536)) && plausible((32, 96, 65536)));
        assert!(!plausible((0, 60, 65536)) && !plausible((64, 0, 65536)) && !plausible((64, 60, 1024)));
    }
}
