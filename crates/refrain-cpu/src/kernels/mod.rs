//! The kernels that aren't matrix products: norms, gates, convolution, the gated delta rule, the KV cache, attention.
//!
//! Conventions. Activations are f32 in [`Rows`]. Work comes in items that any worker thread may run; the result of an
//! item never depends on where it runs or on what else the step holds, to the bit. Every sum is one chain of
//! fused multiply-adds in a fixed order, so register tiles may be shaped freely. Nothing here allocates: scratch memory
//! is passed in, its size given by the `..._scratch_floats` functions.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod gdn_conv;
pub(crate) mod gdn_scan;
pub(crate) mod kv_cache;
pub(crate) mod kv_element;
pub(crate) mod norm;
mod tile;

#[cfg(test)]
mod testing;

use crate::simd::{LANES, Simd};

/// Rows of f32 with a distance between them: a view of some columns of an activation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// First row, first column of the view.
    pub data: *mut f32,
    /// Floats from one row to the next.
    pub stride: usize,
}

// SAFETY: a plain address; whoever dereferences it answers for the accesses.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    /// Start of row `index`.
    ///
    /// # Safety
    /// The row must be part of the activation.
    #[inline(always)]
    pub unsafe fn row(self, index: usize) -> *mut f32 {
        self.data.wrapping_add(index * self.stride)
    }

    /// The same rows from column `column` on.
    pub fn at_column(self, column: usize) -> Rows {
        Rows { data: self.data.wrapping_add(column), ..self }
    }
}

/// The first element of a state pool, shared by the workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<T>(pub *mut T);

// SAFETY: a plain address; whoever dereferences it answers for the accesses.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

/// `width` rounded up to whole registers of [`LANES`] floats.
pub(crate) const fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// The first `count` floats, at most [`LANES`], zeros after them.
#[inline(always)]
unsafe fn load_up_to<S: Simd>(from: *const f32, count: usize) -> S::V {
    // SAFETY: the caller has `count` floats there and a processor with the level.
    unsafe { if count >= LANES { S::load(from) } else { S::load_part(from, count) } }
}

/// Stores the first `count` lanes, at most [`LANES`].
#[inline(always)]
unsafe fn store_up_to<S: Simd>(to: *mut f32, value: S::V, count: usize) {
    // SAFETY: as for `load_up_to`.
    unsafe { if count >= LANES { S::store(to, value) } else { S::store_part(to, value, count) } }
}
