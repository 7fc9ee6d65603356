//! What kernels are compiled for, and by which compiler, on a machine that need not have such a device.

use anyhow::{Context, Result, bail};
use refrain_cuda::{CudaOptions, NvrtcCompiler};
use refrain_device::{CompiledKernel, Compiler, KernelResources};
use refrain_gpu::Target;
use refrain_hip::{ClangCompiler, CodeObject, HipOptions};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Most shared memory of a block in KiB, by compute capability (CUDA C++ Programming Guide, technical specifications).
const NVIDIA_SHARED: [(u32, u32); 11] = [
    (75, 64),
    (80, 163),
    (86, 99),
    (87, 163),
    (89, 99),
    (90, 227),
    (100, 227),
    (103, 227),
    (110, 227),
    (120, 99),
    (121, 99),
];

/// Where compilers are.
#[derive(Clone, Debug, Default)]
pub struct Compilers {
    /// The folder of `libnvrtc.so`; none: where CUDA is usually installed.
    pub nvrtc: Option<PathBuf>,
    /// Clang with support for AMD GPUs; none: the installed one.
    pub clang: Option<PathBuf>,
}

impl Compilers {
    /// Those of the tests, the same everywhere: NVRTC from the package index, Debian's clang 19. `None` when they can't
    /// be had; why is said.
    pub fn of_tests() -> Option<Compilers> {
        Some(Compilers { nvrtc: Some(refrain_testkit::nvrtc_dir()?), clang: Some(refrain_testkit::clang19()?) })
    }

    /// The compiler for an architecture.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(&self, arch: &str) -> Result<Box<dyn Compiler>> {
        match maker(arch)? {
            Maker::Nvidia(_) => {
                let options = CudaOptions { library_dirs: self.nvrtc.iter().cloned().collect() };
                let compiler = NvrtcCompiler::load(&options)?;
                // The loader goes before the options, and a budget is one compiler's.
                if let Some(folder) = self.nvrtc.as_ref().filter(|folder| !compiler.path().starts_with(folder)) {
                    let found = compiler.path().display();
                    bail!("NVRTC was asked for from {}, and the system's loader gave {found}", folder.display());
                }
                Ok(Box::new(compiler))
            }
            Maker::Amd => Ok(Box::new(match &self.clang {
                Some(program) => ClangCompiler::new(program)?,
                None => ClangCompiler::find(&HipOptions::default())?,
            })),
        }
    }
}

enum Maker {
    /// With its compute capability.
    Nvidia(u32),
    Amd,
}

fn maker(arch: &str) -> Result<Maker> {
    let capability = arch.strip_prefix("sm_").map(|number| number.trim_end_matches(['a', 'f']).parse());
    match capability {
        Some(Ok(capability)) if NVIDIA_SHARED.iter().any(|(known, _)| *known == capability) => {
            Ok(Maker::Nvidia(capability))
        }
        None if arch.starts_with("gfx9") => Ok(Maker::Amd),
        _ => bail!("{arch} is no architecture that kernels are compiled for: give sm_80, sm_90a, gfx906 or the like"),
    }
}

/// What kernels for an architecture are chosen by. The number of processors is left at 1: code does not depend on it.
///
/// # Errors
/// When the architecture is not known.
pub fn target(arch: &str) -> Result<Target> {
    let arch_name = arch.to_owned();
    Ok(match maker(arch)? {
        Maker::Nvidia(capability) => {
            let shared = NVIDIA_SHARED.iter().find(|(known, _)| *known == capability).expect("`maker` looked").1;
            Target { arch: arch_name, wave: 32, mma: capability >= 80, processors: 1, shared_bytes: shared << 10 }
        }
        Maker::Amd => Target { arch: arch_name, wave: 64, mma: false, processors: 1, shared_bytes: 64 << 10 },
    })
}

/// What every kernel of some compiled code needs, by entry, as its compiler reports it.
///
/// # Errors
/// When the code says nothing about it.
pub fn resources(arch: &str, compiled: &CompiledKernel) -> Result<BTreeMap<String, KernelResources>> {
    Ok(match maker(arch)? {
        Maker::Nvidia(_) => refrain_cuda::kernel_resources(&compiled.log).into_iter().collect(),
        Maker::Amd => {
            let object = CodeObject::read(&compiled.image).context("what clang made can't be read")?;
            let kernels = object.kernels.iter().map(|kernel| {
                // A register that was kept elsewhere is a spill, also where it found room in another register.
                let spilled = 4 * (kernel.vector_spills + kernel.scalar_spills);
                let resources = KernelResources::from(kernel);
                (kernel.name.clone(), KernelResources { local_bytes: resources.local_bytes.max(spilled), ..resources })
            });
            kernels.collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_of_the_devices() {
        let nvidia = target("sm_90a").unwrap();
        assert_eq!((nvidia.wave, nvidia.mma, nvidia.shared_bytes), (32, true, 232_448));
        assert_eq!(target("sm_80").unwrap().shared_bytes, 166_912);
        assert!(!target("sm_75").unwrap().mma);
        let amd = target("gfx906").unwrap();
        assert_eq!((amd.wave, amd.mma, amd.shared_bytes, amd.arch.as_str()), (64, false, 65536, "gfx906"));
        for unknown in ["sm_", "sm_42", "sm_90x", "gfx1100", "sim32", ""] {
            let error = target(unknown).unwrap_err().to_string();
            assert!(error.contains("give sm_80, sm_90a, gfx906"), "{error}");
        }
    }
}
