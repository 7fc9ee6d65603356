//! `bench table`: the same prompts in several modes, side by side, over a range of input lengths. It is the experiment
//! that the project began with, in one command and on any device.
//!
//! One engine is loaded and switched from mode to mode. In every round each length is run in every mode, one right
//! after the other, so that a machine that becomes slower or faster does so for all of them.

mod chart;
mod crossover;
mod engine;
mod figures;
mod grid;
mod markdown;
mod mode;
mod page;
mod report;
mod scale;
mod sections;
mod tiers;

pub use crossover::{Crossover, SAME_SPEED, crossovers};
pub use engine::EngineModes;
pub use figures::{Floor, ModeFigures, Run, Sizes, Speedup, figures};
pub use mode::{Mode, Modes, StepCount};
pub use report::{
    Ceilings, DeviceMemoryUse, LengthFigures, Measurement, ModeSummary, RefusedMode, StartPhase, TableFacts,
    TableReport,
};
pub use tiers::{TIERS, Tier, TierSpeedup, tiers};

use std::time::Instant;

use indicatif::ProgressBar;
use refrain_engine::EngineHandle;

use crate::offline::{Phases, request, run_all};
use crate::{BenchError, RandomWorkload, Vocabulary};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Prompt tokens of each request: one or several lengths.
    pub input_lens: Vec<usize>,
    /// Tokens to generate for each request.
    pub output_len: usize,
    /// Requests that run side by side.
    pub batch_size: usize,
    /// The modes, in any order.
    pub modes: Vec<Mode>,
    /// Measured rounds: as many runs of each length in each mode.
    pub rounds: usize,
    /// Rounds before them.
    pub warmup_rounds: usize,
    /// Seed of the prompts and of the sampling.
    pub seed: u64,
}

/// The lengths of the first experiment.
pub const DEFAULT_INPUT_LENS: [usize; 5] = [1024, 4096, 8192, 16384, 24576];

/// Runs the experiment. Modes that are refused are left out, and named in what comes back. `progress` advances by one
/// with each run.
///
/// # Errors
/// [`BenchError`] if an option makes no sense, none of the modes can be had, or the engine refuses or fails a request.
pub async fn run(
    engine: &EngineHandle,
    modes: &dyn Modes,
    options: &TableOptions,
    progress: &ProgressBar,
) -> Result<Measurement, BenchError> {
    check(options, engine.config().max_model_len, engine.config().max_num_seqs)?;
    let mut input_lens = options.input_lens.clone();
    input_lens.sort_unstable();
    input_lens.dedup();
    let (mut usable, mut refused) = (Vec::new(), Vec::new());
    for mode in Mode::ALL.into_iter().filter(|mode| options.modes.contains(mode)) {
        match modes.refusal(mode) {
            None => usable.push(mode),
            Some(why) => refused.push(RefusedMode { mode, why }),
        }
    }
    if usable.is_empty() {
        let reasons: Vec<String> = refused.iter().map(|refused| format!("{}: {}", refused.mode, refused.why)).collect();
        return Err(BenchError::Option { option: "--modes", why: format!("none can be had: {}", reasons.join("; ")) });
    }

    let rounds = options.warmup_rounds + options.rounds;
    progress.set_length((rounds * input_lens.len() * usable.len()) as u64);
    let mut runs = Vec::new();
    for round in 0..rounds {
        for &input_len in &input_lens {
            for place in 0..usable.len() {
                // Each mode is the first one as often as any other.
                let mode = usable[(place + round) % usable.len()];
                modes.switch(mode);
                let run = measure(engine, modes, options, mode, input_len, round).await?;
                progress.inc(1);
                if let Some(round) = round.checked_sub(options.warmup_rounds) {
                    runs.push(Run { round, ..run });
                }
            }
        }
    }
    progress.finish_and_clear();
    Ok(Measurement {
        sizes: Sizes { batch_size: options.batch_size, output_len: options.output_len },
        rounds: options.rounds,
        warmup_rounds: options.warmup_rounds,
        refused,
        runs,
    })
}

async fn measure(
    engine: &EngineHandle,
    modes: &dyn Modes,
    options: &TableOptions,
    mode: Mode,
    input_len: usize,
    round: usize,
) -> Result<Run, BenchError> {
    let workload = RandomWorkload {
        num_prompts: options.batch_size,
        input_len,
        output_len: options.output_len,
        range_ratio: 0.0,
        prefix_len: 0,
        vocabulary: Vocabulary::Below(engine.config().vocab_size as u32),
        // Other prompts in every round, the same for all modes.
        seed: options.seed.wrapping_add(round as u64),
    };
    let requests = workload.samples().into_iter().enumerate();
    let requests = requests
        .map(|(index, sample)| request(format!("{mode}-{input_len}-{round}-{index}"), sample, index as u64))
        .collect();
    let before = modes.counts();
    let start = Instant::now();
    let timelines = run_all(engine, requests, || ()).await?;
    let phases = Phases::of(start, &timelines);
    let intervals = options.output_len.saturating_sub(1);
    Ok(Run {
        mode,
        input_len,
        round,
        ttft_seconds: phases.prefill_seconds,
        itl_seconds: (intervals > 0).then(|| phases.decode_seconds / intervals as f64),
        total_seconds: phases.prefill_seconds + phases.decode_seconds,
        steps: mode::since(&before, modes.counts()),
    })
}

fn check(options: &TableOptions, max_model_len: usize, max_num_seqs: usize) -> Result<(), BenchError> {
    let wrong = |option, why| Err(BenchError::Option { option, why });
    let at_least_one = [
        ("--output-len", options.output_len),
        ("--batch-size", options.batch_size),
        ("--rounds", options.rounds),
        ("--lengths", options.input_lens.iter().copied().min().unwrap_or(0)),
        ("--modes", options.modes.len()),
    ];
    if let Some((option, _)) = at_least_one.into_iter().find(|&(_, value)| value == 0) {
        return wrong(option, "must be at least 1".to_owned());
    }
    let longest = options.input_lens.iter().copied().max().unwrap_or(0);
    let room = max_model_len.saturating_sub(options.output_len);
    if longest > room {
        let why = format!(
            "{longest} and {} tokens of the answer are more than --max-model-len {max_model_len}; the longest that \
             fits is {room}",
            options.output_len
        );
        return wrong("--lengths", why);
    }
    if options.batch_size > max_num_seqs {
        let why = format!("{} requests side by side, but --max-num-seqs is {max_num_seqs}", options.batch_size);
        return wrong("--batch-size", why);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
