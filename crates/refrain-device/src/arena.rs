//! One reserved range of memory from which everything of a device is carved.

use crate::DeviceError;
use std::io;
use std::ptr::NonNull;

/// Page-aligned, zero-filled host memory that is reserved at once and never grows. Pages cost real memory only once
/// they are touched; large ranges ask for huge pages.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the arena owns its mapping; nothing in it is tied to a thread.
unsafe impl Send for Arena {}
// SAFETY: shared access gives out raw pointers only; whoever dereferences them upholds aliasing.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves `bytes` bytes of zeroed memory.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] when the system refuses the mapping.
    pub fn new(bytes: usize, what: &'static str) -> Result<Self, DeviceError> {
        let length = bytes.max(1);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(DeviceError::OutOfMemory { bytes, what, source: io::Error::last_os_error() });
        }
        #[cfg(target_os = "linux")]
        if length >= 2 << 20 {
            // SAFETY: the range was just mapped; the advice changes no contents. Refusal only costs speed.
            unsafe { libc::madvise(base, length, libc::MADV_HUGEPAGE) };
        }
        let base = NonNull::new(base.cast()).expect("mmap gave a null mapping");
        Ok(Self { base, bytes })
    }

    /// First byte, aligned to a page.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped, and nobody can hold it longer than the arena.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes.max(1)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_and_aligned() {
        let arena = Arena::new(3 << 20, "test").unwrap();
        assert_eq!(arena.base() as usize % 4096, 0);
        // SAFETY: inside the arena, which nobody else uses.
        let bytes = unsafe { std::slice::from_raw_parts(arena.base(), arena.bytes()) };
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn an_impossible_size_is_an_error_that_names_it() {
        let error = Arena::new(usize::MAX / 2, "KV pool").unwrap_err().to_string();
        assert!(error.contains("KV pool"), "{error}");
    }
}
