//! The backend itself: walks through a program, op by op, and runs each on all threads.

use crate::kernels::Shared;
use crate::kernels::attention::{AttentionPlan, PlanLimits};
use crate::kernels::norm::fill_rope;
use crate::layout::{Layout, programs};
use crate::linear;
use crate::load::{Weight, load_weights};
use crate::pool::Pool;
use crate::{Isa, Precision};
use places::Places;
use refrain_device::{
    Arena, Backend, Cell, DeviceError, DeviceInfo, HostSpan, Lane, PoolSizes, Step, StepLimits, StepOutput, Trace,
};
use refrain_program::{AttentionShape, CompiledRange, Op, PassConfig, Program};
use run::Run;
use std::sync::Arc;
use std::time::Instant;

mod fused;
mod places;
mod run;

/// How the backend computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Compute threads, at least 1.
    pub threads: usize,
    /// Arithmetic of the matrix products.
    pub precision: Precision,
    /// Instruction set; `None` is the best there is.
    pub isa: Option<Isa>,
    /// Passes of the compiled program, which is loaded beside the eager one; without them there is none.
    pub passes: Option<PassConfig>,
}

/// A program with its weights, ready to execute steps on the processor's cores.
pub struct CpuBackend {
    /// The eager program, and the compiled one.
    programs: Vec<Program>,
    compiled: Vec<CompiledRange>,
    limits: StepLimits,
    pools: PoolSizes,
    info: DeviceInfo,
    isa: Isa,
    precision: Precision,
    layout: Layout,
    arena: Arena,
    weights: Vec<Weight>,
    pool: Pool,
    /// One plan for each distinct shape of attention, renewed every step.
    plans: Vec<(AttentionShape, AttentionPlan)>,
    /// Pieces of segments, renewed every step.
    pieces: Vec<Piece>,
    /// `0, 1, 2, ...`: row `t` of the step uses row `t` of the rotary tables.
    identity: Vec<u32>,
    /// Which program the step that has begun was run by, and its logit rows.
    begun: Option<(usize, usize)>,
    /// Where steps are traced.
    trace: Option<Arc<Trace>>,
}

/// The ways in which steps can be run.
const CELLS: [Cell; 2] = [Cell::EAGER, Cell::COMPILED];

/// Some consecutive tokens of one segment.
#[derive(Clone, Copy, Debug)]
struct Piece {
    segment: usize,
    first: usize,
    len: usize,
}

// Two crates that don't know each other name the same number.
const _: () = assert!(refrain_program::SCAN_CHUNK == refrain_device::SCAN_CHUNK);

/// Tokens of a piece.
const PIECE_TOKENS: usize = 64;

impl CpuBackend {
    /// Plans the memory, packs the weights and starts the threads.
    ///
    /// # Errors
    /// [`DeviceError`] when a weight is missing or misshapen, memory can't be had, or the processor lacks
    /// [`CpuOptions::isa`].
    pub fn load(
        program: &Program,
        weights: &dyn refrain_program::WeightSource,
        limits: StepLimits,
        pools: PoolSizes,
        options: &CpuOptions,
    ) -> Result<Self, DeviceError> {
        let unsupported = |why: String| DeviceError::Unsupported { device: "cpu", why };
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if isa > Isa::detect() {
            return Err(unsupported(format!("it has no {isa}; the best it has is {}", Isa::detect())));
        }
        let options = CpuOptions { threads: options.threads.max(1), ..*options };
        let mut pool = Pool::new(options.threads)
            .map_err(|error| unsupported(format!("can't start {} threads: {error}", options.threads)))?;
        let (programs, compiled) = programs(program, &options);
        let layout = Layout::new(&programs, &limits, &pools, &options);
        let arena = Arena::new(layout.bytes, "weights, activations and state pools")?;
        let weights = load_weights(program, weights, &layout, &arena, &mut pool)?;
        let mut plans: Vec<(AttentionShape, AttentionPlan)> = Vec::new();
        for node in &program.nodes {
            if let Op::Attention { shape, .. } = node.op
                && !plans.iter().any(|(known, _)| *known == shape)
            {
                plans.push((shape, AttentionPlan::default()));
            }
        }
        let arithmetic = linear::describe(isa, options.precision, program);
        let threads = options.threads;
        Ok(Self {
            info: DeviceInfo {
                kind: "cpu",
                name: processor_name(),
                compute: format!("{arithmetic}, {threads} thread{}", if threads == 1 { "" } else { "s" }),
            },
            programs,
            compiled,
            limits,
            pools,
            isa,
            precision: options.precision,
            layout,
            arena,
            weights,
            pool,
            plans,
            pieces: Vec::with_capacity(limits.max_tokens / PIECE_TOKENS + limits.max_segments),
            identity: (0..limits.max_tokens as u32).collect(),
            begun: None,
            trace: None,
        })
    }

    /// What the passes have done, for steps of any size; none when nothing is compiled.
    pub fn compiled(&self) -> &[CompiledRange] {
        &self.compiled
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn cells(&self) -> &[Cell] {
        &CELLS[..self.programs.len()]
    }

    /// Runs the step: nothing goes on here while the caller does something else.
    fn trace(&mut self, trace: Arc<Trace>) {
        self.trace = Some(trace);
    }

    fn begin(&mut self, step: &Step, cell: Cell) -> Result<(), DeviceError> {
        debug_assert!(self.cells().contains(&cell), "no cell {cell}");
        step.validate(&self.limits, &self.pools, self.programs[0].vocab_size)?;
        self.prepare(step);
        let program = usize::from(cell.compiled);
        let (places, run) = (
            places(&self.programs, program, &self.layout, &self.arena, &self.weights),
            Run {
                step,
                isa: self.isa,
                level: self.isa.simd(),
                precision: self.precision,
                plans: &self.plans,
                pieces: &self.pieces,
                identity: &self.identity,
            },
        );
        let traced = self.trace.as_ref().and_then(|trace| Some((trace, trace.newest()?)));
        let executing = traced.and_then(|(trace, _)| HostSpan::of_newest(trace, "execute"));
        let now = || traced.map(|_| Instant::now());
        let begun = now();
        for node in &self.programs[program].nodes {
            let start = now();
            // SAFETY: the programs were validated when they were made and the step just now, so every view, weight and
            // state that an op names lies in the arena; ops run one after another.
            unsafe { run.op(&mut self.pool, &places, &node.op) };
            if let (Some((trace, step)), Some(start)) = (traced, start) {
                let name = self.programs[program].node_name(node);
                trace.add(Lane::Device, name, step, start..Instant::now(), String::new());
            }
        }
        if let (Some((trace, step)), Some(begun)) = (traced, begun) {
            let name = format!("step {step}");
            trace.add(Lane::Device, name, step, begun..Instant::now(), cell.to_string());
        }
        drop(executing);
        self.begun = Some((program, step.logit_rows.len()));
        Ok(())
    }

    fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        let (program, logit_rows) = self.begun.take().expect("a step has begun");
        let places = places(&self.programs, program, &self.layout, &self.arena, &self.weights);
        let logits = self.programs[program].logits;
        // SAFETY: the logits are `[S, vocab]` without gaps, and nobody else touches the arena before the next step.
        let rows = unsafe { std::slice::from_raw_parts_mut(places.rows(logits).data, logit_rows * logits.width) };
        Ok(StepOutput::Logits(rows))
    }
}

fn places<'a>(
    programs: &'a [Program],
    program: usize,
    layout: &'a Layout,
    arena: &'a Arena,
    weights: &'a [Weight],
) -> Places<'a> {
    Places { program: &programs[program], plan: &layout.plans[program], layout, arena, weights }
}

impl CpuBackend {
    /// Everything that depends on the step but not on the layer.
    fn prepare(&mut self, step: &Step) {
        let limits = PlanLimits { workers: self.pool.threads(), partial_floats: self.layout.partial_floats };
        for (shape, plan) in &mut self.plans {
            plan.plan(&step.segments, shape, limits);
        }
        self.pieces.clear();
        for (index, segment) in step.segments.iter().enumerate() {
            let len = segment.len as usize;
            self.pieces.extend((0..len).step_by(PIECE_TOKENS).map(|first| Piece {
                segment: index,
                first,
                len: PIECE_TOKENS.min(len - first),
            }));
        }
        for &(rope, offset) in &self.layout.ropes {
            let (base, pieces, width) = (Shared(self.arena.base().wrapping_add(offset)), &self.pieces, rope.rotary_dim);
            self.pool.run(pieces.len(), &|item, _| {
                let piece = pieces[item];
                let segment = &step.segments[piece.segment];
                let row = segment.row as usize + piece.first;
                let position = segment.position as usize + piece.first;
                // SAFETY: the table has a row for every token of the largest step; pieces don't overlap.
                let table = unsafe {
                    let first = { base }.0.cast::<f32>().add(row * width);
                    std::slice::from_raw_parts_mut(first, piece.len * width)
                };
                fill_rope(position..position + piece.len, rope.rotary_dim, rope.theta, table);
            });
        }
    }
}

/// What the system calls the processor.
pub fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

#[cfg(test)]
mod tests;
