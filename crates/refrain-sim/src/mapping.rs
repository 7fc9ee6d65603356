//! Memory that begins as poison and ends where nobody can touch.

use refrain_device::DeviceError;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

/// What memory holds that nobody has written, in each 16 bits: NaN as bf16, f16 and, twice, as f32; an index far outside
/// of everything as an integer.
pub const POISON: u32 = 0x7fa5;
pub(crate) const POISON_BYTES: [u8; 4] = [0xa5, 0x7f, 0xa5, 0x7f];

/// Ranges from here on are mapped from a file of poison: a page costs memory and time once it is written.
const LARGE: usize = 32 << 20;
/// Bytes of that file, which is mapped as often as it takes.
const PIECE: usize = 16 << 20;

/// Fills a range, whose ends are multiples of 4, with poison.
///
/// # Safety
/// The range is writable.
pub(crate) unsafe fn poison(from: *mut u8, bytes: usize) {
    // SAFETY: by contract.
    let words = unsafe { std::slice::from_raw_parts_mut(from.cast::<[u8; 4]>(), bytes / 4) };
    words.fill(POISON_BYTES);
}

fn page() -> usize {
    // SAFETY: a query.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// The file of poison, once for the process. `None` where none can be made: ranges are then filled.
fn poison_file() -> Option<&'static File> {
    static MADE: OnceLock<Option<File>> = OnceLock::new();
    let make = || {
        let mut file = tempfile::tempfile().ok()?;
        file.write_all(&POISON_BYTES.repeat(PIECE / POISON_BYTES.len())).ok()?;
        Some(file)
    };
    MADE.get_or_init(make).as_ref()
}

/// Replaces a range by private copies of the file. False when the system refuses one; the range is writable anyway.
unsafe fn map_poison(from: *mut u8, bytes: usize, file: &File) -> bool {
    (0..bytes).step_by(PIECE).all(|offset| {
        let (at, length) = (from.wrapping_add(offset).cast(), PIECE.min(bytes - offset));
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: within the range, which is the caller's.
        let mapped = unsafe { libc::mmap(at, length, libc::PROT_READ | libc::PROT_WRITE, flags, file.as_raw_fd(), 0) };
        mapped != libc::MAP_FAILED
    })
}

/// Pages of memory between two that can't be touched, filled with poison.
pub(crate) struct Mapping {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory that the struct owns.
unsafe impl Send for Mapping {}

impl Mapping {
    /// At least `bytes`; the end is that of the last page.
    pub(crate) fn new(bytes: usize, what: &'static str) -> Result<Mapping, DeviceError> {
        let page = page();
        let failed = || DeviceError::OutOfMemory { bytes, what, source: io::Error::last_os_error() };
        let inner = bytes.max(1).checked_next_multiple_of(page).filter(|&inner| inner < isize::MAX as usize / 2);
        let Some(inner) = inner else {
            return Err(DeviceError::OutOfMemory { bytes, what, source: io::ErrorKind::OutOfMemory.into() });
        };
        // SAFETY: a fresh mapping of the kernel's choice, then a part of it.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let outer = libc::mmap(std::ptr::null_mut(), inner + 2 * page, libc::PROT_NONE, flags, -1, 0);
            if outer == libc::MAP_FAILED {
                return Err(failed());
            }
            let mapping = Mapping { base: outer.cast::<u8>().wrapping_add(page), bytes: inner };
            if libc::mprotect(mapping.base.cast(), inner, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                return Err(failed());
            }
            let lazily = inner >= LARGE && poison_file().is_some_and(|file| map_poison(mapping.base, inner, file));
            if !lazily {
                poison(mapping.base, inner);
            }
            Ok(mapping)
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    pub(crate) fn end(&self) -> *mut u8 {
        self.base.wrapping_add(self.bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let page = page();
        // SAFETY: exactly what `new` mapped.
        unsafe { libc::munmap(self.base.wrapping_sub(page).cast(), self.bytes + 2 * page) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_ranges_are_poisoned_without_being_written() {
        let bytes = LARGE + PIECE / 2 + 5;
        let mut mappings = [Mapping::new(bytes, "a").unwrap(), Mapping::new(bytes, "b").unwrap()];
        for round in 0..2u8 {
            for mapping in &mut mappings {
                // SAFETY: owned here.
                let all = unsafe { std::slice::from_raw_parts_mut(mapping.base(), mapping.bytes()) };
                assert!(all.len() >= bytes);
                for at in [0, 1, PIECE - 1, PIECE, LARGE + 6, bytes - 1] {
                    let wanted = if round == 0 { POISON_BYTES[at % 4] } else { 1 };
                    assert_eq!(all[at], wanted, "byte {at}, round {round}");
                    all[at] = 1;
                }
            }
        }
    }
}
