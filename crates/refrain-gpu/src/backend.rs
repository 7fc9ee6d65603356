//! The backend itself: copies the step over, enqueues the launches of every op or the graphs that were recorded of them,
//! copies the result back.

use crate::Target;
use crate::graphs::{GraphOptions, Graphs, Recorder};
use crate::kernels::sample::{Sample, can_choose, sampling_limits};
use crate::layout::Layout;
use crate::loader::{KernelOptions, Kernels, PrepareReport};
use crate::lower::{self, Places};
use crate::ops::Queue;
use crate::programs::{CompileOptions, CompiledRange, Lowering, Programs, compile_ranges};
use crate::step_block::StepCounts;
use crate::supported::check_program;
use crate::upload::{copy, upload_weights};
use refrain_device::{
    Backend, Cell, Chosen, DeviceError, DeviceInfo, DeviceMemory, DevicePtr, GraphReport, PinnedMemory, PoolSizes,
    Replay, Runtime, SamplingLimits, Step, StepLimits, StepOutput, Stream,
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
    /// How the program is compiled; `None` is not at all.
    pub compile: Option<CompileOptions>,
    /// What is recorded as graphs: the compiled program where there is one.
    pub graphs: GraphOptions,
}

impl Default for GpuOptions {
    /// With the library, kernels from the compiler only, nothing compiled and no graphs.
    fn default() -> GpuOptions {
        GpuOptions { kernels: KernelOptions::default(), library: true, compile: None, graphs: GraphOptions::default() }
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
    programs: Programs,
    compiled: Vec<CompiledRange>,
    graphs: Graphs,
    cells: Vec<Cell>,
    /// Scratch of the matrix library.
    gemm_workspace: (DevicePtr, usize),
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
        let compiled = options.compile.as_ref().map(|compile| compile_ranges(program, compile)).unwrap_or_default();
        let others: Vec<&Program> = compiled.iter().map(|(_, program)| program).collect();
        others.iter().try_for_each(|program| check_program(&*runtime, program, &limits, options.library))?;
        let layouts = Layout::new_for(program, &others, &limits, &pools, &target);
        let layout = layouts[0].clone();
        let memory = DeviceMemory::new(&runtime, layout.bytes, "weights, activations and state pools")?;
        let base = memory.base();
        let gemm = options.library && runtime.gemm().is_some();
        let lower =
            |(program, layout)| Lowering::new(&Places { program, layout, base, target: &target, gemm }, &limits);
        let lowerings: Vec<Lowering> = [program].into_iter().chain(others).zip(&layouts).map(lower).collect();
        let sample = lowerings[0].sample;
        let kernels = Kernels::with(runtime.clone(), options.kernels.clone());
        let report = kernels.prepare(&lower::kernels(lowerings.iter().flat_map(Lowering::all)), progress)?;
        let mut ready =
            lowerings.into_iter().map(|lowering| lowering.ready(&kernels)).collect::<Result<Vec<_>, _>>()?;
        let eager = ready.remove(0);
        let compiled: Vec<CompiledRange> = compiled.into_iter().map(|(range, _)| range).collect();
        let ranges = compiled.iter().map(|range| range.most_rows).zip(ready).collect();
        let programs = Programs { eager, compiled: ranges };
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
        // So does the step block, so that what is recorded finds nothing to do.
        // SAFETY: as above.
        unsafe { runtime.fill(stream.id(), base.offset(layout.step), 0, layout.step_layout.bytes)? };
        stream.synchronize()?;
        let gemm_workspace = (base.offset(layout.gemm_workspace), layout.workspaces.gemm);
        let queue = Queue { runtime: &*runtime, stream: stream.id(), gemm_workspace };
        programs.warm_library(&limits, &queue)?;
        let (limits_of, step_layout, is_compiled) = (&limits, &layout.step_layout, options.compile.is_some());
        let recorder = Recorder { runtime: &runtime, queue, limits: limits_of, step_layout, compiled: is_compiled };
        let graphs = recorder.record(&options.graphs, |cell| &programs.of(cell, cell.rows).ops)?;
        let recorded = graphs.report.recorded.iter().map(|recorded| recorded.cell);
        let cells: Vec<Cell> = programs.cells().into_iter().chain(recorded).collect();
        let mut ways: Vec<&str> = cells.iter().map(Cell::way).collect();
        ways.dedup();

        let logits_bytes = limits.max_logit_rows * program.vocab_size * 4;
        let info = DeviceInfo {
            kind: runtime.info().kind,
            name: runtime.info().name.clone(),
            compute: format!("{}, {}", runtime.info().arch, ways.join(" or ")),
        };
        Ok(GpuBackend {
            info,
            vocab_size: program.vocab_size,
            limits,
            pools,
            programs,
            compiled,
            graphs,
            cells,
            gemm_workspace,
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

    /// What the passes have done, for each range of rows; none when nothing is compiled.
    pub fn compiled(&self) -> &[CompiledRange] {
        &self.compiled
    }

    fn queue(&self) -> Queue<'_> {
        Queue { runtime: &*self.runtime, stream: self.stream.id(), gemm_workspace: self.gemm_workspace }
    }

    /// Enqueues every op, in the way of a cell.
    fn enqueue(&self, cell: Cell, counts: &StepCounts) -> Result<(), DeviceError> {
        let (program, queue) = (self.programs.of(&cell, counts.tokens), self.queue());
        match cell.replay {
            Replay::None => program.ops.enqueue(program.ops.all(), counts, &queue)?,
            Replay::Piecewise | Replay::Full => self.graphs.replay(cell, &program.ops, counts, &queue)?,
        }
        program.sampling.enqueue(program.sampling.all(), counts, &queue)
    }

    /// Refuses a cell that there is not, or that was made for other steps.
    fn check(&self, cell: Cell, step: &Step) -> Result<(), DeviceError> {
        let fail = |what: String| Err(DeviceError::InvalidStep { what });
        if !self.cells.contains(&cell) {
            return fail(format!("there is no {cell}"));
        }
        if !cell.suits(&step.shape()) {
            return fail(format!("{cell} is for other steps than {:?}", step.shape()));
        }
        Ok(())
    }
}

impl Backend for GpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn sampling(&self) -> Option<SamplingLimits> {
        Some(sampling_limits(&self.limits))
    }

    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn graphs(&self) -> Option<&GraphReport> {
        Some(&self.graphs.report)
    }

    fn begin(&mut self, step: &Step, cell: Cell) -> Result<(), DeviceError> {
        step.validate(&self.limits, &self.pools, self.vocab_size)?;
        self.check(cell, step)?;
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
        let enqueued = self.enqueue(cell, &counts);
        let sampled = counts.sampled > 0;
        let (to, from, bytes) = if sampled {
            let (offset, bytes) = self.sample.space.results(step);
            (self.host_result.base(), self.sample.workspace.offset(offset), bytes)
        } else {
            (
                self.host_logits.base(),
                self.programs.of(&cell, counts.tokens).logits,
                step.logit_rows.len() * self.vocab_size * 4,
            )
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
