//! Packs: every kernel that the supported models need, compiled, in one file for each architecture.

use crate::architectures::Compilers;
use crate::compile::compile_all;
use crate::models::Model;
use crate::variants::variants;
use anyhow::{Context, Result, bail};
use refrain_gpu::Target;
use refrain_gpu::loader::{KernelCache, source_key, write_pack};
use std::path::{Path, PathBuf};

/// What a pack holds.
#[derive(Debug)]
pub struct Packed {
    /// Where it is.
    pub path: PathBuf,
    /// Kernels in it.
    pub kernels: usize,
    /// Who compiled them.
    pub compiler: String,
}

/// Compiles all kernels of some models for the cards of one architecture into a pack in `folder`.
///
/// # Errors
/// When there is no compiler, a kernel does not compile, or the pack can't be written.
pub fn pack(
    models: &[Model],
    targets: &[Target],
    folder: &Path,
    compilers: &Compilers,
    cache: Option<&KernelCache>,
    jobs: usize,
) -> Result<Packed> {
    let arch = targets.first().context("no target")?.arch.as_str();
    let kernels = variants(models, targets)?;
    let compiled = compile_all(&kernels, arch, compilers, cache, jobs)?;
    if !compiled.failed.is_empty() {
        let failed: Vec<String> = compiled.failed.iter().map(ToString::to_string).collect();
        bail!("{} kernels do not compile, so there is no pack:\n{}", failed.len(), failed.join("\n"));
    }
    let images = compiled.units.into_iter().map(|(unit, code)| (source_key(&unit.source()), code.image)).collect();
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = write_pack(folder, arch, &compiled.compiler, &images).with_context(|| folder.display().to_string())?;
    Ok(Packed { path, kernels: images.len(), compiler: compiled.compiler })
}
