//! The kernels of Gated DeltaNet.

mod conv;
mod gates;
mod norm;
mod prepare;
mod scan;
mod step;

pub use conv::GdnConv;
pub use gates::GdnGates;
pub use norm::{GatedRmsNorm, L2Norm};
pub use prepare::GdnPrepare;
pub use scan::{GdnScan, unsupported};
pub use step::GdnStep;

use crate::kernel::Rows;

/// Whether every row begins at a multiple of `bytes`.
fn begins_at(rows: &Rows, bytes: usize) -> bool {
    rows.base.0.is_multiple_of(bytes as u64) && (rows.stride as usize * rows.dtype.bytes()).is_multiple_of(bytes)
}

/// Elements that a thread takes at once: 8 where all `rows` and the parts of `width` elements in them begin at multiples
/// of 16 bytes, else 1.
fn vector(rows: &[&Rows], width: u32) -> u32 {
    if width.is_multiple_of(8) && rows.iter().all(|rows| begins_at(rows, 16)) { 8 } else { 1 }
}
