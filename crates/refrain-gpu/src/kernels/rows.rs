//! What all kernels on rows ask about their operands.

use crate::{Count, Rows, StepPointers};
use refrain_device::DevicePtr;

/// The address of a count in the header of the step: kernels read how many rows there are.
///
/// # Panics
/// For counts that no activation has as its rows.
pub(super) fn row_count(step: &StepPointers, count: Count) -> u64 {
    match count {
        Count::Tokens => step.header,
        Count::LogitRows => step.header + 8,
        _ => panic!("rows are tokens or logit rows, not {count:?}"),
    }
}

/// Whether memory can be read 16 bytes at a time from here on.
pub(super) fn is_aligned(address: DevicePtr) -> bool {
    address.0.is_multiple_of(16)
}

/// Whether all rows begin at multiples of 16 bytes and their widths are multiples of 8 elements.
pub(super) fn are_wide(operands: &[Rows]) -> bool {
    operands.iter().all(|rows| {
        let stride = rows.stride as usize * rows.dtype.bytes();
        is_aligned(rows.base) && stride.is_multiple_of(16) && rows.width.is_multiple_of(8)
    })
}
