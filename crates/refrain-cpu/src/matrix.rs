//! Weight matrices, packed once when they are loaded into the one layout that every kernel reads.
//!
//! A panel holds 16 outputs, input by input, so that a kernel loads 16 weights of one input as one register and needs
//! no reductions. BF16 panels interleave pairs of inputs, `[inputs / 2][16][2]`: the operand of `vdpbf16ps`, and 32
//! inputs of it are one AMX tile. F16 and F32 panels are `[inputs][16]`. Missing outputs and inputs are zeros.

use half::{bf16, f16};
use refrain_program::{Dtype, TensorView, WeightPart};

/// Outputs in a panel.
pub(crate) const PANEL: usize = 16;

/// BF16 panels are padded to whole AMX tiles of this many inputs.
pub(crate) const TILE_INPUTS: usize = 32;

/// A packed `[outputs, inputs]` matrix somewhere in the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// First panel, aligned to 64 bytes.
    pub(crate) data: *const u8,
    pub(crate) dtype: Dtype,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

// SAFETY: the packed weights never change after loading and live as long as the arena that the backend owns.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

/// Bytes of one panel.
pub(crate) fn panel_bytes(dtype: Dtype, inputs: usize) -> usize {
    match dtype {
        Dtype::Bf16 => inputs.next_multiple_of(TILE_INPUTS) * PANEL * 2,
        Dtype::F16 => inputs * PANEL * 2,
        Dtype::F32 => inputs * PANEL * 4,
    }
}

/// Bytes of the whole packed matrix.
pub(crate) fn packed_bytes(dtype: Dtype, outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(PANEL) * panel_bytes(dtype, inputs)
}

impl Matrix {
    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// First byte of a panel.
    pub(crate) fn panel(&self, index: usize) -> *const u8 {
        debug_assert!(index < self.panels());
        self.data.wrapping_add(index * panel_bytes(self.dtype, self.inputs))
    }

    /// Widens row `output` (one embedding) into `to`, `[inputs]`.
    ///
    /// # Safety
    /// `to` is good for `inputs` floats; the matrix has been packed.
    pub(crate) unsafe fn read_row(&self, output: usize, to: *mut f32) {
        let panel = self.panel(output / PANEL);
        let lane = output % PANEL;
        for input in 0..self.inputs {
            // SAFETY: inside the panel, whose layout is given in the module's documentation.
            unsafe {
                let value = match self.dtype {
                    Dtype::Bf16 => {
                        let index = (input / 2 * PANEL + lane) * 2 + input % 2;
                        bf16::from_bits(*panel.cast::<u16>().add(index)).to_f32()
                    }
                    Dtype::F16 => f16::from_bits(*panel.cast::<u16>().add(input * PANEL + lane)).to_f32(),
                    Dtype::F32 => *panel.cast::<f32>().add(input * PANEL + lane),
                };
                *to.add(input) = value;
            }
        }
    }
}

/// One row of a checkpoint tensor, whatever its alignment.
struct SourceRow<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
}

impl SourceRow<'_> {
    fn bits(&self, index: usize) -> u16 {
        u16::from_le_bytes([self.bytes[2 * index], self.bytes[2 * index + 1]])
    }

    fn value(&self, index: usize) -> f32 {
        match self.dtype {
            Dtype::Bf16 => bf16::from_bits(self.bits(index)).to_f32(),
            Dtype::F16 => f16::from_bits(self.bits(index)).to_f32(),
            Dtype::F32 => {
                let at = 4 * index;
                f32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
            }
        }
    }
}

/// Where the rows of a packed matrix come from, in order.
pub(crate) struct MatrixSource<'a> {
    /// The parts with their tensors; the shapes have been checked.
    pub(crate) parts: Vec<(&'a WeightPart, TensorView<'a>)>,
    pub(crate) inputs: usize,
}

impl MatrixSource<'_> {
    fn row(&self, mut output: usize) -> Option<SourceRow<'_>> {
        for (part, tensor) in &self.parts {
            if output < part.rows {
                let bytes = self.inputs * tensor.dtype.bytes();
                let start = part.source_row(output) * bytes;
                return Some(SourceRow { bytes: &tensor.data[start..start + bytes], dtype: tensor.dtype });
            }
            output -= part.rows;
        }
        None
    }
}

/// Packs panel `index` of `matrix`.
///
/// # Safety
/// The panel's memory is writable and nobody else touches it.
pub(crate) unsafe fn pack_panel(matrix: &Matrix, source: &MatrixSource<'_>, index: usize) {
    let rows: [Option<SourceRow<'_>>; PANEL] = std::array::from_fn(|lane| {
        let output = index * PANEL + lane;
        if output < matrix.outputs { source.row(output) } else { None }
    });
    let panel = matrix.panel(index).cast_mut();
    let inputs = matrix.inputs;
    let same = rows.iter().flatten().all(|row| row.dtype == matrix.dtype);
    // Indices stay inside the panel.
    match matrix.dtype {
        Dtype::Bf16 => {
            let padded = inputs.next_multiple_of(TILE_INPUTS);
            // SAFETY: a whole panel.
            let pairs = unsafe { std::slice::from_raw_parts_mut(panel.cast::<[[u16; 2]; PANEL]>(), padded / 2) };
            for (lane, row) in rows.iter().enumerate() {
                let Some(row) = row else {
                    pairs.iter_mut().for_each(|pair| pair[lane] = [0; 2]);
                    continue;
                };
                let bits = |input: usize| match (input < inputs, same) {
                    (false, _) => 0,
                    (true, true) => row.bits(input),
                    (true, false) => bf16::from_f32(row.value(input)).to_bits(),
                };
                if same {
                    // The common case, kept free of branches: the copy of a bf16 checkpoint.
                    for (pair, bytes) in pairs.iter_mut().zip(row.bytes.chunks_exact(4)) {
                        pair[lane] =
                            [u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]])];
                    }
                } else {
                    for (k, pair) in pairs.iter_mut().enumerate().take(inputs / 2) {
                        pair[lane] = [bits(2 * k), bits(2 * k + 1)];
                    }
                }
                for (k, pair) in pairs.iter_mut().enumerate().skip(inputs / 2) {
                    pair[lane] = [bits(2 * k), bits(2 * k + 1)];
                }
            }
        }
        Dtype::F16 => {
            // SAFETY: a whole panel.
            let panel = unsafe { std::slice::from_raw_parts_mut(panel.cast::<[u16; PANEL]>(), inputs) };
            for (lane, row) in rows.iter().enumerate() {
                for (input, out) in panel.iter_mut().enumerate() {
                    out[lane] = row.as_ref().map_or(0, |row| match row.dtype {
                        Dtype::F16 => row.bits(input),
                        _ => f16::from_f32(row.value(input)).to_bits(),
                    });
                }
            }
        }
        Dtype::F32 => {
            // SAFETY: a whole panel.
            let panel = unsafe { std::slice::from_raw_parts_mut(panel.cast::<[f32; PANEL]>(), inputs) };
            for (lane, row) in rows.iter().enumerate() {
                for (input, out) in panel.iter_mut().enumerate() {
                    out[lane] = row.as_ref().map_or(0.0, |row| row.value(input));
                }
            }
        }
    }
}
