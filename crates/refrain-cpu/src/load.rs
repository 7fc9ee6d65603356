//! Weights from the checkpoint into the arena.

use crate::layout::Layout;
use crate::matrix::{Matrix, MatrixSource, pack_panel};
use crate::pool::Pool;
use half::{bf16, f16};
use refrain_device::{Arena, DeviceError};
use refrain_program::{Dtype, Program, TensorView, WeightDef, WeightKind, WeightPart, WeightSource};

/// A weight in the arena.
#[derive(Clone, Copy)]
pub(crate) enum Weight {
    Matrix(Matrix),
    /// f32, a convolution as `[taps, channels]`.
    Floats(Floats),
}

/// Some floats of the arena that never change after loading.
#[derive(Clone, Copy)]
pub(crate) struct Floats {
    data: *const f32,
    len: usize,
}

// SAFETY: read-only once loaded, and the arena outlives it.
unsafe impl Send for Floats {}
// SAFETY: as above.
unsafe impl Sync for Floats {}

impl Floats {
    /// # Safety
    /// The arena must live as long as the slice is used.
    pub(crate) unsafe fn slice<'a>(self) -> &'a [f32] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

/// Packs every weight of `program` into the arena, on all threads.
///
/// The largest come first and each is released once it is packed, so that the pages of the checkpoint and the packed
/// copy are never both in memory as a whole.
///
/// # Errors
/// [`DeviceError::Weight`] naming a weight that is missing or has another shape.
pub(crate) fn load_weights(
    program: &Program,
    source: &dyn WeightSource,
    layout: &Layout,
    arena: &Arena,
    pool: &mut Pool,
) -> Result<Vec<Weight>, DeviceError> {
    let place = |index: usize| arena.base().wrapping_add(layout.weights[index]);
    let mut order: Vec<usize> = (0..program.weights.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(program.weights[index].kind.elements()));
    for index in order {
        let def = &program.weights[index];
        let parts = parts(def, source)?;
        match def.kind {
            WeightKind::Matrix { outputs, inputs } => {
                let matrix = Matrix { data: place(index), dtype: def.dtype, outputs, inputs };
                let from = MatrixSource { parts, inputs };
                pool.run(matrix.panels(), &|panel, _| {
                    // SAFETY: the layout gives each matrix its own bytes, each item its own panel.
                    unsafe { pack_panel(&matrix, &from, panel) }
                });
            }
            WeightKind::Vector { .. } => {
                let mut floats = floats_at(place(index), def);
                for (part, tensor) in parts {
                    for row in 0..part.rows {
                        let (first, rest) = floats.split_first_mut().expect("parts add up to the vector");
                        *first = element(&tensor, part.source_row(row));
                        floats = rest;
                    }
                }
            }
            WeightKind::Convolution { channels, taps } => {
                let floats = floats_at(place(index), def);
                let mut channel = 0;
                for (part, tensor) in parts {
                    for row in 0..part.rows {
                        for tap in 0..taps {
                            floats[tap * channels + channel] = element(&tensor, part.source_row(row) * taps + tap);
                        }
                        channel += 1;
                    }
                }
            }
        }
        def.parts.iter().for_each(|part| source.release(&part.source));
    }
    Ok(program
        .weights
        .iter()
        .enumerate()
        .map(|(index, def)| match def.kind {
            WeightKind::Matrix { outputs, inputs } => {
                Weight::Matrix(Matrix { data: place(index), dtype: def.dtype, outputs, inputs })
            }
            _ => Weight::Floats(Floats { data: place(index).cast_const().cast(), len: def.kind.elements() }),
        })
        .collect())
}

fn floats_at<'a>(at: *mut u8, def: &WeightDef) -> &'a mut [f32] {
    // SAFETY: the layout gives this weight its own page-aligned bytes; the caller drops the slice before anyone reads.
    unsafe { std::slice::from_raw_parts_mut(at.cast::<f32>(), def.kind.elements()) }
}

/// The parts of a weight with their tensors, shapes checked.
fn parts<'a>(
    def: &'a WeightDef,
    source: &'a dyn WeightSource,
) -> Result<Vec<(&'a WeightPart, TensorView<'a>)>, DeviceError> {
    def.parts
        .iter()
        .map(|part| {
            let fail = |why| DeviceError::Weight { name: part.source.clone(), why };
            let tensor = def.tensor(part, source).map_err(fail)?;
            Ok((part, tensor))
        })
        .collect()
}

fn element(tensor: &TensorView<'_>, index: usize) -> f32 {
    let bytes = |size: usize| &tensor.data[index * size..(index + 1) * size];
    match tensor.dtype {
        Dtype::F32 => f32::from_le_bytes(bytes(4).try_into().expect("four bytes")),
        Dtype::Bf16 => bf16::from_le_bytes(bytes(2).try_into().expect("two bytes")).to_f32(),
        Dtype::F16 => f16::from_le_bytes(bytes(2).try_into().expect("two bytes")).to_f32(),
    }
}
