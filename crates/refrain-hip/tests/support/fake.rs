//! A machine with a HIP device that is the CPU: `tests/fake`, compiled, with the knobs that make it hostile.

use super::{shared_object, source};
use libloading::os::unix::Library;
use refrain_device::{DeviceMemory, DevicePtr, FunctionId, Launch, Runtime, StreamId};
use refrain_hip::{HipOptions, HipRuntime};
use std::ffi::{CString, c_char, c_long};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

const FILES: [(&str, &str); 7] = [
    ("hip.cpp", include_str!("../fake/hip.cpp")),
    ("fake.h", include_str!("../fake/fake.h")),
    ("blocks.h", include_str!("../fake/blocks.h")),
    ("device.h", include_str!("../fake/device.h")),
    ("streams.h", include_str!("../fake/streams.h")),
    ("modules.h", include_str!("../fake/modules.h")),
    ("hiprtc.h", include_str!("../fake/hiprtc.h")),
];

/// One machine. Each has a library file, and so a state, of its own.
pub struct Fake {
    folder: TempDir,
    library: Library,
}

impl Fake {
    pub fn new() -> Fake {
        Fake::without(&[])
    }

    /// A machine whose library lacks some functions.
    pub fn without(functions: &[&str]) -> Fake {
        let renamed: Vec<String> =
            functions.iter().map(|function| format!("-D{function}=lacking_{function}")).collect();
        let options: Vec<&str> = renamed.iter().map(String::as_str).collect();
        let built = shared_object("fake-hip", &FILES, &options);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libamdhip64.so");
        fs::copy(built, &path).unwrap();
        // SAFETY: it has no initialisers.
        let library = unsafe { Library::new(&path) }.unwrap();
        Fake { folder, library }
    }

    /// Adds a rocBLAS, which may be linked with a library.
    pub fn add_rocblas(&self, linked_with: Option<&Path>) {
        let linked: Vec<String> =
            linked_with.iter().map(|path| format!("-Wl,--no-as-needed,{}", path.display())).collect();
        self.add_rocblas_with(&linked.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Adds a rocBLAS that was compiled with some options.
    pub fn add_rocblas_with(&self, options: &[&str]) {
        let files = [("rocblas.cpp", include_str!("../fake/rocblas.cpp")), ("fake.h", include_str!("../fake/fake.h"))];
        fs::copy(shared_object("fake-rocblas", &files, options), self.folder().join("librocblas.so")).unwrap();
    }

    /// Where its libraries lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("libamdhip64.so")
    }

    pub fn options(&self) -> HipOptions {
        HipOptions { library: Some(self.path()), ..HipOptions::default() }
    }

    pub fn open(&self) -> Arc<HipRuntime> {
        HipRuntime::open(&self.options(), 0).unwrap()
    }

    /// Turns a knob.
    pub fn set(&self, knob: &str, value: i64) {
        let name = CString::new(knob).unwrap();
        // SAFETY: the function of tests/fake/device.h.
        unsafe {
            let set = self.library.get::<unsafe extern "C" fn(*const c_char, c_long)>("fake_set").unwrap();
            set(name.as_ptr(), value);
        }
    }

    /// Reads a knob or a count.
    pub fn get(&self, what: &str) -> i64 {
        let name = CString::new(what).unwrap();
        // SAFETY: as above.
        unsafe {
            let get = self.library.get::<unsafe extern "C" fn(*const c_char) -> c_long>("fake_get").unwrap();
            get(name.as_ptr())
        }
    }

    /// Says which shared object runs in place of a compiled code object.
    pub fn register(&self, image: &[u8], shared_object: &Path) {
        let path = CString::new(shared_object.to_str().unwrap()).unwrap();
        // SAFETY: as above; the fake reads as far as the image's own headers say.
        unsafe {
            let register = self.library.get::<unsafe extern "C" fn(*const u8, *const c_char)>("fake_register").unwrap();
            register(image.as_ptr(), path.as_ptr());
        }
    }
}

/// Kernels compiled for the CPU.
pub fn for_cpu(name: &str, text: &str) -> PathBuf {
    let source = source(name, text, &[]);
    shared_object(
        name,
        &[(name, &source.text)],
        &["-DKX_SIM", "-DKX_WAVE=64", "-fno-strict-aliasing", "-ffp-contract=off", "-w"],
    )
}

/// A code object that the fake runs, for the machine of a number (0x2f: gfx906). It has no metadata.
pub fn image(shared_object: &Path, machine: u8) -> Vec<u8> {
    let payload = fs::read(shared_object).unwrap();
    let mut image = vec![0; 64];
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    image[18..20].copy_from_slice(&224_u16.to_le_bytes());
    image[48..52].copy_from_slice(&[machine, 5, 0, 0]);
    image.extend(b"refrain-fake-co\0");
    image.extend((payload.len() as u64).to_le_bytes());
    image.extend(payload);
    image
}

/// The machine of gfx906.
pub const GFX906: u8 = 0x2f;

/// Kernels that tests launch: `add` adds a number to each of `n`, `scale` multiplies, `reverse` reverses each block of 256
/// by way of shared memory, and leaves the wave's sum behind them.
pub const KERNELS: &str = include_str!("kernels.cu");

/// Arguments of the kernels in [`KERNELS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Args {
    pub data: DevicePtr,
    pub value: f32,
    pub n: u32,
}

impl Args {
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: plain numbers without gaps.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Args>()) }
    }
}

/// Numbers on a device, and the stream and the kernels to work on them.
pub struct Bench {
    pub runtime: Arc<HipRuntime>,
    pub stream: StreamId,
    pub data: DeviceMemory,
    pub n: usize,
    module: refrain_device::ModuleId,
}

impl Bench {
    /// `values` on the device of a machine.
    pub fn new(fake: &Fake, values: &[f32]) -> Bench {
        let runtime = fake.open();
        let shared: Arc<dyn Runtime> = runtime.clone();
        let stream = runtime.create_stream().unwrap();
        let module = runtime.load_module(&image(&for_cpu("kernels.cu", KERNELS), GFX906)).unwrap();
        let data = DeviceMemory::new(&shared, size_of_val(values), "numbers").unwrap();
        let bench = Bench { runtime, stream, data, n: values.len(), module };
        bench.write(values);
        bench
    }

    pub fn function(&self, name: &str) -> FunctionId {
        self.runtime.function(self.module, name, 1024).unwrap()
    }

    pub fn write(&self, values: &[f32]) {
        // SAFETY: the range is allocated, and the values outlive the wait.
        unsafe {
            let from = values.as_ptr().cast();
            self.runtime.copy_to_device(self.stream, self.data.base(), from, size_of_val(values)).unwrap();
        }
        self.runtime.synchronize(self.stream).unwrap();
    }

    pub fn read(&self) -> Vec<f32> {
        let mut values = vec![0.0_f32; self.n];
        // SAFETY: as above.
        unsafe {
            let to = values.as_mut_ptr().cast();
            self.runtime.copy_to_host(self.stream, to, self.data.base(), 4 * self.n).unwrap();
        }
        self.runtime.synchronize(self.stream).unwrap();
        values
    }

    pub fn args(&self, value: f32) -> Args {
        Args { data: self.data.base(), value, n: self.n as u32 }
    }

    /// Enqueues a kernel over all numbers.
    pub fn launch(&self, name: &str, value: f32) -> Result<(), refrain_device::DeviceError> {
        self.launch_in(self.stream, name, value)
    }

    pub fn launch_in(&self, stream: StreamId, name: &str, value: f32) -> Result<(), refrain_device::DeviceError> {
        let launch = Launch {
            function: self.function(name),
            name,
            grid: [self.n.div_ceil(256) as u32, 1, 1],
            threads: 256,
            shared_bytes: 1024,
            overlap: false,
        };
        // SAFETY: the kernels' arguments, with an address that stays.
        unsafe { self.runtime.launch(stream, &launch, self.args(value).bytes()) }
    }
}
