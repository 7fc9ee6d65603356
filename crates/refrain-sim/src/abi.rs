//! What the runtime and a compiled kernel file know of each other: the structs of `kernels/kx_sim.h`, field by field.

use std::ffi::c_void;

/// `KX_SIM_VERSION` of the header.
pub(crate) const VERSION: u32 = 1;

/// The state of a loaded image: who runs now, and the runtime's functions.
#[repr(C)]
pub(crate) struct State {
    pub tid: u32,
    pub block: [u32; 3],
    pub blocks: [u32; 3],
    pub reserved: u32,
    pub dynamic_shared: *mut u8,
    pub worker: *mut c_void,
    /// The functions, whose types are in the header.
    pub sync: *const (),
    pub sync_wave: *const (),
    pub shuffle: *const (),
    pub mma: *const (),
    pub ldmatrix: *const (),
    pub copy_async: *const (),
    pub copy_commit: *const (),
    pub copy_wait: *const (),
}

/// `kx_sim_image` of a kernel file.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Image {
    pub version: u32,
    pub wave: u32,
    pub state: *mut State,
    pub shared_begin: *mut u8,
    pub shared_end: *mut u8,
}

/// `kx_sim_kernel_NAME`: one entry for each kernel of a file.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub arguments: u32,
    pub threads: u32,
    pub run: unsafe extern "C" fn(*const u8),
}
