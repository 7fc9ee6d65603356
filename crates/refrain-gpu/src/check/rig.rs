//! What cases need: buffers on the device, launches, times.

use crate::{Extent, KernelOptions, Kernels, LaunchSpec, StepCounts, StepLayout, StepPointers, Target};
use bytemuck::{Pod, cast_slice};
use half::{bf16, f16};
use refrain_device::{DeviceError, DeviceMemory, DevicePtr, Event, Launch, Runtime, Step, StepLimits, Stream};
use refrain_program::Dtype;
use std::cell::Cell;
use std::sync::Arc;

/// Some device memory with its contents' type known to the case.
pub struct Buffer {
    memory: DeviceMemory,
}

impl Buffer {
    /// First address.
    pub fn ptr(&self) -> DevicePtr {
        self.memory.base()
    }
}

/// A device with a stream and its kernels.
pub struct Rig {
    /// The device.
    pub runtime: Arc<dyn Runtime>,
    /// What kernels are chosen by.
    pub target: Target,
    kernels: Kernels,
    stream: Stream,
    random: Cell<u64>,
    timing: bool,
}

impl Rig {
    /// A rig on a device, with kernels from its compiler. With `timing`, [`Rig::time`] measures; else it runs its launches
    /// once.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(runtime: Arc<dyn Runtime>, seed: u64, timing: bool) -> Result<Rig, DeviceError> {
        Rig::with(runtime, KernelOptions::default(), seed, timing)
    }

    /// The same with kernels from elsewhere.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn with(
        runtime: Arc<dyn Runtime>,
        kernels: KernelOptions,
        seed: u64,
        timing: bool,
    ) -> Result<Rig, DeviceError> {
        Ok(Rig {
            target: Target::from(runtime.info()),
            kernels: Kernels::with(runtime.clone(), kernels),
            stream: Stream::new(&runtime)?,
            random: Cell::new(seed),
            runtime,
            timing,
        })
    }

    /// A random number (splitmix64).
    pub fn random_u64(&self) -> u64 {
        self.random.set(self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
        let mut z = self.random.get();
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Random numbers with mean 0 and deviation `scale`, nearly normal, as they are after a trip through `dtype`.
    pub fn random(&self, count: usize, scale: f32, dtype: Dtype) -> Vec<f32> {
        let value = |_| {
            let bits = self.random_u64();
            // The sum of four uniform numbers in [0, 2^16) has deviation sqrt(4 / 12) 2^16.
            let sum: u32 = (0..4).map(|part| (bits >> (16 * part)) as u16 as u32).sum();
            let value = (sum as f32 / 65536.0 - 2.0) * 1.732 * scale;
            rounded(value, dtype)
        };
        (0..count).map(value).collect()
    }

    /// A buffer with these values.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer, DeviceError> {
        let bytes: &[u8] = cast_slice(values);
        let memory = DeviceMemory::new(&self.runtime, bytes.len(), "a check")?;
        // SAFETY: both ranges exist; the copy is waited for.
        unsafe { self.runtime.copy_to_device(self.stream.id(), memory.base(), bytes.as_ptr(), bytes.len())? };
        self.stream.synchronize()?;
        Ok(Buffer { memory })
    }

    /// A buffer with these values in a type.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn upload_as(&self, values: &[f32], dtype: Dtype) -> Result<Buffer, DeviceError> {
        match dtype {
            Dtype::F32 => self.upload(values),
            Dtype::Bf16 => self.upload(&values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect::<Vec<u16>>()),
            Dtype::F16 => self.upload(&values.iter().map(|&v| f16::from_f32(v).to_bits()).collect::<Vec<u16>>()),
        }
    }

    /// A buffer of `count` NaN in a type, for what a kernel must write.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn poisoned(&self, count: usize, dtype: Dtype) -> Result<Buffer, DeviceError> {
        let bytes = count * dtype.bytes();
        let memory = DeviceMemory::new(&self.runtime, bytes, "a check")?;
        // SAFETY: the range exists.
        unsafe { self.runtime.fill(self.stream.id(), memory.base(), 0xFF, bytes)? };
        Ok(Buffer { memory })
    }

    /// A buffer of zero bytes.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn zeroed(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        let memory = DeviceMemory::new(&self.runtime, bytes, "a check")?;
        // SAFETY: the range exists.
        unsafe { self.runtime.fill(self.stream.id(), memory.base(), 0, bytes)? };
        Ok(Buffer { memory })
    }

    /// The first `count` values of a buffer, after all launches.
    ///
    /// # Errors
    /// [`DeviceError`], also of a launch that failed.
    pub fn download<T: Pod>(&self, buffer: &Buffer, count: usize) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); count];
        let bytes = size_of::<T>() * count;
        assert!(bytes <= buffer.memory.bytes());
        // SAFETY: both ranges exist; the copy is waited for.
        unsafe { self.runtime.copy_to_host(self.stream.id(), values.as_mut_ptr().cast(), buffer.ptr(), bytes)? };
        self.stream.synchronize()?;
        Ok(values)
    }

    /// The same as f32, from a type.
    ///
    /// # Errors
    /// As [`Rig::download`].
    pub fn download_as(&self, buffer: &Buffer, count: usize, dtype: Dtype) -> Result<Vec<f32>, DeviceError> {
        Ok(match dtype {
            Dtype::F32 => self.download(buffer, count)?,
            Dtype::Bf16 => {
                self.download(buffer, count)?.into_iter().map(|v: u16| bf16::from_bits(v).to_f32()).collect()
            }
            Dtype::F16 => self.download(buffer, count)?.into_iter().map(|v: u16| f16::from_bits(v).to_f32()).collect(),
        })
    }

    /// A step on the device: its block, the addresses of the parts, and the counts.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn step(&self, step: &Step, limits: &StepLimits) -> Result<(Buffer, StepPointers, StepCounts), DeviceError> {
        let layout = StepLayout::new(limits);
        let mut block = vec![0; layout.bytes];
        let (counts, _) = layout.write(step, &mut block);
        let buffer = self.upload(&block)?;
        let pointers = layout.pointers(buffer.ptr());
        Ok((buffer, pointers, counts))
    }

    /// Enqueues some launches, one after another, on grids as a graph has them that was recorded for more than there is:
    /// blocks that have nothing to do must touch nothing.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn launch(&self, specs: &[LaunchSpec], counts: &StepCounts) -> Result<(), DeviceError> {
        self.enqueue(&self.ready(specs, counts, 2)?)
    }

    /// The launches that have something to do, with their kernels loaded; `spare` blocks more than needed along each axis
    /// that depends on the step.
    fn ready<'a>(
        &self,
        specs: &'a [LaunchSpec],
        counts: &StepCounts,
        spare: u32,
    ) -> Result<Vec<(Launch<'a>, &'a [u8])>, DeviceError> {
        let with_blocks = specs.iter().filter_map(|spec| Some((spec, spec.blocks(counts)?)));
        let ready = with_blocks.map(|(spec, mut grid)| {
            for (blocks, extent) in grid.iter_mut().zip(&spec.grid) {
                *blocks += if matches!(extent, Extent::Each { .. }) { spare } else { 0 };
            }
            let launch = Launch {
                function: self.kernels.get(&spec.kernel)?.function,
                name: spec.kernel.entry,
                grid,
                threads: spec.kernel.threads,
                shared_bytes: spec.kernel.shared_bytes,
                overlap: true,
            };
            Ok((launch, &spec.arguments[..]))
        });
        ready.collect()
    }

    fn enqueue(&self, launches: &[(Launch<'_>, &[u8])]) -> Result<(), DeviceError> {
        for (launch, arguments) in launches {
            // SAFETY: the case keeps its buffers until it has downloaded the result.
            unsafe { self.runtime.launch(self.stream.id(), launch, arguments)? };
        }
        Ok(())
    }

    /// Device seconds of the launches: the median of several runs, each of as many repetitions as take a millisecond.
    /// `None` without timing.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn time(&self, specs: &[LaunchSpec], counts: &StepCounts) -> Result<Option<f64>, DeviceError> {
        if !self.timing {
            return Ok(None);
        }
        let launches = self.ready(specs, counts, 0)?;
        let (begin, end) = (Event::new(&self.runtime)?, Event::new(&self.runtime)?);
        let run = |repetitions: usize| -> Result<f64, DeviceError> {
            self.runtime.record(begin.id(), self.stream.id())?;
            for _ in 0..repetitions {
                self.enqueue(&launches)?;
            }
            self.runtime.record(end.id(), self.stream.id())?;
            self.runtime.synchronize_event(end.id())?;
            Ok(self.runtime.elapsed(begin.id(), end.id())?.as_secs_f64() / repetitions as f64)
        };
        run(1)?;
        let once = run(3)?;
        let repetitions = ((1e-3 / once.max(1e-9)) as usize).clamp(1, 200);
        let mut seconds = (0..7).map(|_| run(repetitions)).collect::<Result<Vec<f64>, _>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(Some(seconds[seconds.len() / 2]))
    }
}

/// A value after a trip through a type.
pub fn rounded(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
    }
}
