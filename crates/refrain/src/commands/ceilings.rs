//! What a device can do at most: what is given, measured, or worked out.

use anyhow::bail;
use refrain::load::Device;
use refrain_bench::{BANDWIDTH_BUFFER_BYTES, read_bandwidth};
use refrain_cpu::{CpuOptions, Isa, Precision, SimdLevel};
use refrain_gpu::{MEASURED_BYTES, Products, measure};
use refrain_program::Ceilings;

/// Why the ceilings of a device are not known without more flags; `None` where they can be had.
pub fn why_unknown(device: &Device, flops: Option<f64>) -> anyhow::Result<Option<String>> {
    let Device::Gpu(runtime, gpu) = device else { return Ok(None) };
    Ok(match gpu.products.of(&**runtime)? {
        Products::Own(why) if flops.is_none() => Some(format!(
            "what {} can do is measured by a library of matrix products: {why}; give --flops",
            device.name()
        )),
        _ => None,
    })
}

/// The ceilings of a device that has nothing on it, and where they come from. What is given for both is not measured.
pub fn ceilings(device: &Device, bandwidth: Option<f64>, flops: Option<f64>) -> anyhow::Result<(Ceilings, String)> {
    // What can't be measured is known before the rest is, which takes a while.
    if let Some(why) = why_unknown(device, flops)? {
        bail!(why);
    }
    let measured = match device {
        Device::Gpu(runtime, gpu) if bandwidth.is_none() || flops.is_none() => {
            Some(measure(runtime, MEASURED_BYTES, gpu.kernels(), gpu.products)?)
        }
        _ => None,
    };
    let (bandwidth, bandwidth_source) = match (bandwidth, measured) {
        (Some(bandwidth), _) => (bandwidth, "as given"),
        (None, Some(measured)) => (measured.read_bandwidth, "measured"),
        (None, None) => (read_bandwidth(device.threads(), BANDWIDTH_BUFFER_BYTES), "measured"),
    };
    let (flops, flops_source) = match (flops, measured, device) {
        (Some(flops), ..) => (flops, "as given".to_owned()),
        (None, Some(measured), _) => match measured.bf16_flops {
            Some(flops) => (flops, "measured".to_owned()),
            None => bail!("the arithmetic of {} was not measured; give --flops", device.name()),
        },
        (None, None, Device::Cpu(cpu)) => nominal_flops(cpu),
        (None, None, Device::Gpu(..)) => unreachable!("it was measured"),
    };
    let ceilings = Ceilings { bytes_per_second: bandwidth, flops_per_second: flops };
    Ok((ceilings, format!("bandwidth {bandwidth_source}, arithmetic {flops_source}")))
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
    use super::*;
    use refrain_sim::{SimOptions, SimRuntime};

    #[test]
    fn what_cannot_be_measured_is_known_before_anything_is() {
        let sim = SimRuntime::new(SimOptions::default());
        let device = Device::Gpu(sim.clone(), Box::default());
        let error = ceilings(&device, None, None).unwrap_err().to_string();
        assert!(error.contains("there is no library") && error.contains("give --flops"), "{error}");
        let own = refrain::load::GpuSettings { products: refrain_gpu::ProductsChoice::Own, ..Default::default() };
        let error = ceilings(&Device::Gpu(sim.clone(), Box::new(own)), None, None).unwrap_err().to_string();
        assert!(error.contains("was not asked for") && sim.counters().launches == 0, "{error}");
    }

    #[test]
    fn the_highest_clock_counts() {
        assert_eq!(clock("cpu MHz\t\t: 2000.000\nflags\t: avx\ncpu MHz\t\t: 2400.5\n"), Some(2_400_500_000.0));
        assert_eq!(clock("flags: avx\n"), None);
    }
}
