//! `refrain bench table`.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};
use refrain::cli::bench::TableArgs;
use refrain::load::{Device, Loaded, Prepared};
use refrain_bench::date;
use refrain_bench::table::{
    self, Ceilings, DEFAULT_INPUT_LENS, DeviceMemoryUse, EngineModes, Floor, Mode, Modes as _, TableFacts, TableReport,
};
use refrain_engine::PolicyMode;
use refrain_program::{Program, StepShape};
use serde_json::{Map, Value};

use crate::commands::ceilings::ceilings;
use crate::commands::{Invocation, load_engine_after, print, progress_bar, runtime};

/// Runs the comparison, prints it as Markdown and writes its files.
pub fn run(args: &TableArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    let options = &args.options;
    if let Some(mode) = args.engine.compile.policy.filter(|mode| *mode != PolicyMode::Measured) {
        bail!("--policy {mode}: the table compares modes by itself, say which with --modes; leave --policy out");
    }
    if let Some(folder) = &options.output_dir {
        // A folder that can't be had is known before minutes of measuring, not after.
        std::fs::create_dir_all(folder).with_context(|| format!("can't make the folder {}", folder.display()))?;
    }
    let sequences = Some((options.batch_size, "the requests side by side"));
    let known = |prepared: &Prepared| {
        // What a device lacks is known before the weights are read.
        let no_graphs = prepared.device.why_no_graphs().map(str::to_owned);
        let graphs = |mode| matches!(mode, Mode::Graph | Mode::GraphCompile);
        refuse_missing(args, |mode| no_graphs.clone().filter(|_| graphs(mode)))?;
        known_ceilings(args, &prepared.device)
    };
    let mut load = args.engine.load_options();
    load.modes.graphs_as_it_is |= options.modes.contains(&Mode::Graph);
    let (loaded, ceilings) = load_engine_after(load, sequences, invocation, known)?;
    let (input_lens, notes) = input_lens(args, loaded.engine.config().max_model_len);
    let table_options = table::TableOptions {
        input_lens,
        output_len: options.output_len,
        batch_size: options.batch_size,
        modes: options.modes(loaded.device.why_no_graphs().is_none()),
        rounds: options.rounds,
        warmup_rounds: options.warmup_rounds,
        seed: args.engine.model.seed.unwrap_or(0),
    };
    let bar = progress_bar("Runs")?;
    let modes = EngineModes::new(&loaded.engine, loaded.device.why_no_graphs());
    refuse_missing(args, |mode| modes.refusal(mode))?;
    let measurement = runtime()?.block_on(table::run(&loaded.engine, &modes, &table_options, &bar))?;
    let facts = facts(&loaded, ceilings.clone())?;
    let floor = |input_len| floor(&loaded.program, &ceilings, options.batch_size, input_len, options.output_len);
    let report = TableReport::new(facts, notes, measurement, &floor);

    let markdown = report.to_markdown();
    print(markdown.as_bytes())?;
    let json = serde_json::to_string_pretty(&report)? + "\n";
    if let Some(file) = &options.output_json {
        write(file, &json)?;
    }
    if let Some(folder) = &options.output_dir {
        write(&folder.join("table.json"), &json)?;
        write(&folder.join("table.md"), &markdown)?;
        write(&folder.join("table.html"), &report.to_html())?;
    }
    Ok(())
}

/// With --strict an error about the first mode that was asked for and can't be had. The default ones are no demands.
fn refuse_missing(args: &TableArgs, why: impl Fn(Mode) -> Option<String>) -> anyhow::Result<()> {
    let asked = args.options.modes.iter().filter(|_| args.engine.compile.strict);
    match asked.into_iter().find_map(|mode| Some((mode, why(*mode)?))) {
        Some((mode, why)) => bail!("--strict: --modes {mode} can't be had: {why}; leave it out, or leave --strict out"),
        None => Ok(()),
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

/// The lengths that were asked for, or those of the default that fit, with a note where some don't.
fn input_lens(args: &TableArgs, max_model_len: usize) -> (Vec<usize>, Vec<String>) {
    let options = &args.options;
    if !options.lengths.is_empty() {
        return (options.lengths.clone(), Vec::new());
    }
    let (fit, others): (Vec<usize>, Vec<usize>) =
        DEFAULT_INPUT_LENS.into_iter().partition(|len| len + options.output_len <= max_model_len);
    if others.is_empty() {
        return (fit, Vec::new());
    }
    let names = |lens: &[usize]| lens.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let note = format!("Left out, since --max-model-len is {max_model_len}: inputs of {} tokens.", names(&others));
    tracing::warn!("{note}");
    // The engine refuses what is too long and says what would fit.
    (if fit.is_empty() { others } else { fit }, vec![note])
}

fn known_ceilings(args: &TableArgs, device: &Device) -> anyhow::Result<Ceilings> {
    let given = (args.options.bandwidth, args.options.flops);
    if let Device::Gpu(runtime, _) = device
        && runtime.info().kind == "sim"
        && (given.0.is_none() || given.1.is_none())
    {
        return Ok(Ceilings::Unknown { why: "the simulated GPU is as fast as the machine below it".to_owned() });
    }
    let (ceilings, source) = ceilings(device, given.0, given.1)?;
    let refrain_program::Ceilings { bytes_per_second, flops_per_second } = ceilings;
    Ok(Ceilings::Known { bytes_per_second, flops_per_second, source })
}

/// The least times of a batch at one input length.
fn floor(
    program: &Program,
    ceilings: &Ceilings,
    batch_size: usize,
    input_len: usize,
    output_len: usize,
) -> Option<Floor> {
    let &Ceilings::Known { bytes_per_second, flops_per_second, .. } = ceilings else { return None };
    let ceilings = refrain_program::Ceilings { bytes_per_second, flops_per_second };
    let prefill = StepShape { segments: vec![(input_len, 0); batch_size], logit_rows: batch_size };
    let decode = StepShape::decode(batch_size, input_len + output_len / 2);
    let seconds = |shape: &StepShape| program.estimate(shape, &ceilings).floor_seconds;
    Some(Floor { prefill_seconds: seconds(&prefill), decode_seconds: seconds(&decode) })
}

/// What is known once all requests have ended.
fn facts(loaded: &Loaded, ceilings: Ceilings) -> anyhow::Result<TableFacts> {
    let device = loaded.engine.device();
    let report = &loaded.report;
    let mut extra = Map::new();
    extra.insert("memory_plan".to_owned(), report.memory_json());
    extra.insert("settings".to_owned(), Value::Object(report.settings.to_json()));
    let in_use = loaded.device.in_use().context("can't ask for the memory in use")?;
    let memory = report.in_use.zip(in_use).map(|(ready, end)| DeviceMemoryUse {
        planned_bytes: report.memory.total_bytes as u64,
        ready_bytes: ready as u64,
        end_bytes: end as u64,
    });
    Ok(TableFacts {
        model_id: loaded.model.name.clone(),
        device: format!("{}: {} ({})", device.kind, device.name, device.compute),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        date: date(SystemTime::now()),
        ceilings,
        graph_memory_bytes: report.graphs.as_ref().map(|graphs| graphs.bytes as u64),
        memory,
        start: super::start_phases(report),
        extra,
    })
}
