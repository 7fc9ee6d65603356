//! Weights from the checkpoint into device memory: several threads, each with a pinned buffer in two halves, so that
//! reading pages and copying to the device go on side by side.

use crate::layout::Layout;
use half::{bf16, f16};
use refrain_device::{DeviceError, DevicePtr, Event, PinnedMemory, Runtime, Stream};
use refrain_program::{Dtype, Program, TensorView, WeightDef, WeightKind, WeightPart, WeightSource};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of one half of a thread's staging buffer.
const STAGE_BYTES: usize = 8 << 20;

/// Threads that copy. More don't help: a few saturate the bus.
const THREADS: usize = 8;

/// Some rows of a part of a weight.
struct Piece<'a> {
    weight: &'a WeightDef,
    part: &'a WeightPart,
    tensor: TensorView<'a>,
    /// Pieces of the weight that have not been read.
    left: &'a AtomicUsize,
    /// Rows of the part.
    rows: std::ops::Range<usize>,
    /// Where they go on the device.
    to: DevicePtr,
}

/// Copies every weight of the program to its place behind `base`. Each is released as soon as it has been read.
///
/// # Errors
/// [`DeviceError::Weight`] naming a weight that is missing or has another shape; what the device says.
pub(crate) fn upload_weights(
    runtime: &Arc<dyn Runtime>,
    program: &Program,
    source: &dyn WeightSource,
    layout: &Layout,
    base: DevicePtr,
) -> Result<(), DeviceError> {
    let release = |weight: &WeightDef| weight.parts.iter().for_each(|part| source.release(&part.source));
    let left: Vec<AtomicUsize> = program.weights.iter().map(|_| AtomicUsize::new(0)).collect();
    let mut pieces = Vec::new();
    for ((weight, &offset), left) in program.weights.iter().zip(&layout.weights).zip(&left) {
        match weight.kind {
            WeightKind::Convolution { .. } => {
                // Small, and transposed as a whole: taps first, so that neighbouring threads read neighbours.
                let values = transposed(weight, source)?;
                copy(runtime, base.offset(offset), bytemuck::cast_slice(&values))?;
                release(weight);
            }
            _ => cut(weight, source, base.offset(offset), left, &mut pieces)?,
        }
    }
    let threads = THREADS.min(std::thread::available_parallelism().map_or(1, usize::from)).min(pieces.len().max(1));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| stage(runtime, &pieces, &next, &release))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a copying thread does not panic"))
    })
}

/// Copies some bytes and waits.
pub(crate) fn copy(runtime: &Arc<dyn Runtime>, to: DevicePtr, bytes: &[u8]) -> Result<(), DeviceError> {
    let stream = Stream::new(runtime)?;
    // SAFETY: the caller's range on the device; the copy is waited for.
    unsafe { runtime.copy_to_device(stream.id(), to, bytes.as_ptr(), bytes.len())? };
    stream.synchronize()
}

/// Takes pieces until there are none: converts or copies each into a half of the buffer, whose last copy has ended.
/// `release` is told of weights that have been read.
fn stage(
    runtime: &Arc<dyn Runtime>,
    pieces: &[Piece<'_>],
    next: &AtomicUsize,
    release: &(dyn Fn(&WeightDef) + Sync),
) -> Result<(), DeviceError> {
    let stream = Stream::new(runtime)?;
    let pinned = PinnedMemory::new(runtime, 2 * STAGE_BYTES)?;
    let free = [Event::new(runtime)?, Event::new(runtime)?];
    let mut used = 0;
    let mut run = || -> Result<(), DeviceError> {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let half = used % 2;
            if used >= 2 {
                runtime.synchronize_event(free[half].id())?;
            }
            used += 1;
            let at = pinned.base().wrapping_add(half * STAGE_BYTES);
            // SAFETY: pieces are no larger than a half, and the half is idle.
            let buffer = unsafe { std::slice::from_raw_parts_mut(at, STAGE_BYTES) };
            let bytes = fill(piece, buffer);
            // SAFETY: the piece's place on the device; the half is not touched before its event has passed.
            unsafe { runtime.copy_to_device(stream.id(), piece.to, at, bytes)? };
            runtime.record(free[half].id(), stream.id())?;
            if piece.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                release(piece.weight);
            }
        }
        Ok(())
    };
    let result = run();
    // Also after an error: the buffer must outlive its copies.
    stream.synchronize().and(result)
}

/// Bytes of an element of a weight on the device.
fn element_bytes(weight: &WeightDef) -> usize {
    match weight.kind {
        WeightKind::Matrix { .. } => weight.dtype.bytes(),
        WeightKind::Vector { .. } | WeightKind::Convolution { .. } => 4,
    }
}

/// Elements of a row of a part.
fn row_elements(kind: WeightKind) -> usize {
    match kind {
        WeightKind::Matrix { inputs, .. } => inputs,
        WeightKind::Vector { .. } => 1,
        WeightKind::Convolution { taps, .. } => taps,
    }
}

/// Cuts a weight into pieces of at most [`STAGE_BYTES`].
fn cut<'a>(
    weight: &'a WeightDef,
    source: &'a dyn WeightSource,
    to: DevicePtr,
    left: &'a AtomicUsize,
    pieces: &mut Vec<Piece<'a>>,
) -> Result<(), DeviceError> {
    let row_bytes = row_elements(weight.kind) * element_bytes(weight);
    let most = STAGE_BYTES / row_bytes;
    if most == 0 {
        let why = format!("a row of it has {row_bytes} bytes, and at most {STAGE_BYTES} can be copied at a time");
        return Err(DeviceError::Weight { name: weight.name.clone(), why });
    }
    let mut offset = 0;
    for part in &weight.parts {
        let tensor = checked(weight, part, source)?;
        let mut row = 0;
        while row < part.rows {
            let rows = row..part.rows.min(row + most);
            row = rows.end;
            let len = rows.len();
            pieces.push(Piece { weight, part, tensor, left, rows, to: to.offset(offset) });
            left.fetch_add(1, Ordering::Relaxed);
            offset += len * row_bytes;
        }
    }
    Ok(())
}

/// Writes a piece as the device wants it; gives the bytes.
fn fill(piece: &Piece<'_>, buffer: &mut [u8]) -> usize {
    let (weight, part, tensor) = (piece.weight, piece.part, &piece.tensor);
    let elements = row_elements(weight.kind);
    let to_type = match weight.kind {
        WeightKind::Matrix { .. } => weight.dtype,
        _ => Dtype::F32,
    };
    let (from_bytes, to_bytes) = (tensor.dtype.bytes() * elements, to_type.bytes() * elements);
    let mut written = 0;
    let mut row = piece.rows.start;
    while row < piece.rows.end {
        // Consecutive source rows are copied together.
        let run = (part.run - row % part.run).min(piece.rows.end - row);
        let first = part.source_row(row);
        let from = &tensor.data[first * from_bytes..(first + run) * from_bytes];
        let to = &mut buffer[written..written + run * to_bytes];
        if tensor.dtype == to_type {
            to.copy_from_slice(from);
        } else {
            convert(from, tensor.dtype, to, to_type);
        }
        written += run * to_bytes;
        row += run;
    }
    written
}

/// Converts elements, through f32.
fn convert(from: &[u8], from_type: Dtype, to: &mut [u8], to_type: Dtype) {
    let elements = from.chunks_exact(from_type.bytes()).map(|bytes| element(bytes, from_type));
    match to_type {
        Dtype::F32 => to.chunks_exact_mut(4).zip(elements).for_each(|(to, v)| to.copy_from_slice(&v.to_le_bytes())),
        Dtype::Bf16 => to
            .chunks_exact_mut(2)
            .zip(elements)
            .for_each(|(to, v)| to.copy_from_slice(&bf16::from_f32(v).to_le_bytes())),
        Dtype::F16 => {
            to.chunks_exact_mut(2)
                .zip(elements)
                .for_each(|(to, v)| to.copy_from_slice(&f16::from_f32(v).to_le_bytes()));
        }
    }
}

fn element(bytes: &[u8], dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().expect("four bytes")),
        Dtype::Bf16 => bf16::from_le_bytes(bytes.try_into().expect("two bytes")).to_f32(),
        Dtype::F16 => f16::from_le_bytes(bytes.try_into().expect("two bytes")).to_f32(),
    }
}

/// A convolution as `[taps, channels]` f32.
fn transposed(weight: &WeightDef, source: &dyn WeightSource) -> Result<Vec<f32>, DeviceError> {
    let WeightKind::Convolution { channels, taps } = weight.kind else { unreachable!("the caller matched it") };
    let mut values = vec![0.0; channels * taps];
    let mut channel = 0;
    for part in &weight.parts {
        let tensor = checked(weight, part, source)?;
        let bytes = tensor.dtype.bytes();
        for row in 0..part.rows {
            for tap in 0..taps {
                let at = (part.source_row(row) * taps + tap) * bytes;
                values[tap * channels + channel] = element(&tensor.data[at..at + bytes], tensor.dtype);
            }
            channel += 1;
        }
    }
    Ok(values)
}

/// The tensor of a part.
fn checked<'a>(
    weight: &WeightDef,
    part: &WeightPart,
    source: &'a dyn WeightSource,
) -> Result<TensorView<'a>, DeviceError> {
    weight.tensor(part, source).map_err(|why| DeviceError::Weight { name: part.source.clone(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;
    use refrain_device::{DeviceMemory, PoolSizes, StepLimits};
    use refrain_program::BuildOptions;
    use refrain_sim::{SimOptions, SimRuntime};
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    /// Zeros for every tensor of a program, and which of them have been released.
    struct Zeros {
        tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
        released: Mutex<Vec<String>>,
    }

    impl Zeros {
        fn of(program: &Program) -> Zeros {
            let tensor = |weight: &WeightDef, part: &WeightPart| {
                let shape = match weight.kind {
                    WeightKind::Matrix { inputs, .. } => vec![part.source_rows, inputs],
                    WeightKind::Vector { .. } => vec![part.source_rows],
                    WeightKind::Convolution { taps, .. } => vec![part.source_rows, 1, taps],
                };
                let bytes = vec![0; shape.iter().product::<usize>() * Dtype::F32.bytes()];
                (part.source.clone(), (shape, bytes))
            };
            let parts = program.weights.iter().flat_map(|weight| weight.parts.iter().map(move |part| (weight, part)));
            Zeros { tensors: parts.map(|(weight, part)| tensor(weight, part)).collect(), released: Mutex::default() }
        }
    }

    impl WeightSource for Zeros {
        fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
            self.tensors.get(name).map(|(shape, data)| TensorView { dtype: Dtype::F32, shape, data })
        }

        fn release(&self, name: &str) {
            self.released.lock().unwrap().push(name.to_owned());
        }
    }

    #[test]
    fn a_weight_is_released_when_it_has_been_read_and_no_sooner() {
        let json = r#"{"architectures": ["Qwen3_5ForCausalLM"], "num_hidden_layers": 4, "hidden_size": 64,
            "intermediate_size": 128, "vocab_size": 256}"#;
        let config = refrain_model::ModelConfig::from_json(json).unwrap();
        let types = BuildOptions { weights: Dtype::F32, activations: Dtype::F32, kv_cache: Dtype::F32.into() };
        let program = Program::build(&config, &types).unwrap();
        let runtime: Arc<dyn Runtime> = SimRuntime::new(SimOptions::default());
        let limits = StepLimits { max_tokens: 64, max_segments: 1, max_logit_rows: 64, max_model_len: 64 };
        let target = Target::from(runtime.info());
        let layout = Layout::new(&program, &limits, &PoolSizes { blocks: 4, slots: 1 }, &target);

        let source = Zeros::of(&program);
        let memory = DeviceMemory::new(&runtime, layout.footprint.weights, "weights").unwrap();
        upload_weights(&runtime, &program, &source, &layout, memory.base()).unwrap();
        let mut released = source.released.into_inner().unwrap();
        released.sort();
        released.dedup();
        let all: Vec<&String> = source.tensors.keys().collect();
        assert_eq!(released.iter().collect::<Vec<_>>(), all);

        // Without room for the last one: it is not released, though it has been looked up, and others are, although the
        // copying has not come to its end.
        let source = Zeros::of(&program);
        let last = program.weights.iter().rfind(|weight| !matches!(weight.kind, WeightKind::Convolution { .. }));
        let (last, &end) = last.zip(layout.weights.last()).unwrap();
        let memory = DeviceMemory::new(&runtime, end, "too few weights").unwrap();
        upload_weights(&runtime, &program, &source, &layout, memory.base()).unwrap_err();
        let released = source.released.into_inner().unwrap();
        assert!(released.len() > 4 && !released.contains(&last.parts[0].source), "{released:?}");
    }
}
