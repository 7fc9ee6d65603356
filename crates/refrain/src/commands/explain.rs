//! `refrain explain`.

use anyhow::{Context, bail};
use refrain::cli::explain::ExplainArgs;
use refrain::load::{Device, MODE_SETTINGS, prepare};
use refrain_bench::{BANDWIDTH_BUFFER_BYTES, read_bandwidth};
use refrain_cpu::{CpuOptions, Isa, Precision, SimdLevel};
use refrain_device::BLOCK_TOKENS;
use refrain_gpu::{MEASURED_BYTES, measure};
use refrain_program::{Ceilings, ExplainOptions, PassConfig, explain};

use super::{Invocation, print};

/// Prints what the model is made of, what it needs and what it can cost at best.
pub fn run(args: &ExplainArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    let prepared = prepare(&args.engine.load_options())?;
    let given = (args.options.bandwidth, args.options.flops);
    let measured = match &prepared.device {
        // What is given for both need not be measured.
        Device::Gpu(runtime, _) if given.0.is_none() || given.1.is_none() => Some(measure(runtime, MEASURED_BYTES)?),
        _ => None,
    };
    let (bandwidth, bandwidth_source) = match (given.0, measured, &prepared.device) {
        (Some(bandwidth), ..) => (bandwidth, "as given"),
        (None, Some(measured), _) => (measured.read_bandwidth, "measured"),
        (None, None, device) => (read_bandwidth(device.threads(), BANDWIDTH_BUFFER_BYTES), "measured"),
    };
    let (flops, flops_source) = match (given.1, measured, &prepared.device) {
        (Some(flops), ..) => (flops, "as given".to_owned()),
        (None, Some(measured), _) => match measured.bf16_flops {
            Some(flops) => (flops, "measured".to_owned()),
            None => bail!("no library of matrix products tells what {} can do; give --flops", prepared.device.name()),
        },
        (None, None, Device::Cpu(cpu)) => nominal_flops(cpu),
        (None, None, Device::Gpu(..)) => unreachable!("it was measured"),
    };
    let options = ExplainOptions {
        model: prepared.model.name.clone(),
        tokens: args.options.tokens,
        block_tokens: BLOCK_TOKENS,
        ceilings: Ceilings { bytes_per_second: bandwidth, flops_per_second: flops },
        ceilings_source: format!("bandwidth {bandwidth_source}, arithmetic {flops_source}"),
        passes: prepared.modes.compile_options().map_or_else(PassConfig::none, |compile| compile.passes),
        fuses_any_product: matches!(prepared.device, Device::Cpu(_)),
    };
    let explanation = explain(&prepared.program, &options);
    let mut modes = prepared.settings.among(&MODE_SETTINGS);
    modes.resolve(invocation.origins);
    let text = if args.options.json {
        let mut json = serde_json::to_value(&explanation).context("can't write the explanation")?;
        json["modes"] = modes.to_json().into();
        format!("{json:#}\n")
    } else {
        format!("{explanation}\nModes\n{modes}")
    };
    print(text.as_bytes())
}

/// What the cores could do if nothing held them up: operations in a cycle times the clock. The clock falls under load,
/// so nothing reaches it.
fn nominal_flops(cpu: &CpuOptions) -> (f64, String) {
    let isa = Isa::detect();
    let per_cycle = match (cpu.precision, isa, isa.simd()) {
        // One tile product of 16 x 16 x 32 multiply-adds every 16 cycles.
        (Precision::Bf16, Isa::Amx, _) => 1024.0,
        // Two units of 16 lanes of pairs, each a multiply-add.
        (Precision::Bf16, Isa::Avx512Bf16, _) => 128.0,
        (_, _, SimdLevel::Avx512) => 64.0,
        (_, _, SimdLevel::Avx2) => 32.0,
        (_, _, SimdLevel::Portable) => 8.0,
    };
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (clock, assumed) = clock(&cpuinfo).map_or((2e9, ", clock assumed"), |clock| (clock, ""));
    let threads = cpu.threads;
    let source = format!("nominal: {threads} x {per_cycle:.0} a cycle ({isa}) at {:.1} GHz{assumed}", clock / 1e9);
    (threads as f64 * per_cycle * clock, source)
}

/// The highest clock in hertz that the system names.
fn clock(cpuinfo: &str) -> Option<f64> {
    let megahertz = cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("cpu MHz")?.split_once(':')?.1.trim().parse::<f64>().ok())
        .max_by(f64::total_cmp)?;
    (megahertz > 0.0).then_some(megahertz * 1e6)
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn the_highest_clock_counts() {
        assert_eq!(clock("cpu MHz\t\t: 2000.000\nflags\t: avx\ncpu MHz\t\t: 2400.5\n"), Some(2_400_500_000.0));
        assert_eq!(clock("flags: avx\n"), None);
    }
}
