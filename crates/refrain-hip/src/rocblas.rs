//! Matrix products of rocBLAS. On gfx906 it is the only library of them: hipBLASLt does not support it.

use crate::api::{Handle, Status, symbol, table};
use crate::capture::Captures;
use crate::context::Context;
use crate::modules::handle;
use crate::toolkit::{HipOptions, LoadProblem, Loaded, file_of, load};
use refrain_device::{DeviceError, DevicePtr, Gemm, GemmOperands, GemmShape, GemmType, StreamId};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

table! {
    /// rocBLAS's functions, as `rocblas-functions.h` and `rocblas-auxiliary.h` declare them.
    RocBlasTable {
        fn rocblas_create_handle(*mut Handle) -> Status;
        fn rocblas_destroy_handle(Handle) -> Status;
        fn rocblas_set_stream(Handle, Handle) -> Status;
        fn rocblas_set_workspace(Handle, *mut c_void, usize) -> Status;
        fn rocblas_gemm_ex(
            Handle, c_int, c_int, c_int, c_int, c_int,
            *const c_void, *const c_void, c_int, c_int, *const c_void, c_int, c_int,
            *const c_void, *const c_void, c_int, c_int, *mut c_void, c_int, c_int,
            c_int, c_int, c_int, c_uint
        ) -> Status;
    }
    optional {
        fn rocblas_status_to_string(Status) -> *const c_char;
        fn rocblas_get_version_string(*mut c_char, usize) -> Status;
        fn rocblas_set_atomics_mode(Handle, c_int) -> Status;
        fn rocblas_start_device_memory_size_query(Handle) -> Status;
        fn rocblas_stop_device_memory_size_query(Handle, *mut usize) -> Status;
    }
}

const NAMES: [&str; 6] =
    ["librocblas.so", "librocblas.so.5", "librocblas.so.4", "librocblas.so.3", "librocblas.so.0", "librocblas.so.0.1"];
/// Seen from the folder of the HIP library.
const BESIDE_HIP: [&str; 4] = [".", "../../lib", "../rocblas/lib", "../../rocblas/lib"];

const TRANSPOSE: c_int = 112;
const AS_IT_IS: c_int = 111;
const F32: c_int = 151;
/// `rocblas_status_perf_degraded` of a product, `rocblas_status_size_increased` and `..._unchanged` of a query.
const SLOWER: Status = 7;
const SIZES: [Status; 2] = [9, 10];

/// rocBLAS on one device.
pub(crate) struct RocBlas {
    context: Arc<Context>,
    captures: Arc<Captures>,
    table: RocBlasTable,
    version: String,
    state: Mutex<State>,
}

/// rocBLAS's handle, which one thread at a time may use, and what it was last told.
struct State {
    handle: Handle,
    stream: StreamId,
    workspace: (DevicePtr, usize),
}

/// The default stream, which is nobody's.
const NO_STREAM: StreamId = StreamId(0);

// SAFETY: the handle may be used from any thread, by one at a time.
unsafe impl Send for State {}

impl RocBlas {
    /// Loads rocBLAS for a device.
    ///
    /// # Errors
    /// Why there is none that can be used.
    pub(crate) fn load(
        context: Arc<Context>,
        captures: Arc<Captures>,
        options: &HipOptions,
    ) -> Result<RocBlas, String> {
        let table = find(&context, options)?;
        let mut version = [0; 256];
        if let Some(get) = table.rocblas_get_version_string {
            // SAFETY: at most as many bytes as are said are stored.
            unsafe { get(version.as_mut_ptr(), version.len()) };
        }
        version[255] = 0;
        // SAFETY: it ends with a zero.
        let version = unsafe { CStr::from_ptr(version.as_ptr()) }.to_string_lossy().into_owned();
        context.enter().map_err(|error| error.to_string())?;
        let mut made = null_mut();
        // SAFETY: the handle is stored before the call returns; it belongs to the device that is current.
        match unsafe { (table.rocblas_create_handle)(&raw mut made) } {
            0 => {}
            code => return Err(format!("rocblas_create_handle failed: {}", words(&table, code))),
        }
        if let Some(set) = table.rocblas_set_atomics_mode {
            // Sums in an order that changes from run to run would make results depend on chance.
            // SAFETY: a handle that was just made; 0 forbids atomics.
            unsafe { set(made, 0) };
        }
        let state = Mutex::new(State { handle: made, stream: NO_STREAM, workspace: (DevicePtr(0), 0) });
        Ok(RocBlas { context, captures, table, version, state })
    }

    /// Says in which stream products are from now on. To be said before the stream is captured, for rocBLAS asks HIP after a
    /// stream that is new to it.
    pub(crate) fn enter(&self, stream: StreamId) -> Result<(), DeviceError> {
        self.set_stream(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), stream)
    }

    /// Forgets a stream that is about to end.
    pub(crate) fn leave(&self, stream: StreamId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stream == stream {
            // The default stream is always there.
            let _ = self.set_stream(&mut state, NO_STREAM);
        }
    }

    fn set_stream(&self, state: &mut State, stream: StreamId) -> Result<(), DeviceError> {
        if state.stream != stream {
            // SAFETY: a handle of this device, a stream of this runtime.
            match unsafe { (self.table.rocblas_set_stream)(state.handle, handle(stream.0)) } {
                0 => state.stream = stream,
                code => return Err(self.error("rocblas_set_stream".to_owned(), code)),
            }
        }
        Ok(())
    }

    fn error(&self, call: String, code: Status) -> DeviceError {
        self.context.refusal(&call, code, &words(&self.table, code))
    }

    /// The product; in a query for the size of its workspace nothing is read or written.
    ///
    /// # Safety
    /// The operands are device memory of the shape's sizes, except in a query.
    unsafe fn product(
        &self,
        handle: Handle,
        shape: &GemmShape,
        operands: &GemmOperands,
    ) -> Result<Status, DeviceError> {
        let size = |value: usize| {
            c_int::try_from(value).map_err(|_| DeviceError::InvalidStep {
                what: format!("a matrix product with a size of {value}: rocBLAS counts in 31 bits"),
            })
        };
        let (m, n, k) = (size(shape.m)?, size(shape.n)?, size(shape.k)?);
        let (x_stride, out_stride) = (size(shape.x_stride)?, size(shape.out_stride)?);
        let (input, output) = (data_type(shape.input), data_type(shape.output));
        let (one, zero) = (1.0_f32, 0.0_f32);
        let (one, zero) = ((&raw const one).cast(), (&raw const zero).cast());
        let pointer = |address: DevicePtr| address.0 as usize as *mut c_void;
        let (x, weight, out) = (pointer(operands.x), pointer(operands.weight), pointer(operands.out));
        // rocBLAS's matrices are column by column. So read, `weight` is [k, n], `x` is [k, m], and the product asked for,
        // out = x weight^T, is out^T [n, m] = weight^T x.
        // SAFETY: sizes as declared; alpha and beta are read before the call returns; addresses by contract.
        Ok(unsafe {
            (self.table.rocblas_gemm_ex)(
                handle, TRANSPOSE, AS_IT_IS, n, m, k, one, weight, input, k, x, input, x_stride, zero, out, output,
                out_stride, out, output, out_stride, F32, 0, 0, 0,
            )
        })
    }
}

impl Gemm for RocBlas {
    fn describe(&self) -> String {
        format!("rocBLAS {}", self.version)
    }

    /// Asks rocBLAS whether it has a product for the shape and how much workspace it takes. Its code is loaded by the first
    /// product, which must therefore be run outside of a capture.
    fn prepare(&self, shape: &GemmShape, workspace_bytes: usize) -> Result<(), DeviceError> {
        let (Some(start), Some(stop)) =
            (self.table.rocblas_start_device_memory_size_query, self.table.rocblas_stop_device_memory_size_query)
        else {
            return Ok(());
        };
        self.context.enter()?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Not null, since rocBLAS looks at pointers also in a query.
        let any = DevicePtr(256);
        let operands = GemmOperands { x: any, weight: any, out: any, workspace: any, workspace_bytes };
        let mut wanted = 0;
        // SAFETY: between the two calls products are not computed, only measured.
        let codes = unsafe {
            (start(state.handle), self.product(state.handle, shape, &operands), stop(state.handle, &raw mut wanted))
        };
        let call = || format!("{} as a query of its size", describe(shape));
        match codes {
            (0, Ok(code), 0) if code == 0 || SIZES.contains(&code) => {}
            (0, Ok(code), _) if code != 0 && !SIZES.contains(&code) => return Err(self.error(call(), code)),
            (0, Ok(_), code) | (code, Ok(_), _) => return Err(self.error(call(), code)),
            (_, Err(error), _) => return Err(error),
        }
        if wanted > workspace_bytes {
            let text = format!("it needs {wanted} bytes of workspace, there are {workspace_bytes}");
            return Err(self.context.refusal(&call(), 5, &text));
        }
        Ok(())
    }

    unsafe fn run(&self, stream: StreamId, shape: &GemmShape, operands: &GemmOperands) -> Result<(), DeviceError> {
        self.context.enter()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let check = |code, call: &str| match code {
            0 | SLOWER => Ok(()),
            code => Err(self.error(format!("{call}, {}", describe(shape)), code)),
        };
        let result = (|| {
            let workspace = (operands.workspace, operands.workspace_bytes);
            self.set_stream(&mut state, stream)?;
            // SAFETY: a handle of this device, memory of the caller.
            unsafe {
                // Only when it changes: rocBLAS frees what it had, which a capture would not survive.
                if state.workspace != workspace && workspace.1 > 0 {
                    let address = handle(workspace.0.0);
                    check(
                        (self.table.rocblas_set_workspace)(state.handle, address, workspace.1),
                        "rocblas_set_workspace",
                    )?;
                    state.workspace = workspace;
                }
                check(self.product(state.handle, shape, operands)?, "rocblas_gemm_ex")
            }
        })();
        self.captures.note(stream, 1, None, &result);
        result
    }
}

impl Drop for RocBlas {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if self.context.enter().is_ok() {
            // SAFETY: made in `load`, destroyed once.
            unsafe { (self.table.rocblas_destroy_handle)(state.handle) };
        }
    }
}

/// Finds rocBLAS beside the HIP library, where the options say, or by the system's loader. One that brings another HIP
/// library into the process is of no use: it would not know this one's memory and streams.
fn find(context: &Context, options: &HipOptions) -> Result<RocBlasTable, String> {
    let hip_file = context.driver.file();
    let beside = hip_file.parent().into_iter().flat_map(|folder| BESIDE_HIP.map(|below| folder.join(below)));
    let given = options.library_dirs.iter().flat_map(|folder| [folder.clone(), folder.join("lib")]);
    let files = given.chain(beside).flat_map(|folder| NAMES.map(|name| folder.join(name))).filter(|path| path.exists());
    let mut problems = Vec::new();
    for candidate in files.chain(NAMES.map(PathBuf::from)) {
        let loaded = match load(&candidate) {
            Ok(loaded) => loaded,
            Err(LoadProblem::Missing) => continue,
            Err(LoadProblem::Broken(words)) => {
                problems.push(words);
                continue;
            }
        };
        match usable(&loaded, context, &candidate) {
            Ok(table) => return Ok(table),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        problems.push(format!(
            "{} is neither beside {} nor known to the system's loader",
            NAMES[0],
            hip_file.display()
        ));
    }
    Err(problems.join("; "))
}

fn usable(loaded: &Loaded, context: &Context, candidate: &Path) -> Result<RocBlasTable, String> {
    let name = candidate.display();
    // The lookup goes through what rocBLAS itself was linked with.
    // SAFETY: only the address is used.
    let its_hip: Option<*const c_void> = unsafe { symbol(&loaded.library, "hipModuleLaunchKernel") };
    let ours = context.driver.hip.hipModuleLaunchKernel as *const c_void;
    if let Some(other) = its_hip.filter(|&other| other != ours) {
        let other = file_of(other).unwrap_or_default();
        return Err(format!("{name} is linked with another HIP library, {}", other.display()));
    }
    RocBlasTable::find(&loaded.library).map_err(|missing| format!("{name} lacks {}", missing.join(", ")))
}

fn words(table: &RocBlasTable, code: Status) -> String {
    let text = table.rocblas_status_to_string.map_or(std::ptr::null(), |get| {
        // SAFETY: rocBLAS answers any code with a static text, or null.
        unsafe { get(code) }
    });
    if text.is_null() {
        return "a status of rocBLAS".to_owned();
    }
    // SAFETY: not null, so it ends with a zero and is never freed.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn describe(shape: &GemmShape) -> String {
    let GemmShape { m, n, k, input, output, .. } = shape;
    format!("{output:?} [{m}, {n}] = {input:?} [{m}, {k}] by [{n}, {k}]")
}

fn data_type(kind: GemmType) -> c_int {
    match kind {
        GemmType::F16 => 150,
        GemmType::F32 => F32,
        GemmType::Bf16 => 168,
    }
}
