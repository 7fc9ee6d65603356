//! The kernel sources, inside the binary.

macro_rules! sources {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../../../kernels/", $name)))),*] };
}

/// Files that kernels include.
pub(crate) const HEADERS: &[(&str, &str)] = sources!["kx.h" "kx_cuda.h" "kx_hip.h" "kx_sim.h" "step.h"];

/// Files with kernels in them.
pub(crate) const SOURCES: &[(&str, &str)] =
    sources!["elementwise.cu" "gemm.cu" "gemm_mma.cu" "gemv.cu" "gemv_mma.cu" "norm.cu"];

/// The text of a kernel file.
///
/// # Panics
/// When there is none: kernels are named in this crate only.
pub(crate) fn source(name: &str) -> &'static str {
    let found = SOURCES.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no kernel source {name}")).1
}
