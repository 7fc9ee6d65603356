//! NVIDIA's run-time compiler from the package index, so that kernels are compiled where there is no CUDA.

use crate::python::{python, run};
use crate::skip;
use std::path::PathBuf;
use std::process::Command;

/// The folder with NVRTC's libraries (`libnvrtc.so.13` and its built-ins), installed with the tests' Python. `None`
/// when it can't be had: the test that asked is to return, why is said.
///
/// # Panics
/// When the package is installed and holds no such library.
pub fn nvrtc_dir() -> Option<PathBuf> {
    if !cfg!(target_os = "linux") {
        skip(std::thread::current().name().unwrap_or("a test"), "NVRTC is published for Linux only");
        return None;
    }
    let python = python()?;
    let script = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let packages = run(Command::new(python).args(["-c", script])).unwrap_or_else(|why| panic!("{why}"));
    let folder = PathBuf::from(packages).join("nvidia/cu13/lib");
    assert!(folder.join("libnvrtc.so.13").exists(), "nvidia-cuda-nvrtc has no libnvrtc.so.13 in {}", folder.display());
    Some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_ins_lie_beside_the_library() {
        let Some(folder) = nvrtc_dir() else { return };
        assert!(folder.join("libnvrtc-builtins.so.13.0").exists(), "{}", folder.display());
    }
}
