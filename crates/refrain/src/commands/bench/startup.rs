//! `refrain bench startup`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use refrain::cli::bench::StartupArgs;
use refrain_bench::startup::{OneStart, StartupReport};
use refrain_engine::{Request, SamplingParams};

use super::{finish, start_phases};
use crate::commands::{Invocation, load_engine, progress_bar};

/// Starts processes one after another and reports what each took. With `--one-start` this is such a process.
pub fn run(args: &StartupArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    if let [cache, file] = args.options.one_start.as_slice() {
        return start_once(args, cache, file, invocation);
    }
    let options = &args.options;
    if options.num_iters_cold + options.num_iters_warm == 0 {
        bail!("--num-iters-cold and --num-iters-warm are both 0; at least one start must be measured");
    }
    let bar = progress_bar("Starts")?;
    bar.set_length((options.num_iters_cold + options.num_iters_warmup + options.num_iters_warm) as u64);
    let start = |cache: &Path| {
        let start = child(cache)?;
        bar.inc(1);
        anyhow::Ok(start)
    };
    let folder = || tempfile::tempdir().context("can't make a folder for compiled kernels");
    let mut report = StartupReport::default();
    for _ in 0..options.num_iters_cold {
        report.cold.push(start(folder()?.path())?);
    }
    let filled = folder()?;
    if options.num_iters_warm > 0 {
        for _ in 0..options.num_iters_warmup {
            start(filled.path())?;
        }
        for _ in 0..options.num_iters_warm {
            report.warm.push(start(filled.path())?);
        }
    }
    bar.finish_and_clear();
    finish(&report.to_string(), &report.to_json(), options.output_json.as_deref())
}

/// Starts this program with the same arguments and reads what it measured.
fn child(cache: &Path) -> anyhow::Result<OneStart> {
    let file = tempfile::NamedTempFile::new().context("can't make a file for a start's report")?;
    let program = std::env::current_exe().context("can't find this program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--one-start").arg(cache).arg(file.path());
    let output = command.stdin(Stdio::null()).output().context("can't start this program once more")?;
    if !output.status.success() {
        bail!("a start failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    let json = std::fs::read_to_string(file.path()).context("can't read a start's report")?;
    serde_json::from_str(&json).context("a start's report is not what it should be")
}

fn start_once(args: &StartupArgs, cache: &Path, file: &Path, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    let mut engine_args = args.engine.clone();
    engine_args.device.kernel_cache_dir = Some(cache.to_owned());
    let loaded = load_engine(&engine_args, None, invocation)?;
    let startup_seconds = invocation.process_start.elapsed().as_secs_f64();
    let sampling = SamplingParams { max_tokens: 1, ignore_eos: true, ..SamplingParams::default() };
    let request = Request { id: "first".to_owned(), prompt: vec![0; 8], sampling, priority: 0 };
    let mut stream = loaded.engine.submit(request)?;
    while let Some(event) = stream.blocking_next() {
        match event {
            refrain_engine::Event::Token { .. } => break,
            refrain_engine::Event::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    let first_token_seconds = invocation.process_start.elapsed().as_secs_f64();
    let device = loaded.engine.device();
    let phases = start_phases(&loaded.report);
    let start = OneStart {
        model_id: loaded.model.name.clone(),
        device: format!("{}: {} ({})", device.kind, device.name, device.compute),
        phases: phases.into_iter().map(|phase| (phase.name.to_owned(), phase.seconds)).collect(),
        compilation_seconds: loaded.report.kernels_seconds,
        startup_seconds,
        first_token_seconds,
    };
    std::fs::write(file, serde_json::to_string(&start)?).with_context(|| format!("can't write {}", file.display()))
}
