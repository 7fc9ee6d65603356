//! How the policy starts: with what an earlier start measured, if that still holds, else with a calibration.

use std::path::Path;
use std::time::Instant;

use indicatif::ProgressBar;
use refrain_device::{Backend, Cell, DeviceError, PoolSizes, Replay, StepLimits};
use refrain_engine::{Bench, Calibration, Policy, PolicyMode, StepWorld};
use refrain_gpu::loader::Digest;
use refrain_gpu::sources_digest;
use refrain_program::{CompileOptions, Program, compile_ranges};
use serde_json::{Value, json};

use super::timings::Timings;
use super::{Device, LoadError, progress};

/// Seconds of a calibration when nobody says otherwise: graphs of many sizes take longer to measure than two programs.
const SECONDS_WITH_GRAPHS: f64 = 3.0;
const SECONDS_WITHOUT: f64 = 0.5;

/// What part of that later starts may spend on kinds of steps that were not measured before.
const REST: f64 = 0.25;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyRequest {
    /// `--policy`.
    pub mode: Option<PolicyMode>,
    /// `--policy-budget`, seconds.
    pub budget: Option<f64>,
}

/// What the policy is for.
pub(super) struct Subject<'a> {
    pub device: &'a Device,
    pub program: &'a Program,
    /// How it is compiled beside being run as it is.
    pub compile: Option<&'a CompileOptions>,
    pub limits: StepLimits,
    pub pools: PoolSizes,
    /// Where tables are kept.
    pub folder: Option<&'a Path>,
}

/// A policy that is ready.
pub(super) struct Started {
    pub policy: Policy,
    /// For the settings: the rule, and what it rests on.
    pub effective: String,
    /// Seconds that it took.
    pub seconds: f64,
}

impl PolicyRequest {
    /// Makes the policy of a backend that has nothing to do yet. With `strict` a rule that makes no difference is an error.
    ///
    /// # Errors
    /// [`LoadError`].
    pub(super) fn start(
        &self,
        backend: &mut dyn Backend,
        subject: &Subject<'_>,
        strict: bool,
        progress: &ProgressBar,
    ) -> Result<Started, LoadError> {
        let begun = Instant::now();
        let mode = self.mode.unwrap_or_default();
        let cells = backend.cells().to_vec();
        let mut policy = Policy::new(mode, &cells, &subject.limits, backend.depth());
        let effective = match mode.without_effect(&cells) {
            Some(why) if strict && self.mode.is_some() => {
                let why = format!("{mode} can't be had: {why}; leave it out, or leave --strict out");
                return Err(LoadError::Setting { flag: "--policy", why });
            }
            Some(why) => format!("{mode}, without effect: {why}"),
            // A fixed rule needs no numbers, but may be exchanged for the measured one later.
            None if mode == PolicyMode::Measured => {
                format!("{mode}: {}", self.learn(&mut policy, backend, subject, progress)?)
            }
            None => mode.to_string(),
        };
        Ok(Started { policy, effective, seconds: begun.elapsed().as_secs_f64() })
    }

    /// Fills the table of a policy. Says with what.
    fn learn(
        &self,
        policy: &mut Policy,
        backend: &mut dyn Backend,
        subject: &Subject<'_>,
        progress: &ProgressBar,
    ) -> Result<String, DeviceError> {
        let cells = backend.cells().to_vec();
        let graphs = cells.iter().any(|cell| cell.replay != Replay::None);
        let budget = self.budget.unwrap_or(if graphs { SECONDS_WITH_GRAPHS } else { SECONDS_WITHOUT });
        let key = subject.key(&cells, budget, &backend.device().compute);
        let timings = subject.folder.and_then(|folder| match Timings::open(folder) {
            Ok(timings) => Some(timings),
            Err(error) => {
                tracing::warn!("what steps cost is not kept on disk: {error}");
                None
            }
        });
        let chooses = backend.sampling().is_some();
        let world = StepWorld { pools: subject.pools, vocab_size: subject.program.vocab_size, chooses };
        let epoch = Instant::now();
        let clock = || epoch.elapsed().as_secs_f64();
        let show = |looked_at, kinds| progress::steps(progress, looked_at, kinds);
        let mut bench = Bench { backend, world, clock: &clock, progress: &show };
        let kept = timings.as_ref().map(|timings| timings.get(&key)).transpose().unwrap_or_else(|why| {
            tracing::warn!("what steps cost is measured anew: {why}");
            None
        });
        let keep = |timings: Option<Timings>, done: Calibration, policy: &Policy| {
            if done.measured > 0 {
                let kept = timings.map(|timings| timings.put(&key, &policy.table())).transpose();
                kept.map_err(|error| tracing::warn!("what steps cost is not kept on disk: {error}"))
                    .unwrap_or_default();
            }
        };
        let mut checked = 0.0;
        if let Some(table) = kept.flatten() {
            let mut restored = policy.clone();
            let kinds = restored.restore(&table);
            let begun = clock();
            let holds = kinds > 0 && restored.still_holds(&mut bench)?;
            checked = clock() - begun;
            if holds {
                *policy = restored;
                let more = policy.calibrate(&mut bench, f64::min(REST * budget, budget - checked))?;
                keep(timings, more, policy);
                let (measured, all) = (more.before + more.measured, more.kinds);
                return Ok(format!(
                    "{measured} of {all} kinds of steps measured, {} of them now in {:.1} s",
                    more.measured,
                    checked + more.seconds
                ));
            }
            tracing::info!("steps cost something else than at an earlier start: they are measured anew");
            timings.iter().for_each(|timings| timings.remove(&key));
        }
        let done = policy.calibrate(&mut bench, budget - checked)?;
        keep(timings, done, policy);
        let seconds = checked + done.seconds;
        Ok(format!("{} of {} kinds of steps measured in {seconds:.1} s", done.measured, done.kinds))
    }
}

impl Subject<'_> {
    /// All that the seconds of a step depend on. How large the pools are makes no difference, and changes with what others
    /// leave of the memory.
    fn key(&self, cells: &[Cell], budget: f64, compute: &str) -> Value {
        let StepLimits { max_tokens, max_segments, max_logit_rows, max_model_len } = self.limits;
        let device = match self.device {
            Device::Cpu(_) => json!({ "kind": "cpu" }),
            Device::Gpu(runtime, _) => {
                let info = runtime.info();
                json!({ "kind": info.kind, "name": info.name, "arch": info.arch, "driver": info.driver })
            }
        };
        let compiled = self.compile.map(|options| compile_ranges(self.program, options)).unwrap_or_default();
        let programs = [self.program].into_iter().chain(compiled.iter().map(|(_, program)| program));
        let programs: Vec<String> = programs.map(ToString::to_string).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": device,
            "compute": compute,
            "programs": Digest::of_texts(programs.iter().map(String::as_str)).to_string(),
            "kernels": sources_digest().to_string(),
            "limits": [max_tokens, max_segments, max_logit_rows, max_model_len],
            "cells": cells.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "budget": budget.to_string(),
        })
    }
}
