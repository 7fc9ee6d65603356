//! The backend itself: copies the step over, enqueues the launches of every op or the graphs that were recorded of them,
//! copies the result back. All of it lies in one stream, in which steps follow each other, with the copy of the step block
//! between them: the next one can be enqueued while this one runs.

use crate::Target;
use crate::graphs::{GraphOptions, Graphs, Recorder, wanted};
use crate::kernels::sample::{Sample, can_choose, sampling_limits};
use crate::layout::Layout;
use crate::loader::{KernelOptions, Kernels, PrepareReport};
use crate::lower::{self, Places};
use crate::marks::Marks;
use crate::ops::Queue;
use crate::products::{Products, ProductsChoice};
use crate::programs::{Lowering, Programs};
use crate::step_block::StepCounts;
use crate::supported::check_program;
use crate::turn::{Begun, DEPTH, Turn};
use crate::upload::{copy, upload_weights};
use refrain_device::{
    Backend, Carried, Cell, Chosen, DeviceError, DeviceInfo, DeviceMemory, DevicePtr, GraphReport, HostSpan,
    KernelReport, PinnedMemory, PoolSizes, Replay, Runtime, SamplingLimits, Step, StepLimits, StepOutput, Stream,
    Trace,
};
use refrain_program::{CompileOptions, CompiledRange, Program, WeightSource, compile_ranges};
use std::collections::VecDeque;
use std::sync::Arc;

/// How the backend is loaded.
///
/// The default: products of the library where it has all of them, kernels from the compiler only, nothing compiled and no
/// graphs.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Where kernels come from.
    pub kernels: KernelOptions,
    /// Whose products of many rows are used.
    pub products: ProductsChoice,
    /// How the program is compiled; `None` is not at all.
    pub compile: Option<CompileOptions>,
    /// What is recorded as graphs: the compiled program where there is one.
    pub graphs: GraphOptions,
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
    products: Products,
    compiled: Vec<CompiledRange>,
    graphs: Graphs,
    cells: Vec<Cell>,
    /// Scratch of the matrix library.
    gemm_workspace: (DevicePtr, usize),
    /// What was compiled and loaded.
    report: PrepareReport,
    stream: Stream,
    turns: [Turn; DEPTH],
    /// Which of them the next step has.
    next_turn: usize,
    begun: VecDeque<Begun>,
    host_logits: PinnedMemory,
    sample: Sample,
    /// Logit rows for which the step that began last chooses.
    choosing: usize,
    chosen: Chosen,
    /// Where steps are traced.
    marks: Option<Marks>,
    /// Kernels and memory are given back last: fields are dropped in this order.
    _kernels: Kernels,
    memory: DeviceMemory,
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
        let mut products = options.products.of(&*runtime)?;
        let target = Target::from(runtime.info());
        let compiled = options.compile.as_ref().map(|compile| compile_ranges(program, compile)).unwrap_or_default();
        let others: Vec<&Program> = compiled.iter().map(|(_, program)| program).collect();
        let check = |products: &Products| {
            let all = || [program].into_iter().chain(others.iter().copied());
            all().try_for_each(|program| check_program(&*runtime, program, &limits, products.are_the_library_s()))
        };
        check(&products)?;
        let layouts = Layout::new_for(program, &others, &limits, &pools, &target);
        let layout = layouts[0].clone();
        let memory = DeviceMemory::new(&runtime, layout.bytes, "weights, activations and state pools")?;
        let base = memory.base();
        let kernels = Kernels::with(runtime.clone(), options.kernels.clone());
        let ranges: Vec<CompiledRange> = compiled.iter().map(|(range, _)| range.clone()).collect();
        let prepare = |products: &Products| -> Result<(Programs, PrepareReport), DeviceError> {
            let gemm = products.are_the_library_s();
            let lower = |((program, most_rows), layout)| {
                Lowering::new(&Places { program, layout, base, target: &target, gemm, most_rows }, &limits)
            };
            let all = [(program, u32::MAX)].into_iter();
            let all = all.chain(others.iter().copied().zip(ranges.iter().map(|range| range.most_rows)));
            let lowerings: Vec<Lowering> = all.zip(&layouts).map(lower).collect();
            let report = kernels.prepare(&lower::kernels(lowerings.iter().flat_map(Lowering::all)), progress)?;
            let ready = lowerings.into_iter().map(|lowering| lowering.ready(&kernels));
            let mut ready = ready.collect::<Result<Vec<_>, _>>()?;
            let eager = ready.remove(0);
            let compiled = ranges.iter().map(|range| range.most_rows).zip(ready).collect();
            Ok((Programs { eager, compiled }, report))
        };
        let (mut programs, mut report) = prepare(&products)?;
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
        let queue = Queue { runtime: &*runtime, stream: stream.id(), gemm_workspace, marks: None };
        let wanted = wanted(&options.graphs, &limits, options.compile.is_some())?;
        let recorder = Recorder { runtime: &runtime, queue, limits: &limits, step_layout: &layout.step_layout };
        if let Products::Library(name) = &products {
            let warm = || {
                programs.warm_library(&limits, &recorder.queue)?;
                programs.tune_library(&limits, &recorder.queue)?;
                recorder.warm_library(&wanted, |cell| &programs.of(cell, cell.rows).ops)?;
                stream.synchronize()
            };
            if let Err(failure) = warm() {
                products = options.products.without(name, failure)?;
                check(&products)?;
                let (others, of_others) = prepare(&products)?;
                (programs, report) = (others, report.and(of_others));
            }
        }
        let graphs = recorder.record(&options.graphs, &wanted, |cell| &programs.of(cell, cell.rows).ops)?;
        let sample = programs.eager.sample;
        let recorded = graphs.report.recorded.iter().map(|recorded| recorded.cell);
        let cells: Vec<Cell> = programs.cells().into_iter().chain(recorded).collect();
        let mut ways: Vec<&str> = Vec::new();
        for way in cells.iter().map(Cell::way) {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }

        let logits_bytes = limits.max_logit_rows * program.vocab_size * 4;
        let info = DeviceInfo {
            kind: runtime.info().kind,
            name: runtime.info().name.clone(),
            compute: format!("{}, {}", runtime.info().arch, ways.join(" or ")),
        };
        let turn = || Turn::new(&runtime, &layout.step_layout, &sample.space);
        Ok(GpuBackend {
            info,
            vocab_size: program.vocab_size,
            limits,
            pools,
            programs,
            products,
            compiled: ranges,
            graphs,
            cells,
            gemm_workspace,
            report,
            turns: [turn()?, turn()?],
            next_turn: 0,
            begun: VecDeque::with_capacity(DEPTH),
            host_logits: PinnedMemory::new(&runtime, logits_bytes)?,
            sample,
            choosing: 0,
            chosen: Chosen::default(),
            marks: None,
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

    /// Whose products of many rows it uses.
    pub fn products(&self) -> &Products {
        &self.products
    }

    /// What the passes have done, for each range of rows; none when nothing is compiled.
    pub fn compiled(&self) -> &[CompiledRange] {
        &self.compiled
    }

    fn queue(&self) -> Queue<'_> {
        let (stream, marks) = (self.stream.id(), self.marks.as_ref());
        Queue { runtime: &*self.runtime, stream, gemm_workspace: self.gemm_workspace, marks }
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

    /// Refuses a step that can't begin behind those that have begun.
    fn check_order(&self, step: &Step) -> Result<(), DeviceError> {
        let fail = |what: String| Err(DeviceError::InvalidStep { what });
        if self.begun.len() >= DEPTH {
            return fail(format!("{DEPTH} steps have begun and none is finished"));
        }
        if self.begun.back().is_some_and(Begun::gives_logits) {
            return fail("the step before gives logits and is not finished".to_owned());
        }
        match step.carried.iter().find(|carried| carried.logit_row as usize >= self.choosing) {
            Some(Carried { row, logit_row }) => {
                let choosing = self.choosing;
                fail(format!("row {row} is carried from logit row {logit_row}, the step before chooses in {choosing}"))
            }
            None => Ok(()),
        }
    }

    /// What the host does for the step that is being begun, where it is traced.
    fn host(&self, name: &'static str) -> Option<HostSpan> {
        self.marks.as_ref().and_then(|marks| marks.host(name))
    }

    /// Enqueues all of a step.
    fn enqueue_step(&mut self, step: &Step, cell: Cell) -> Result<(), DeviceError> {
        let writing = self.host("write");
        let turn = &mut self.turns[self.next_turn];
        // SAFETY: the step that had this turn last is finished, and so are its copies.
        let block = unsafe { turn.block.slice() };
        let (mut counts, bytes) = self.layout.step_layout.write(step, block);
        if !can_choose(step) {
            counts.without_sampling();
        }
        drop(writing);
        let _enqueuing = self.host("enqueue");
        let turn = &self.turns[self.next_turn];
        let stream = self.stream.id();
        self.marks.as_ref().map_or(Ok(()), |marks| marks.begin(|| cell.to_string()))?;
        let to = self.memory.base().offset(self.layout.step);
        // SAFETY: both ranges exist; the block is not written before the step has ended.
        unsafe { self.runtime.copy_to_device(stream, to, turn.block.base(), bytes)? };
        self.enqueue(cell, &counts)?;

        let turn = &self.turns[self.next_turn];
        let sampled = counts.sampled > 0;
        let (to, from, bytes) = if sampled {
            let (offset, bytes) = self.sample.space.results(step);
            (turn.result.base(), self.sample.workspace.offset(offset), bytes)
        } else {
            let logits = self.programs.of(&cell, counts.tokens).sample.logits;
            (self.host_logits.base(), logits, step.logit_rows.len() * self.vocab_size * 4)
        };
        if bytes > 0 {
            // SAFETY: the host's buffers hold the logits `[S, vocab]` f32, and the result, of the largest step; whoever
            // they were lent to is done with them.
            unsafe { self.runtime.copy_to_host(stream, to, from, bytes)? };
        }
        self.runtime.record(turn.ended.id(), stream)?;
        let wanted = sampled.then(|| step.sampling.iter().map(|row| row.logprobs).collect());
        self.begun.push_back(Begun { turn: self.next_turn, bytes, wanted });
        self.choosing = counts.sampled as usize;
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

    fn depth(&self) -> usize {
        DEPTH
    }

    fn trace(&mut self, trace: Arc<Trace>) {
        match Marks::new(&self.runtime, self.stream.id(), trace) {
            Ok(marks) => self.marks = Some(marks),
            Err(error) => tracing::warn!("steps can't be traced: {error}"),
        }
    }

    fn kernels(&self) -> Option<KernelReport> {
        let PrepareReport { from_packs, from_cache, compiled, elapsed, .. } = self.report;
        Some(KernelReport { from_packs, from_cache, compiled, seconds: elapsed.as_secs_f64() })
    }

    fn begin(&mut self, step: &Step, cell: Cell) -> Result<(), DeviceError> {
        step.validate(&self.limits, &self.pools, self.vocab_size)?;
        self.check(cell, step)?;
        self.check_order(step)?;
        // Whatever goes wrong: nothing is carried from a step that has not begun.
        self.choosing = 0;
        let enqueued = self.enqueue_step(step, cell);
        if let Some(marks) = &self.marks {
            marks.end(enqueued.is_ok());
        }
        if let Err(error) = enqueued {
            // Nothing of it may run when the next step begins.
            self.stream.synchronize()?;
            return Err(error);
        }
        self.next_turn = (self.next_turn + 1) % DEPTH;
        Ok(())
    }

    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        let Begun { turn, bytes, wanted } = self.begun.pop_front().expect("a step has begun");
        let turn = &mut self.turns[turn];
        let waiting = self.marks.as_ref().and_then(Marks::waiting);
        self.runtime.synchronize_event(turn.ended.id())?;
        drop(waiting);
        self.marks.as_ref().map_or(Ok(()), Marks::finish)?;
        if let Some(wanted) = wanted {
            // SAFETY: the copy has ended.
            let result = unsafe { turn.result.slice() };
            self.sample.space.read(&wanted, self.vocab_size, &result[..bytes], &mut self.chosen);
            return Ok(StepOutput::Chosen(&self.chosen));
        }
        // SAFETY: the copy has ended, and the buffer is not written before the next step that gives logits.
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
