//! What kernels may need: `kernels/budget.json` holds, for every architecture and every kernel of a fixed list, the
//! most registers and static shared memory. Local memory, where spilled registers go, is nobody's.

use anyhow::{Context, Result};
use refrain_device::KernelResources;
use refrain_gpu::Kernel;
use refrain_gpu::loader::CompileUnit;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::architectures::resources;
use crate::compile::Compiled;

/// The architectures that have a budget.
pub const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "gfx906"];

/// What one kernel may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Allowance {
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block, bytes.
    pub shared_bytes: u32,
}

/// By architecture and kernel.
pub type Budget = BTreeMap<String, BTreeMap<String, Allowance>>;

/// What kernels need, by name.
pub type Needs = BTreeMap<String, KernelResources>;

/// How a kernel is called in the budget: `norm.cu rms_norm THREADS=256 WIDTH=2560`.
pub fn name(kernel: &Kernel) -> String {
    let mut name = format!("{} {}", kernel.source, kernel.entry);
    if let Some(what) = kernel.text.as_deref().and_then(|text| text.lines().next()) {
        let _ = write!(name, " ({})", what.trim_start_matches("// "));
    }
    for (define, value) in &kernel.defines {
        let _ = write!(name, " {define}={value}");
    }
    name
}

/// What each kernel needs.
///
/// # Errors
/// When one was compiled and its code has no such entry.
pub fn needs(kernels: &[Kernel], arch: &str, compiled: &Compiled) -> Result<Needs> {
    let mut by_unit = BTreeMap::new();
    for (unit, code) in &compiled.units {
        by_unit.insert(unit, resources(arch, code).with_context(|| format!("{unit} for {arch}"))?);
    }
    let mut needs = Needs::new();
    for kernel in kernels {
        let unit = CompileUnit::from(kernel);
        // What does not compile is told elsewhere.
        let Some(entries) = by_unit.get(&unit) else { continue };
        let found = entries.get(kernel.entry);
        let found = found.with_context(|| format!("{unit} has no kernel {} for {arch}", kernel.entry))?;
        needs.insert(name(kernel), *found);
    }
    Ok(needs)
}

/// What is wrong with the needs of kernels, one line each.
pub fn compare(budget: &BTreeMap<String, Allowance>, needs: &Needs) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, needed) in needs {
        if needed.local_bytes > 0 {
            problems.push(format!(
                "{name} keeps {} bytes of a thread in memory: registers are spilled, or an array is indexed by what \
                 the compiler does not know",
                needed.local_bytes
            ));
        }
        let Some(allowed) = budget.get(name) else {
            problems.push(format!("{name} has no budget"));
            continue;
        };
        let parts = [
            ("registers", needed.registers, allowed.registers),
            ("bytes of shared memory", needed.shared_bytes, allowed.shared_bytes),
        ];
        for (what, needed, allowed) in parts.into_iter().filter(|(_, needed, allowed)| needed > allowed) {
            problems.push(format!("{name} needs {needed} {what}, its budget is {allowed}"));
        }
    }
    let gone = budget.keys().filter(|name| !needs.contains_key(*name));
    problems.extend(gone.map(|name| format!("{name} has a budget and is not compiled any more")));
    problems
}

/// A budget that these needs just keep. Registers are rounded up to the steps in which the hardware hands them out
/// (8 on NVIDIA's GPUs, 4 on AMD's), so that a compiler's next version has some room where it costs nothing.
pub fn allow(arch: &str, needs: &Needs) -> BTreeMap<String, Allowance> {
    let step = if arch.starts_with("sm_") { 8 } else { 4 };
    let allowance = |needed: &KernelResources| Allowance {
        registers: needed.registers.next_multiple_of(step),
        shared_bytes: needed.shared_bytes,
    };
    needs.iter().map(|(name, needed)| (name.clone(), allowance(needed))).collect()
}

/// Reads a budget.
///
/// # Errors
/// When it can't be read.
pub fn read(path: &Path) -> Result<Budget> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// A budget as text: a line for each kernel, so that differences can be read.
pub fn text(budget: &Budget) -> String {
    let quoted = |name: &str| serde_json::to_string(name).expect("a string");
    let kernel = |(name, allowed): (&String, &Allowance)| {
        let Allowance { registers, shared_bytes } = allowed;
        format!("    {}: {{\"registers\": {registers}, \"shared_bytes\": {shared_bytes}}}", quoted(name))
    };
    let arch = |(arch, kernels): (&String, &BTreeMap<String, Allowance>)| {
        let kernels: Vec<String> = kernels.iter().map(kernel).collect();
        format!("  {}: {{\n{}\n  }}", quoted(arch), kernels.join(",\n"))
    };
    let architectures: Vec<String> = budget.iter().map(arch).collect();
    format!("{{\n{}\n}}\n", architectures.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(registers: u32, shared_bytes: u32, local_bytes: u32) -> KernelResources {
        KernelResources { registers, shared_bytes, local_bytes }
    }

    fn needs() -> Needs {
        [("a", needed(30, 0, 0)), ("b", needed(40, 1024, 0))].map(|(name, needed)| (name.to_owned(), needed)).into()
    }

    #[test]
    fn a_budget_is_kept_by_what_it_was_made_from() {
        for (arch, registers) in [("sm_90a", 32), ("gfx906", 32), ("gfx906", 32)] {
            let budget = allow(arch, &needs());
            assert_eq!(budget["a"], Allowance { registers, shared_bytes: 0 });
            assert_eq!(compare(&budget, &needs()), Vec::<String>::new());
        }
        assert_eq!(allow("gfx906", &[("c".to_owned(), needed(33, 0, 0))].into())["c"].registers, 36);
        assert_eq!(allow("sm_80", &[("c".to_owned(), needed(33, 0, 0))].into())["c"].registers, 40);
    }

    #[test]
    fn everything_above_it_is_told() {
        let budget = allow("sm_90a", &needs());
        let told = |name: &str, resources: KernelResources| {
            let mut needs = needs();
            needs.insert(name.to_owned(), resources);
            compare(&budget, &needs)
        };
        assert_eq!(told("a", needed(32, 0, 0)), Vec::<String>::new());
        assert_eq!(told("a", needed(33, 0, 0)), ["a needs 33 registers, its budget is 32"]);
        assert_eq!(told("b", needed(40, 1025, 0)), ["b needs 1025 bytes of shared memory, its budget is 1024"]);
        assert!(told("a", needed(30, 0, 8))[0].starts_with("a keeps 8 bytes of a thread in memory"));
        assert_eq!(told("c", needed(1, 0, 0)), ["c has no budget"]);
        let mut fewer = needs();
        fewer.remove("b");
        assert_eq!(compare(&budget, &fewer), ["b has a budget and is not compiled any more"]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let budget: Budget = ["gfx906", "sm_90a"].map(|arch| (arch.to_owned(), allow(arch, &needs()))).into();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget.json");
        std::fs::write(&path, text(&budget)).unwrap();
        assert_eq!(read(&path).unwrap(), budget);
        assert!(text(&budget).contains("\n    \"b\": {\"registers\": 40, \"shared_bytes\": 1024}\n  },\n"));
    }

    #[test]
    fn a_kernel_is_called_by_all_that_makes_it() {
        let kernel = Kernel::new("norm.cu", "rms_norm", 256).define("WIDTH", 2560);
        assert_eq!(name(&kernel), "norm.cu rms_norm THREADS=256 WIDTH=2560");
    }
}
