//! Many kernels compiled in all threads, with what a former run made taken from a cache.

use crate::architectures::Compilers;
use anyhow::Result;
use refrain_device::{CompiledKernel, DeviceError};
use refrain_gpu::Kernel;
use refrain_gpu::loader::{Cached, CompileUnit, KernelCache, compile, image_key, in_parallel, source_key};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{IsTerminal, Write};

/// What came of the compilation of some kernels for one architecture.
pub struct Compiled {
    /// Name, version and options of the compiler.
    pub compiler: String,
    /// What was made.
    pub units: BTreeMap<CompileUnit, CompiledKernel>,
    /// What does not compile.
    pub failed: Vec<DeviceError>,
}

/// Compiles kernels, those with the same source and constants once.
///
/// # Errors
/// When there is no compiler. A kernel that does not compile is in [`Compiled::failed`].
pub fn compile_all(
    kernels: &[Kernel],
    arch: &str,
    compilers: &Compilers,
    cache: Option<&KernelCache>,
    jobs: usize,
) -> Result<Compiled> {
    let compiler = compilers.open(arch)?;
    let description = compiler.describe();
    let units: Vec<CompileUnit> = kernels.iter().map(CompileUnit::from).collect::<BTreeSet<_>>().into_iter().collect();
    let work = |unit: &CompileUnit| {
        let key = image_key(source_key(&unit.source()), &description, arch, "");
        if let Some(Cached::Found(found)) = cache.map(|cache| cache.get(&key)) {
            return Ok::<_, Infallible>(Ok(found));
        }
        let made = compile(&*compiler, unit, arch);
        if let (Some(cache), Ok(made)) = (cache, &made) {
            // A cache that takes nothing costs time only.
            let _ = cache.put(&key, made);
        }
        Ok(made)
    };
    let results = in_parallel(&units, jobs, work, &|done, total| progress(arch, done, total));
    let Ok(results) = results;
    let (mut made, mut failed) = (BTreeMap::new(), Vec::new());
    for (unit, result) in units.into_iter().zip(results) {
        match result {
            Ok(compiled) => drop(made.insert(unit, compiled)),
            Err(error) => failed.push(error),
        }
    }
    Ok(Compiled { compiler: description, units: made, failed })
}

/// A line that is written over and over, for people only.
fn progress(arch: &str, done: usize, total: usize) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let end = if done == total { "\n" } else { "" };
        let _ = write!(out, "\r{arch}: {done} of {total} kernels{end}");
    }
}
