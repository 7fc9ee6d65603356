//! The memory of the simulated device: each allocation ends at a page that nobody can touch, and begins as poison.

use crate::mapping::{Mapping, POISON_BYTES};
use refrain_device::{DeviceError, DevicePtr};
use std::collections::BTreeMap;

/// Allocations begin at multiples of this.
const ALIGNMENT: usize = 256;

/// What lies around allocations: poison, whose phase is that of its address.
const UNTOUCHED: [u8; ALIGNMENT + 4] = {
    let mut bytes = [0; ALIGNMENT + 4];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = POISON_BYTES[at % 4];
        at += 1;
    }
    bytes
};

struct Allocation {
    mapping: Mapping,
    bytes: usize,
    what: &'static str,
}

impl Allocation {
    /// Bytes that it takes of the device.
    fn taken(bytes: usize) -> usize {
        bytes.next_multiple_of(ALIGNMENT)
    }

    /// Bytes around it that nobody may write: those up to the end of the pages, and as many before it.
    fn margins(&self, base: u64) -> [(usize, usize); 2] {
        let base = base as usize;
        let low = self.mapping.base().addr().max(base.saturating_sub(ALIGNMENT));
        [(low, base), (base + self.bytes, self.mapping.end().addr())]
    }
}

/// All allocations of a device, or all pinned ones of its host.
pub(crate) struct Memory {
    total: usize,
    used: usize,
    allocations: BTreeMap<u64, Allocation>,
}

impl Memory {
    pub(crate) fn new(total: usize) -> Memory {
        Memory { total, used: 0, allocations: BTreeMap::new() }
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    pub(crate) fn free_bytes(&self) -> usize {
        self.total - self.used
    }

    /// `None` when the device has not that much left.
    pub(crate) fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<Option<DevicePtr>, DeviceError> {
        if bytes > self.free_bytes() || Allocation::taken(bytes) > self.free_bytes() {
            return Ok(None);
        }
        let mapping = Mapping::new(Allocation::taken(bytes), what)?;
        let base = mapping.end().wrapping_sub(Allocation::taken(bytes)) as u64;
        self.used += Allocation::taken(bytes);
        self.allocations.insert(base, Allocation { mapping, bytes, what });
        Ok(Some(DevicePtr(base)))
    }

    /// Takes memory that nobody sees, as drivers do; false when the device has not that much left.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.free_bytes();
        self.used += if fits { bytes } else { 0 };
        fits
    }

    /// Gives it back.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.used -= bytes;
    }

    /// False when nothing was allocated there.
    pub(crate) fn free(&mut self, base: u64) -> bool {
        let Some(allocation) = self.allocations.remove(&base) else { return false };
        self.used -= Allocation::taken(allocation.bytes);
        true
    }

    /// Whether the whole range lies in one allocation.
    pub(crate) fn contains(&self, from: u64, bytes: usize) -> bool {
        self.allocations.range(..=from).next_back().is_some_and(|(&base, allocation)| {
            let offset = (from - base) as usize;
            offset <= allocation.bytes && bytes <= allocation.bytes - offset
        })
    }

    /// Where an address is, in words.
    pub(crate) fn describe(&self, address: u64) -> String {
        if address < 1 << 16 {
            return format!("address {address:#x} is next to null");
        }
        let below = self.allocations.range(..=address).next_back();
        let above = self.allocations.range(address..).next();
        if let Some((&base, allocation)) = below {
            let (offset, name) = ((address - base) as usize, allocation.what);
            if offset < allocation.bytes {
                return format!("address {address:#x} is byte {offset} of the {} bytes of {name:?}", allocation.bytes);
            }
            let beyond = offset - allocation.bytes;
            if above.is_none_or(|(&next, _)| next - address >= beyond as u64) {
                return format!(
                    "address {address:#x} is {beyond} bytes behind the end of {name:?} ({} bytes)",
                    allocation.bytes
                );
            }
        }
        match above {
            Some((&base, allocation)) => {
                let name = allocation.what;
                format!("address {address:#x} is {} bytes before {name:?} ({} bytes)", base - address, allocation.bytes)
            }
            None => format!("address {address:#x} is in no allocation"),
        }
    }

    /// The first byte around an allocation that somebody has overwritten, in words.
    pub(crate) fn overwritten(&self) -> Option<String> {
        self.allocations.iter().find_map(|(&base, allocation)| {
            let damaged = allocation.margins(base).into_iter().find_map(|(from, to)| {
                // SAFETY: within the mapping, which nobody else writes: the device is locked.
                let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, to - from) };
                let whole = &UNTOUCHED[from % 4..][..to - from];
                if bytes == whole {
                    None
                } else {
                    bytes.iter().zip(whole).position(|(a, b)| a != b).map(|at| from + at)
                }
            })?;
            Some(self.describe(damaged as u64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::POISON;

    #[test]
    fn allocations_are_aligned_poisoned_and_counted() {
        let mut memory = Memory::new(10_000);
        let first = memory.allocate(1000, "a").unwrap().unwrap();
        let second = memory.allocate(4096, "b").unwrap().unwrap();
        assert!(first.0.is_multiple_of(256) && second.0.is_multiple_of(256));
        assert_eq!(memory.free_bytes(), 10_000 - 1024 - 4096);
        // SAFETY: both are allocated.
        let halves = unsafe { std::slice::from_raw_parts(first.0 as *const u16, 500) };
        assert!(halves.iter().all(|&half| u32::from(half) == POISON));
        assert!(f32::from_bits(POISON << 16 | POISON).is_nan());
        assert!(memory.allocate(5000, "c").unwrap().is_none());
        assert!(memory.free(second.0) && !memory.free(second.0));
        assert!(memory.allocate(5000, "c").unwrap().is_some());
    }

    #[test]
    fn ranges_are_within_one_allocation() {
        let mut memory = Memory::new(1 << 20);
        let base = memory.allocate(1000, "a").unwrap().unwrap().0;
        assert!(memory.contains(base, 1000) && memory.contains(base + 1000, 0) && memory.contains(base + 999, 1));
        assert!(!memory.contains(base, 1001) && !memory.contains(base + 1000, 1) && !memory.contains(base - 1, 1));
        assert!(!memory.contains(base + 8, usize::MAX));
        assert!(memory.describe(base + 1024).contains("24 bytes behind the end of \"a\" (1000 bytes)"));
        assert!(memory.describe(base - 1).contains("1 bytes before \"a\""), "{}", memory.describe(base - 1));
        assert!(memory.describe(8).contains("null"));
    }

    #[test]
    fn a_byte_written_beside_an_allocation_is_found() {
        let mut memory = Memory::new(1 << 20);
        let base = memory.allocate(1000, "a").unwrap().unwrap().0;
        assert_eq!(memory.overwritten(), None);
        for (address, words) in [(base + 1003, "3 bytes behind"), (base - 2, "2 bytes before")] {
            let byte = address as *mut u8;
            // SAFETY: within the pages of the allocation.
            unsafe {
                let before = byte.read();
                byte.write(1);
                assert!(memory.overwritten().unwrap().contains(words), "{:?}", memory.overwritten());
                byte.write(before);
            }
        }
        assert_eq!(memory.overwritten(), None);
    }
}
