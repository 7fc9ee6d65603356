//! The stacks of fibres, kept from block to block.

use refrain_device::DeviceError;
use std::io;

/// Bytes of a stack. A kernel's thread keeps its arrays there; only touched pages cost memory.
const STACK: usize = 128 << 10;
/// Below each stack lie bytes that nobody can touch.
const GUARD: usize = 60 << 10;
/// The most threads of a block.
pub(crate) const MOST: usize = 1024;

/// One range for all stacks of a worker.
pub(crate) struct Stacks {
    base: *mut u8,
    made: usize,
    free: Vec<u32>,
}

// SAFETY: plain memory that the struct owns.
unsafe impl Send for Stacks {}

impl Stacks {
    pub(crate) fn new() -> Stacks {
        Stacks { base: std::ptr::null_mut(), made: 0, free: Vec::with_capacity(MOST) }
    }

    /// Reserves the range, before the first block.
    pub(crate) fn reserve(&mut self) -> Result<(), DeviceError> {
        if !self.base.is_null() {
            return Ok(());
        }
        let bytes = MOST * (STACK + GUARD);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            return Err(DeviceError::OutOfMemory { bytes, what: "stacks of simulated threads", source });
        }
        self.base = base.cast();
        Ok(())
    }

    /// A stack that nobody uses; the one given back last, for it is in the caches. `None` when memory runs out.
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| self.make())
    }

    #[cold]
    fn make(&mut self) -> Option<u32> {
        self.reserve().ok()?;
        if self.made == MOST {
            return None;
        }
        let low = self.base.wrapping_add(self.made * (STACK + GUARD) + GUARD);
        // SAFETY: a part of the range that no stack uses yet.
        if unsafe { libc::mprotect(low.cast(), STACK, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return None;
        }
        self.made += 1;
        Some(self.made as u32 - 1)
    }

    /// Gives a stack back.
    pub(crate) fn give(&mut self, stack: u32) {
        self.free.push(stack);
    }

    /// All stacks are free again, the first one to be taken next.
    pub(crate) fn give_all(&mut self) {
        self.free.clear();
        self.free.extend((0..self.made as u32).rev());
    }

    /// The end of a stack, from which it grows down. The ends lie at different offsets within their pages: equal ones
    /// would share the same few cache lines.
    pub(crate) fn top(&self, stack: u32) -> *mut u8 {
        let end = self.base.wrapping_add((stack as usize + 1) * (STACK + GUARD));
        end.wrapping_sub(stack as usize % 11 * 256)
    }

    /// Bytes below every top.
    pub(crate) fn bytes(&self) -> usize {
        STACK - 4096
    }

    /// Whether an address is in the guard below a stack.
    pub(crate) fn overflowed(&self, address: usize) -> bool {
        let from = self.base.addr();
        let offset = address.wrapping_sub(from);
        from != 0 && offset < MOST * (STACK + GUARD) && offset % (STACK + GUARD) < GUARD
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        if !self.base.is_null() {
            // SAFETY: exactly the range that `reserve` mapped; no fibre outlives its worker.
            unsafe { libc::munmap(self.base.cast(), MOST * (STACK + GUARD)) };
        }
    }
}
