//! Loaded kernel files.

use crate::abi::{Image, Kernel, State, VERSION};
use crate::driver::{INVALID_IMAGE, NOT_FOUND};
use crate::{block, collectives};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use refrain_device::DeviceError;
use std::io::Write;

/// A shared object that was made by the compiler of this crate.
pub(crate) struct Loaded {
    library: Library,
    image: Image,
}

// SAFETY: the pointers are into the library, whose state only the holder of the device's lock touches.
unsafe impl Send for Loaded {}

/// Bytes in the section of shared memory that are there in every file, see `kx_sim_shared_mark`.
const MARK: usize = 16;

impl Loaded {
    /// Loads an image for waves of `wave` threads.
    pub(crate) fn new(bytes: &[u8], wave: u32) -> Result<Loaded, DeviceError> {
        let invalid = |why: &str| INVALID_IMAGE.error(format!("loading a module of {} bytes", bytes.len()), why);
        if !is_whole_object(bytes) {
            return Err(invalid("it is no whole shared object; images for this device come from its own compiler"));
        }
        // The loader wants a file, and a name of its own: two files of one name would be one library.
        let mut file = tempfile::Builder::new()
            .prefix("refrain-sim-")
            .suffix(".so")
            .tempfile()
            .map_err(|error| invalid(&format!("no temporary file can be made: {error}")))?;
        file.write_all(bytes).map_err(|error| invalid(&format!("{}: {error}", file.path().display())))?;
        // SAFETY: a kernel file has no initialisers; what it is was decided by whoever compiled it.
        let library = unsafe { Library::open(Some(file.path()), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| invalid(&error.to_string()))?;
        // SAFETY: the header defines it with this type, and its version says whether the layout is this one.
        let image = unsafe { library.get::<*const Image>(b"kx_sim_image\0").map(|symbol| **symbol) };
        let image = image.map_err(|_| invalid("it was not compiled with kx_sim.h"))?;
        if image.version != VERSION {
            return Err(invalid(&format!("it has version {} of kx_sim.h, this runtime has {VERSION}", image.version)));
        }
        if image.wave != wave {
            return Err(invalid(&format!("it was compiled for sim{}, this device is sim{wave}", image.wave)));
        }
        let state = State {
            tid: 0,
            block: [0; 3],
            blocks: [0; 3],
            reserved: 0,
            dynamic_shared: std::ptr::null_mut(),
            worker: std::ptr::null_mut(),
            sync: block::sync as *const (),
            sync_wave: collectives::sync_wave as *const (),
            shuffle: collectives::shuffle as *const (),
            mma: collectives::mma as *const (),
            ldmatrix: collectives::ldmatrix as *const (),
            copy_async: collectives::copy_async as *const (),
            copy_commit: collectives::copy_commit as *const (),
            copy_wait: collectives::copy_wait as *const (),
        };
        // SAFETY: the image's own static struct, of this type by its version.
        unsafe { image.state.write(state) };
        Ok(Loaded { library, image })
    }

    pub(crate) fn state(&self) -> *mut State {
        self.image.state
    }

    /// Static shared memory of all kernels of the file: where, and how many bytes.
    pub(crate) fn shared(&self) -> (*mut u8, usize) {
        (self.image.shared_begin, self.image.shared_end.addr() - self.image.shared_begin.addr())
    }

    /// As much of it as the file's author has asked for.
    pub(crate) fn shared_bytes(&self) -> u32 {
        (self.shared().1 - MARK) as u32
    }

    /// Finds a kernel.
    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel, DeviceError> {
        // SAFETY: symbols of this name have this type.
        let kernel = unsafe {
            let symbol = format!("kx_sim_kernel_{name}\0");
            self.library.get::<*const Kernel>(symbol.as_bytes()).map(|symbol| **symbol)
        };
        kernel
            .map_err(|_| NOT_FOUND.error(format!("finding kernel {name}"), "the module has no KX_KERNEL of this name"))
    }
}

/// Whether this is an ELF file for 64 bits up to the end of its section table, which linkers write last: the loader maps
/// files without looking, and reading behind the end of one is a fault.
fn is_whole_object(bytes: &[u8]) -> bool {
    let number = |at: usize, size: usize| -> Option<u64> {
        let mut whole = [0; 8];
        whole[..size].copy_from_slice(bytes.get(at..at + size)?);
        Some(u64::from_le_bytes(whole))
    };
    let end = || number(0x28, 8)?.checked_add(number(0x3a, 2)? * number(0x3c, 2)?);
    bytes.starts_with(b"\x7fELF\x02\x01") && end().is_some_and(|end| (64..=bytes.len() as u64).contains(&end))
}
