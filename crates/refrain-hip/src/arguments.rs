//! Bytes in the form in which the driver wants them: aligned, padded, and at an address that stays.

use std::ffi::c_void;
use std::ptr::NonNull;

/// A cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line([u8; 64]);

/// A copy of bytes, aligned to 64 and padded with zeros to a multiple of it.
pub(crate) fn lines(bytes: &[u8]) -> Box<[Line]> {
    let mut lines = vec![Line([0; 64]); bytes.len().div_ceil(64).max(1)].into_boxed_slice();
    for (line, chunk) in lines.iter_mut().zip(bytes.chunks(64)) {
        line.0[..chunk.len()].copy_from_slice(chunk);
    }
    lines
}

/// Arguments of a launch, as `hipModuleLaunchKernel` takes them in `extra`. Kernels may read up to 64 bytes past their
/// arguments, so these are padded. Some versions of HIP record a launch by pointer, so these stay where they are as long
/// as the graph that the launch went into.
pub(crate) struct Arguments(NonNull<Block>);

/// What HIP is given the addresses of.
struct Block {
    lines: Box<[Line]>,
    bytes: usize,
    extra: [*mut c_void; 5],
}

// SAFETY: the pointers are to what the block owns, and to nothing of a thread.
unsafe impl Send for Arguments {}

/// `HIP_LAUNCH_PARAM_BUFFER_POINTER`, `HIP_LAUNCH_PARAM_BUFFER_SIZE`, `HIP_LAUNCH_PARAM_END`.
const BUFFER_POINTER: *mut c_void = std::ptr::without_provenance_mut(1);
const BUFFER_SIZE: *mut c_void = std::ptr::without_provenance_mut(2);
const END: *mut c_void = std::ptr::without_provenance_mut(3);

impl Arguments {
    pub(crate) fn new(bytes: &[u8]) -> Arguments {
        let block = Block { lines: lines(bytes), bytes: bytes.len(), extra: [std::ptr::null_mut(); 5] };
        let block = NonNull::from(Box::leak(Box::new(block)));
        // SAFETY: just leaked, and not shared yet.
        unsafe {
            let buffer = (*block.as_ptr()).lines.as_mut_ptr().cast();
            let size = (&raw mut (*block.as_ptr()).bytes).cast();
            (*block.as_ptr()).extra = [BUFFER_POINTER, buffer, BUFFER_SIZE, size, END];
        }
        Arguments(block)
    }

    /// What the launch takes.
    pub(crate) fn extra(&self) -> *mut *mut c_void {
        // SAFETY: the block lives as long as `self`.
        unsafe { (&raw mut (*self.0.as_ptr()).extra).cast() }
    }
}

impl Drop for Arguments {
    fn drop(&mut self) {
        // SAFETY: leaked in `new`, taken back once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_aligned_and_padded_and_do_not_move() {
        let arguments = Arguments::new(&[7; 65]);
        let before = arguments.extra();
        let mut kept = vec![arguments];
        kept.reserve(100);
        assert_eq!(before, kept[0].extra());
        // SAFETY: five pointers that `new` stored.
        let [pointer, buffer, size, length, end] = unsafe { *kept[0].extra().cast::<[*mut c_void; 5]>() };
        assert_eq!((pointer.addr(), size.addr(), end.addr()), (1, 2, 3));
        assert_eq!(buffer.addr() % 64, 0);
        // SAFETY: the length that was stored, and a buffer of two lines.
        unsafe {
            assert_eq!(*length.cast::<usize>(), 65);
            let bytes = std::slice::from_raw_parts(buffer.cast::<u8>(), 128);
            assert!(bytes[..65].iter().all(|&byte| byte == 7) && bytes[65..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn no_arguments_are_a_line_of_zeros() {
        assert_eq!(lines(&[]).len(), 1);
        assert_eq!(lines(&[1; 64]).len(), 1);
    }
}
