//! What kernels are chosen by.

use refrain_device::RuntimeInfo;

/// The properties of a device on which the choice of kernels and their constants depends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What code is compiled for: `sm_90a`, `gfx906`, `sim32`.
    pub arch: String,
    /// Threads of a wave.
    pub wave: u32,
    /// Whether `kx_mma_*` exist.
    pub mma: bool,
    /// Multiprocessors.
    pub processors: u32,
    /// Most shared memory of a block, bytes.
    pub shared_bytes: u32,
}

impl From<&RuntimeInfo> for Target {
    fn from(info: &RuntimeInfo) -> Target {
        Target {
            arch: info.arch.clone(),
            wave: info.wave,
            mma: info.mma,
            processors: info.processors,
            shared_bytes: info.shared_bytes,
        }
    }
}
