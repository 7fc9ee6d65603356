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

/// Multiprocessors or compute units of the cards of an architecture, the one that kernels are tuned for first: some
/// constants depend on their number. By the vendors' data sheets: A100, A30; A40, RTX 3090, A10; L40S, RTX 4090, L4; H100
/// SXM and H200, H100 PCIe, H20; MI50 and Z100, MI60; MI100.
const PROCESSORS: [(&str, &[u32]); 6] = [
    ("sm_80", &[108, 56]),
    ("sm_86", &[84, 82, 72]),
    ("sm_89", &[142, 128, 58]),
    ("sm_90a", &[132, 114, 78]),
    ("gfx906", &[60, 64]),
    ("gfx908", &[120]),
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
                Ok(Box::new(NvrtcCompiler::load(&options)?))
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

/// What kernels for the cards of an architecture are chosen by: for those with as many processors as given, or for the
/// known ones where none are given, the one that kernels are tuned for first.
///
/// # Errors
/// When the architecture is not known, or no number is given and none is known.
pub fn targets(arch: &str, processors: &[u32]) -> Result<Vec<Target>> {
    let (wave, mma, shared_kib) = match maker(arch)? {
        Maker::Nvidia(capability) => {
            let shared = NVIDIA_SHARED.iter().find(|(known, _)| *known == capability).expect("`maker` looked").1;
            (32, capability >= 80, shared)
        }
        Maker::Amd => (64, false, 64),
    };
    let known = PROCESSORS.iter().find(|(known, _)| *known == arch).map_or(&[][..], |(_, processors)| processors);
    let processors = if processors.is_empty() { known } else { processors };
    if processors.is_empty() {
        bail!("how many processors the cards of {arch} have is not known here: give it with --processors");
    }
    let target =
        |&processors: &u32| Target { arch: arch.to_owned(), wave, mma, processors, shared_bytes: shared_kib << 10 };
    Ok(processors.iter().map(target).collect())
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
        let first = |arch: &str| targets(arch, &[]).unwrap().remove(0);
        let nvidia = first("sm_90a");
        assert_eq!((nvidia.wave, nvidia.mma, nvidia.processors, nvidia.shared_bytes), (32, true, 132, 232_448));
        assert_eq!(first("sm_80").shared_bytes, 166_912);
        let amd = first("gfx906");
        assert_eq!((amd.wave, amd.mma, amd.processors, amd.shared_bytes), (64, false, 60, 65536));
        assert_eq!(amd.arch, "gfx906");
        let given: Vec<u32> = targets("sm_75", &[40, 72]).unwrap().iter().map(|target| target.processors).collect();
        assert_eq!(given, [40, 72]);
        assert!(!targets("sm_75", &[40]).unwrap()[0].mma);
    }

    #[test]
    fn what_is_not_known_is_told() {
        for unknown in ["sm_", "sm_42", "sm_90x", "gfx1100", "sim32", ""] {
            let error = targets(unknown, &[1]).unwrap_err().to_string();
            assert!(error.contains("give sm_80, sm_90a, gfx906"), "{error}");
        }
        let error = targets("sm_75", &[]).unwrap_err().to_string();
        assert!(error.contains("give it with --processors"), "{error}");
    }
}
