//! `refrain device`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use refrain::cli::device::DeviceCommandArgs;
use refrain::load::{DeviceChoice, GpuSettings, human_bytes, open};
use refrain_bench::{BANDWIDTH_BUFFER_BYTES, read_bandwidth};
use refrain_cpu::{CpuOptions, Isa, Precision};
use refrain_device::{DeviceError, Runtime};
use refrain_gpu::check::{Outcome, Rig, Scale, cases};
use refrain_gpu::{KernelOptions, MEASURED_BYTES, Measured, Products, Target, measure};
use serde_json::{Value, json};

use super::print;

/// Lists the devices, and checks their kernels when asked to.
pub fn run(args: &DeviceCommandArgs) -> anyhow::Result<()> {
    let choice = args.device.device.unwrap_or_default();
    let gpu = args.device.gpu_settings();
    let mut report = Report::default();
    if matches!(choice, DeviceChoice::Auto | DeviceChoice::Cpu) {
        report.cpu(args);
    }
    for device in gpus(choice, &gpu) {
        match device {
            // An error only where the library's were asked for.
            Ok(runtime) => report.gpu(&runtime, &gpu, &gpu.products.of(&*runtime)?, args),
            Err((name, error)) if choice == DeviceChoice::Auto => report.unusable(&name, &error),
            Err((_, error)) => return Err(error.into()),
        }
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report.json).context("can't write the report")? + "\n"
    } else {
        report.text.clone()
    };
    print(text.as_bytes())?;
    report.outcome()
}

/// The GPUs of a choice: each one opened, or why it can't be used.
fn gpus(choice: DeviceChoice, gpu: &GpuSettings) -> Vec<Result<Arc<dyn Runtime>, (String, DeviceError)>> {
    let opened = |choice: DeviceChoice| {
        let unused = CpuOptions { threads: 1, precision: Precision::F32, isa: None, passes: None };
        match open(choice, unused, gpu) {
            Ok((refrain::load::Device::Gpu(runtime, _), _)) => Ok(runtime),
            Ok((refrain::load::Device::Cpu(_), _)) => unreachable!("a GPU was named"),
            Err(error) => Err((choice.to_string(), error)),
        }
    };
    match choice {
        DeviceChoice::Cpu => Vec::new(),
        DeviceChoice::Auto => {
            let cuda = refrain_cuda::devices(&gpu.cuda()).map(|devices| devices.len());
            let hip = refrain_hip::devices(&gpu.hip()).map(|devices| devices.len());
            let all = |name: &str, count: Result<usize, DeviceError>, device: fn(usize) -> DeviceChoice| match count {
                Ok(count) => (0..count).map(|index| opened(device(index))).collect(),
                Err(error) => vec![Err((name.to_owned(), error))],
            };
            let mut found: Vec<_> = all("cuda", cuda, DeviceChoice::Cuda);
            found.extend(all("hip", hip, DeviceChoice::Hip));
            found
        }
        named => vec![opened(named)],
    }
}

#[derive(Default)]
struct Report {
    text: String,
    json: Vec<Value>,
    /// Kernels that are wrong.
    failed: usize,
    /// Devices whose check was asked for and came to no end, or left something out.
    unchecked: usize,
    /// Devices that could not be measured.
    unmeasured: usize,
}

impl Report {
    /// How the command ends.
    fn outcome(&self) -> anyhow::Result<()> {
        match (self.failed, self.unchecked, self.unmeasured) {
            (0, 0, 0) => Ok(()),
            (0, 0, unmeasured) => bail!("{unmeasured} of the devices could not be measured"),
            (0, unchecked, _) => bail!("{unchecked} of the devices could not be checked"),
            (failed, _, _) => bail!("{failed} of the checked kernels are wrong"),
        }
    }

    fn line(&mut self, line: &str) {
        self.text += line;
        self.text.push('\n');
    }

    fn cpu(&mut self, args: &DeviceCommandArgs) {
        let threads = args.device.threads.unwrap_or_else(refrain_cpu::default_threads);
        let (name, isa) = (refrain_cpu::processor_name(), Isa::detect());
        let bandwidth = (!args.no_measure).then(|| read_bandwidth(threads, BANDWIDTH_BUFFER_BYTES));
        let usable = refrain_cpu::usable_memory();
        self.line(&format!("cpu     {name}, {isa}, {threads} threads"));
        let may = human_bytes(usize::try_from(usable.bytes).unwrap_or(usize::MAX));
        self.line(&format!("        {may} of memory may be used ({})", usable.limited_by));
        if let Some(bandwidth) = bandwidth {
            self.line(&format!("        reads {}", rate(bandwidth, "B/s")));
        }
        self.json.push(json!({
            "device": "cpu", "name": name, "isa": isa.to_string(), "threads": threads,
            "usable_bytes": usable.bytes, "read_bytes_per_second": bandwidth,
        }));
    }

    fn unusable(&mut self, name: &str, error: &DeviceError) {
        let why = match error {
            DeviceError::Unavailable { why, .. } => why.clone(),
            error => error.to_string(),
        };
        self.line(&format!("{name:<7} can't be used: {why}"));
        self.json.push(json!({ "device": name, "problem": why }));
    }

    /// What of a device fails is told, and is no reason to say nothing of the others.
    fn gpu(&mut self, runtime: &Arc<dyn Runtime>, gpu: &GpuSettings, products: &Products, args: &DeviceCommandArgs) {
        let info = runtime.info();
        let name = if info.kind == "sim" { "sim".to_owned() } else { format!("{}:{}", info.kind, info.index) };
        let memory = match runtime.memory() {
            Ok(memory) => memory,
            Err(error) => {
                self.unchecked += usize::from(args.check);
                self.unmeasured += 1;
                return self.unusable(&name, &error);
            }
        };
        self.line(&format!("{name:<7} {}, {}, driver {}", info.name, info.arch, info.driver));
        self.line(&format!(
            "        {} of {} free, {} processors, waves of {}, {} shared memory a block",
            human_bytes(memory.free),
            human_bytes(memory.total),
            info.processors,
            info.wave,
            human_bytes(info.shared_bytes as usize)
        ));
        let compiler = runtime.compiler().map(|compiler| compiler.describe());
        self.line(&match &compiler {
            Ok(compiler) => format!("        kernels are compiled by {compiler}"),
            Err(error) => format!("        kernels can't be compiled: {error}"),
        });
        self.line(&format!("        products by {products}"));
        // The simulated GPU is no faster or slower than this machine's CPU; its figures would say nothing.
        let measured = match info.kind {
            "sim" => None,
            _ if args.no_measure => None,
            _ => Some(measure(runtime, MEASURED_BYTES, gpu.kernels(), gpu.products)),
        };
        let mut problem = None;
        let measured = match measured.transpose() {
            Ok(measured) => measured,
            Err(error) => {
                self.unmeasured += 1;
                self.line(&format!("        can't be measured: {error}"));
                problem = Some(format!("can't be measured: {error}"));
                None
            }
        };
        if let Some(measured) = &measured {
            self.line(&format!("        {}", describe(measured)));
        }
        let mut json = json!({
            "device": name, "name": info.name, "arch": info.arch, "driver": info.driver, "wave": info.wave,
            "processors": info.processors, "free_bytes": memory.free, "total_bytes": memory.total,
            "compiler": compiler.ok(), "products": products.to_string(), "measured": measured.map(|measured| measured_json(&measured)),
        });
        if args.check {
            match self.check(runtime, gpu, args, measured.as_ref()) {
                Ok(check) => json["check"] = check,
                Err(error) => {
                    let error = format!("can't be checked: {}", super::message(&error));
                    self.line(&format!("        {error}"));
                    self.unchecked += 1;
                    problem.get_or_insert(error);
                }
            }
        }
        if let Some(problem) = problem {
            json["problem"] = problem.into();
        }
        self.json.push(json);
    }

    /// Compares kernels with double precision, by code of packs where they have it, else compiled anew: the cache is for
    /// what serves.
    fn check(
        &mut self,
        runtime: &Arc<dyn Runtime>,
        gpu: &GpuSettings,
        args: &DeviceCommandArgs,
        measured: Option<&Measured>,
    ) -> anyhow::Result<Value> {
        let scale = args.shapes.map_or(Scale::Ragged, Scale::from);
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let seed = args.check_seed.unwrap_or_else(clock);
        let kernels = KernelOptions { cache_dir: None, ..gpu.kernels() };
        let rig = Rig::with(runtime.clone(), kernels, seed, scale == Scale::Model)?;
        self.line(&format!("        kernels against double precision, seed {seed}:"));
        let (mut rows, mut without_code) = (Vec::new(), None);
        for case in cases(&Target::from(runtime.info()), scale) {
            let title = format!("{} {}", case.kernel, case.name);
            if args.only.as_ref().is_some_and(|only| !title.contains(only.as_str())) {
                continue;
            }
            let outcome = match (case.run)(&rig) {
                Ok(outcome) => outcome,
                // Packs have kernels of models only.
                Err(error @ DeviceError::NoCode { .. }) if runtime.compiler().is_err() => {
                    without_code.get_or_insert(error);
                    rows.push(json!({ "kernel": case.kernel, "case": case.name, "problem": "no code" }));
                    continue;
                }
                Err(error) => return Err(error).with_context(|| title.clone()),
            };
            self.failed += usize::from(!outcome.passes());
            let share = measured.and_then(|measured| roofline_share(&outcome, measured));
            let verdict = if outcome.passes() { "ok   " } else { "WRONG" };
            let time = outcome.seconds.map_or(String::new(), |seconds| format!("  {:9.1} µs", seconds * 1e6));
            let percent = share.map_or(String::new(), |share| format!("  {:5.1} % of the roofline", share * 100.0));
            self.line(&format!(
                "        {verdict} {title:<60} error {:.1e} of {:.1e}{time}{percent}",
                outcome.error, outcome.tolerance
            ));
            rows.push(json!({
                "kernel": case.kernel, "case": case.name, "error": outcome.error, "tolerance": outcome.tolerance,
                "passes": outcome.passes(), "seconds": outcome.seconds, "bytes": outcome.bytes, "flops": outcome.flops,
                "roofline_share": share,
            }));
        }
        if let (true, Some(only)) = (rows.is_empty(), &args.only) {
            bail!("no case has {only:?} in its name; without --only all of them are run and named");
        }
        if let Some(error) = without_code {
            self.unchecked += 1;
            let count = rows.iter().filter(|row| row["problem"] == "no code").count();
            self.line(&format!("        {count} of {} cases could not be checked: {error}", rows.len()));
        }
        Ok(json!({ "seed": seed, "cases": rows }))
    }
}

/// The least time that the case could take over the time it took.
fn roofline_share(outcome: &Outcome, measured: &Measured) -> Option<f64> {
    let memory = outcome.bytes as f64 / measured.read_bandwidth.max(measured.copy_bandwidth);
    let arithmetic = measured.bf16_flops.map_or(0.0, |flops| outcome.flops as f64 / flops);
    let floor = memory.max(arithmetic);
    outcome.seconds.filter(|_| floor > 0.0).map(|seconds| floor / seconds)
}

fn describe(measured: &Measured) -> String {
    let flops = measured.bf16_flops.map_or(String::new(), |flops| format!(", BF16 products {}", rate(flops, "FLOP/s")));
    format!(
        "reads {}, copies {} (read and written){flops}, {:.2} µs to launch a kernel, {:.2} µs from one to the next",
        rate(measured.read_bandwidth, "B/s"),
        rate(measured.copy_bandwidth, "B/s"),
        measured.launch_seconds * 1e6,
        measured.kernel_seconds * 1e6
    )
}

fn measured_json(measured: &Measured) -> Value {
    json!({
        "read_bytes_per_second": measured.read_bandwidth, "copy_bytes_per_second": measured.copy_bandwidth,
        "bf16_flops_per_second": measured.bf16_flops, "launch_seconds": measured.launch_seconds,
        "kernel_seconds": measured.kernel_seconds,
    })
}

/// `3.05 TB/s`.
fn rate(value: f64, unit: &str) -> String {
    let (scale, prefix) = match value {
        value if value >= 1e12 => (1e12, "T"),
        value if value >= 1e9 => (1e9, "G"),
        _ => (1e6, "M"),
    };
    format!("{:.2} {prefix}{unit}", value / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain::cli::{Cli, Command};
    use std::ffi::OsString;

    #[test]
    fn a_device_that_fails_keeps_nothing_from_being_told_of_the_others() {
        let check = ["refrain", "device", "--device", "sim", "--check", "--only", "embed"];
        let Ok((Cli { command: Command::Device(args), .. }, _)) = refrain::cli::parse(check.map(OsString::from)) else {
            panic!("it is a command");
        };
        let sim = refrain_sim::SimRuntime::new(refrain_sim::SimOptions::default());
        let mut report = Report::default();
        // Its first kernel is its last one.
        sim.lose_device(0);
        let lost: Arc<dyn Runtime> = sim;
        report.gpu(&lost, &GpuSettings::default(), &Products::Own(String::new()), &args);
        report.gpu(&lost, &GpuSettings::default(), &Products::Own(String::new()), &args);
        assert_eq!((report.json.len(), report.unchecked, report.failed), (2, 2, 0), "{}", report.text);
        assert!(report.json[0]["problem"].as_str().is_some_and(|why| why.starts_with("can't be checked: ")));
        assert!(report.text.contains("        can't be checked: "), "{}", report.text);
        assert!(report.outcome().is_err());
    }

    #[test]
    fn checking_nothing_is_an_error() {
        let check = ["refrain", "device", "--device", "sim", "--check", "--only", "no such kernel"];
        let Ok((Cli { command: Command::Device(args), .. }, _)) = refrain::cli::parse(check.map(OsString::from)) else {
            panic!("it is a command");
        };
        let sim: Arc<dyn Runtime> = refrain_sim::SimRuntime::new(refrain_sim::SimOptions::default());
        let mut report = Report::default();
        report.gpu(&sim, &GpuSettings::default(), &Products::Own(String::new()), &args);
        assert!(report.text.contains("no case has \"no such kernel\" in its name"), "{}", report.text);
        assert_eq!(report.outcome().unwrap_err().to_string(), "1 of the devices could not be checked");
    }

    #[test]
    fn rates_are_readable() {
        assert_eq!(rate(3.05e12, "B/s"), "3.05 TB/s");
        assert_eq!(rate(38.1e9, "B/s"), "38.10 GB/s");
        assert_eq!(rate(2e6, "FLOP/s"), "2.00 MFLOP/s");
    }

    #[test]
    fn the_roofline_is_the_larger_of_bytes_and_operations() {
        let measured = Measured {
            read_bandwidth: 3e12,
            copy_bandwidth: 2e12,
            bf16_flops: Some(800e12),
            launch_seconds: 0.0,
            kernel_seconds: 0.0,
        };
        let outcome = Outcome { bytes: 3_000_000, flops: 0, seconds: Some(2e-6), ..Outcome::default() };
        assert_eq!(roofline_share(&outcome, &measured), Some(0.5));
        let outcome = Outcome { flops: 1_600_000_000, ..outcome };
        assert_eq!(roofline_share(&outcome, &measured), Some(1.0));
        assert_eq!(roofline_share(&Outcome { seconds: None, ..outcome }, &measured), None);
    }
}
