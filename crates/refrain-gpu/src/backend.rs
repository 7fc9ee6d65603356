//! The backend itself, eager: copies the step over, enqueues the launches of every op, copies the result back.

use crate::kernel::Count;
use crate::kernels::sample::{Sample, can_choose, sampling_limits};
use crate::layout::Layout;
use crate::loader::{KernelOptions, Kernels, PrepareReport};
use crate::lower::{self, Action, Lowered, Places};
use crate::step_block::StepCounts;
use crate::supported::check_program;
use crate::upload::{copy, upload_weights};
use crate::{LaunchSpec, Target};
use refrain_device::{
    Backend, Cell, Chosen, DeviceError, DeviceInfo, DeviceMemory, DevicePtr, FunctionId, GemmOperands, GemmShape,
    Launch, PinnedMemory, PoolSizes, Runtime, SamplingLimits, Step, StepLimits, StepOutput, Stream,
};
use refrain_program::{Program, WeightSource};
use std::sync::Arc;

/// How the backend is loaded.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Where kernels come from.
    pub kernels: KernelOptions,
    /// Whether products of many rows may go to the vendor's library, where there is one.
    pub library: bool,
}

impl Default for GpuOptions {
    /// With the library, and kernels from the compiler only.
    fn default() -> GpuOptions {
        GpuOptions { kernels: KernelOptions::default(), library: true }
    }
}

/// A program with its weights on a GPU.
pub struct GpuBackend {
    runtime: Arc<dyn Runtime>,
    info: DeviceInfo,
    vocab_size: usize,
    limits: StepLimits,
    pools: PoolSizes,
    layout: Layout,
    ops: Vec<ReadyOp>,
    /// Scratch of the matrix library.
    gemm_workspace: (DevicePtr, usize),
    /// Where the logits lie.
    logits: DevicePtr,
    /// What was compiled and loaded.
    report: PrepareReport,
    stream: Stream,
    step_block: PinnedMemory,
    host_logits: PinnedMemory,
    sample: Sample,
    host_result: PinnedMemory,
    chosen: Chosen,
    begun: Option<Begun>,
    /// Kernels and memory are given back last: fields are dropped in this order.
    _kernels: Kernels,
    memory: DeviceMemory,
}

/// A step that has begun.
struct Begun {
    /// How much of it is copied to the host.
    bytes: usize,
    /// Where tokens are chosen, how many log-probabilities each logit row wants.
    wanted: Option<Vec<Option<u32>>>,
}

/// An op with its launches for each range of rows.
struct ReadyOp {
    /// What the ranges count.
    count: Count,
    /// Up to how many rows, and what is done then; ascending, the last has no end.
    variants: Vec<(u32, Vec<ReadyAction>)>,
}

enum ReadyAction {
    Launch { spec: LaunchSpec, function: FunctionId },
    Gemm { shape: GemmShape, x: DevicePtr, weight: DevicePtr, out: DevicePtr },
}

impl GpuBackend {
    /// Reserves the memory, compiles or loads the kernels, and copies the weights.
    ///
    /// `progress` is told of kernels that are ready, out of how many.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn load(
        runtime: Arc<dyn Runtime>,
        program: &Program,
        weights: &dyn WeightSource,
        limits: StepLimits,
        pools: PoolSizes,
        options: &GpuOptions,
        progress: &dyn Fn(usize, usize),
    ) -> Result<GpuBackend, DeviceError> {
        check_program(&*runtime, program, &limits, options.library)?;
        let target = Target::from(runtime.info());
        let layout = Layout::new(program, &limits, &pools, &target);
        let memory = DeviceMemory::new(&runtime, layout.bytes, "weights, activations and state pools")?;
        let base = memory.base();
        let gemm = options.library && runtime.gemm().is_some();
        let places = Places { program, layout: &layout, base, target: &target, gemm };
        let mut lowered = places.lower();
        let sample = places.sample(&limits);
        // Its count is 0 in steps that want logits.
        lowered.push(places.lower_sampling(&limits));
        let kernels = Kernels::with(runtime.clone(), options.kernels.clone());
        let report = kernels.prepare(&lower::kernels(&lowered), progress)?;
        let ops = lowered.into_iter().map(|op| ready(op, &kernels)).collect::<Result<Vec<_>, _>>()?;
        for (rope, offset) in &layout.frequencies {
            copy(&runtime, base.offset(*offset), bytemuck::cast_slice(&rope.frequencies()))?;
        }
        upload_weights(&runtime, program, weights, &layout, base)?;

        let stream = Stream::new(&runtime)?;
        // Counters in the scratch memory begin at zero; the kernels leave them so.
        let counters = [
            (layout.attention_workspace, layout.workspaces.attention),
            (layout.scan_workspace, layout.workspaces.scan),
            (layout.sample_workspace, layout.workspaces.sample),
        ];
        for (offset, bytes) in counters.into_iter().filter(|(_, bytes)| *bytes > 0) {
            // SAFETY: the arena's own range.
            unsafe { runtime.fill(stream.id(), base.offset(offset), 0, bytes)? };
        }
        stream.synchronize()?;
        let logits_bytes = limits.max_logit_rows * program.vocab_size * 4;
        let info = DeviceInfo {
            kind: runtime.info().kind,
            name: runtime.info().name.clone(),
            compute: format!("{}, eager", runtime.info().arch),
        };
        Ok(GpuBackend {
            info,
            vocab_size: program.vocab_size,
            limits,
            pools,
            ops,
            gemm_workspace: (base.offset(layout.gemm_workspace), layout.workspaces.gemm),
            logits: base.offset(layout.tensor(program.logits.tensor)),
            report,
            step_block: PinnedMemory::new(&runtime, layout.step_layout.bytes)?,
            host_logits: PinnedMemory::new(&runtime, logits_bytes)?,
            host_result: PinnedMemory::new(&runtime, sample.space.result_bytes())?,
            sample,
            chosen: Chosen::default(),
            begun: None,
            layout,
            stream,
            _kernels: kernels,
            memory,
            runtime,
        })
    }

    /// What was compiled and loaded.
    pub fn report(&self) -> &PrepareReport {
        &self.report
    }

    /// Enqueues every op.
    fn enqueue(&self, counts: &StepCounts) -> Result<(), DeviceError> {
        for op in &self.ops {
            let rows = counts.of(op.count);
            if rows == 0 {
                continue;
            }
            let variant = op.variants.iter().find(|(most, _)| rows <= *most).expect("the last range has no end");
            for action in &variant.1 {
                self.run(action, rows, counts)?;
            }
        }
        Ok(())
    }

    fn run(&self, action: &ReadyAction, rows: u32, counts: &StepCounts) -> Result<(), DeviceError> {
        match action {
            ReadyAction::Launch { spec, function } => {
                let Some(grid) = spec.blocks(counts) else { return Ok(()) };
                let launch = Launch {
                    function: *function,
                    name: spec.kernel.entry,
                    grid,
                    threads: spec.kernel.threads,
                    shared_bytes: spec.kernel.shared_bytes,
                    overlap: true,
                };
                // SAFETY: all addresses in the arguments are in the arena, which lives as long as the backend.
                unsafe { self.runtime.launch(self.stream.id(), &launch, &spec.arguments) }
            }
            &ReadyAction::Gemm { shape, x, weight, out } => {
                let shape = GemmShape { m: rows as usize, ..shape };
                let (workspace, workspace_bytes) = self.gemm_workspace;
                let gemm = self.runtime.gemm().expect("it was lowered for a library of products");
                let operands = GemmOperands { x, weight, out, workspace, workspace_bytes };
                // SAFETY: as above.
                unsafe { gemm.run(self.stream.id(), &shape, &operands) }
            }
        }
    }
}

fn ready(op: Lowered, kernels: &Kernels) -> Result<ReadyOp, DeviceError> {
    let action = |action: Action| match action {
        Action::Launch(spec) => {
            let function = kernels.get(&spec.kernel)?.function;
            Ok(ReadyAction::Launch { spec, function })
        }
        Action::Gemm { shape, x, weight, out } => Ok(ReadyAction::Gemm { shape, x, weight, out }),
    };
    let variants = op.variants.into_iter().map(|(most, actions)| {
        let actions = actions.into_iter().map(action).collect::<Result<Vec<_>, DeviceError>>()?;
        Ok((most, actions))
    });
    Ok(ReadyOp { count: op.count, variants: variants.collect::<Result<_, DeviceError>>()? })
}

impl Backend for GpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn sampling(&self) -> Option<SamplingLimits> {
        Some(sampling_limits(&self.limits))
    }

    fn begin(&mut self, step: &Step, _: Cell) -> Result<(), DeviceError> {
        step.validate(&self.limits, &self.pools, self.vocab_size)?;
        // SAFETY: the last step's copies have been waited for.
        let block = unsafe { self.step_block.slice() };
        let (mut counts, bytes) = self.layout.step_layout.write(step, block);
        if !can_choose(step) {
            counts.without_sampling();
        }
        let stream = self.stream.id();
        let to = self.memory.base().offset(self.layout.step);
        // SAFETY: both ranges exist; the block is not written before the step has ended.
        unsafe { self.runtime.copy_to_device(stream, to, self.step_block.base(), bytes)? };
        let enqueued = self.enqueue(&counts);
        let sampled = counts.sampled > 0;
        let (to, from, bytes) = if sampled {
            let (offset, bytes) = self.sample.space.results(step);
            (self.host_result.base(), self.sample.workspace.offset(offset), bytes)
        } else {
            (self.host_logits.base(), self.logits, step.logit_rows.len() * self.vocab_size * 4)
        };
        let copied = match enqueued {
            // SAFETY: the host's buffers hold the logits `[S, vocab]` f32, and the result, of the largest step.
            Ok(()) if bytes > 0 => unsafe { self.runtime.copy_to_host(stream, to, from, bytes) },
            other => other,
        };
        if let Err(error) = copied {
            // Nothing may run when the next step begins.
            self.stream.synchronize()?;
            return Err(error);
        }
        let wanted = sampled.then(|| step.sampling.iter().map(|row| row.logprobs).collect());
        self.begun = Some(Begun { bytes, wanted });
        Ok(())
    }

    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        let Begun { bytes, wanted } = self.begun.take().expect("a step has begun");
        self.stream.synchronize()?;
        if let Some(wanted) = wanted {
            // SAFETY: the copy has ended.
            let result = unsafe { self.host_result.slice() };
            self.sample.space.read(&wanted, self.vocab_size, &result[..bytes], &mut self.chosen);
            return Ok(StepOutput::Chosen(&self.chosen));
        }
        // SAFETY: the copy has ended, and the buffer is not written before the next step.
        let logits = unsafe { std::slice::from_raw_parts_mut(self.host_logits.base().cast(), bytes / 4) };
        Ok(StepOutput::Logits(logits))
    }
}

impl Drop for GpuBackend {
    fn drop(&mut self) {
        // Nothing may still run in memory that is given back; a device that can't even wait is lost anyway.
        let _ = self.stream.synchronize();
    }
}
