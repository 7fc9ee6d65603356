//! HIP's functions under HIP's names, found by name at run time. Names, parameters and numbers are those of
//! `hip_runtime_api.h`, HIP 5.0 to 7.1. None is linked: DTK's libraries have no symbol versions, and a machine without
//! HIP must be able to start the program.

use libloading::os::unix::Library;
use std::ffi::{c_char, c_float, c_int, c_uchar, c_uint, c_void};

/// `hipError_t`.
pub(crate) type Status = c_int;
/// A stream, event, module, function, graph or library handle.
pub(crate) type Handle = *mut c_void;
/// `hipDeviceptr_t`.
pub(crate) type Device = *mut c_void;

/// A table of functions of one library: all of the first block must be there, those of the second may be.
macro_rules! table {
    (
        $(#[$doc:meta])*
        $name:ident {
            $(fn $field:ident($($parameter:ty),*) -> $result:ty;)*
        }
        optional {
            $(fn $optional:ident($($optional_parameter:ty),*) -> $optional_result:ty;)*
        }
    ) => {
        $(#[$doc])*
        #[allow(non_snake_case)] // the library's names
        #[derive(Clone, Copy)]
        pub(crate) struct $name {
            $(pub(crate) $field: unsafe extern "C" fn($($parameter),*) -> $result,)*
            $(pub(crate) $optional: Option<unsafe extern "C" fn($($optional_parameter),*) -> $optional_result>,)*
        }

        #[allow(non_snake_case)] // the library's names
        impl $name {
            /// Looks every function up; an error names those that are missing.
            pub(crate) fn find(library: &libloading::os::unix::Library) -> Result<$name, Vec<&'static str>> {
                let mut missing = Vec::new();
                // SAFETY: the types are those of the library's header.
                $(let $field = unsafe { $crate::api::symbol(library, stringify!($field)) };
                if $field.is_none() {
                    missing.push(stringify!($field));
                })*
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok($name {
                    $($field: $field.expect("missing functions were returned above"),)*
                    // SAFETY: as above.
                    $($optional: unsafe { $crate::api::symbol(library, stringify!($optional)) },)*
                })
            }
        }
    };
}
pub(crate) use table;

/// A function of a library, by name.
///
/// # Safety
/// `F` is the function's type, as the library's header declares it.
pub(crate) unsafe fn symbol<F: Copy>(library: &Library, name: &str) -> Option<F> {
    // SAFETY: by contract.
    unsafe { library.get::<F>(name.as_bytes()) }.ok().map(|found| *found)
}

table! {
    /// What eager execution needs.
    Hip {
        fn hipInit(c_uint) -> Status;
        fn hipRuntimeGetVersion(*mut c_int) -> Status;
        fn hipGetErrorString(Status) -> *const c_char;
        fn hipGetDeviceCount(*mut c_int) -> Status;
        fn hipSetDevice(c_int) -> Status;
        fn hipDeviceGetName(*mut c_char, c_int, c_int) -> Status;
        fn hipDeviceGetAttribute(*mut c_int, c_int, c_int) -> Status;
        fn hipDeviceTotalMem(*mut usize, c_int) -> Status;
        fn hipMemGetInfo(*mut usize, *mut usize) -> Status;
        fn hipMalloc(*mut Device, usize) -> Status;
        fn hipFree(Device) -> Status;
        fn hipHostMalloc(*mut *mut c_void, usize, c_uint) -> Status;
        fn hipHostFree(*mut c_void) -> Status;
        fn hipMemcpyHtoDAsync(Device, *const c_void, usize, Handle) -> Status;
        fn hipMemcpyDtoHAsync(*mut c_void, Device, usize, Handle) -> Status;
        fn hipMemcpyDtoDAsync(Device, Device, usize, Handle) -> Status;
        fn hipMemsetD8Async(Device, c_uchar, usize, Handle) -> Status;
        fn hipModuleLoadData(*mut Handle, *const c_void) -> Status;
        fn hipModuleUnload(Handle) -> Status;
        fn hipModuleGetFunction(*mut Handle, Handle, *const c_char) -> Status;
        fn hipFuncGetAttribute(*mut c_int, c_int, Handle) -> Status;
        fn hipModuleLaunchKernel(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> Status;
        fn hipStreamCreateWithFlags(*mut Handle, c_uint) -> Status;
        fn hipStreamDestroy(Handle) -> Status;
        fn hipStreamSynchronize(Handle) -> Status;
        fn hipStreamWaitEvent(Handle, Handle, c_uint) -> Status;
        fn hipEventCreateWithFlags(*mut Handle, c_uint) -> Status;
        fn hipEventDestroy(Handle) -> Status;
        fn hipEventRecord(Handle, Handle) -> Status;
        fn hipEventQuery(Handle) -> Status;
        fn hipEventSynchronize(Handle) -> Status;
        fn hipEventElapsedTime(*mut c_float, Handle, Handle) -> Status;
    }
    optional {
        fn hipGetErrorName(Status) -> *const c_char;
        fn hipDriverGetVersion(*mut c_int) -> Status;
        fn hipGetDevicePropertiesR0600(*mut c_void, c_int) -> Status;
        fn hipGetDeviceProperties(*mut c_void, c_int) -> Status;
    }
}

table! {
    /// What recorded execution needs besides; HIP has it from 4.4 on.
    Graphs {
        fn hipStreamBeginCapture(Handle, c_int) -> Status;
        fn hipStreamEndCapture(Handle, *mut Handle) -> Status;
        fn hipStreamIsCapturing(Handle, *mut c_int) -> Status;
        fn hipGraphInstantiate(*mut Handle, Handle, *mut Handle, *mut c_char, usize) -> Status;
        fn hipGraphGetNodes(Handle, *mut Handle, *mut usize) -> Status;
        fn hipGraphLaunch(Handle, Handle) -> Status;
        fn hipGraphExecDestroy(Handle) -> Status;
        fn hipGraphDestroy(Handle) -> Status;
    }
    optional {
        fn hipGraphExecUpdate(Handle, Handle, *mut Handle, *mut c_int) -> Status;
    }
}

/// Numbers of `hipError_t`; they have not changed since HIP 4.
pub(crate) mod status {
    use super::Status;

    pub(crate) const SUCCESS: Status = 0;
    pub(crate) const OUT_OF_MEMORY: Status = 2;
    pub(crate) const NO_DEVICE: Status = 100;
    pub(crate) const INVALID_DEVICE: Status = 101;
    pub(crate) const INVALID_HANDLE: Status = 400;
    pub(crate) const NOT_READY: Status = 600;
    pub(crate) const NOT_SUPPORTED: Status = 801;
    pub(crate) const CAPTURE_UNSUPPORTED: Status = 900;
    pub(crate) const CAPTURE_INVALIDATED: Status = 901;
    pub(crate) const CAPTURE_UNMATCHED: Status = 903;
    pub(crate) const CAPTURED_EVENT: Status = 907;
    pub(crate) const GRAPH_UPDATE_FAILURE: Status = 910;

    /// Whether nothing on the device can be used after this: deinitialised, an earlier launch that failed,
    /// uncorrectable memory errors, an illegal address, a launch that never ended, a destroyed context, a failed
    /// assertion, an exception in a kernel, and what HIP has no name for: an unknown error, and one of the runtime below.
    pub(crate) fn is_fatal(status: Status) -> bool {
        matches!(status, 4 | 53 | 214 | 700 | 702 | 709 | 710 | 719 | 999 | 1053)
    }
}

/// `hipStreamNonBlocking`: no implicit order with the default stream.
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
/// `hipStreamCaptureModeThreadLocal`: what other threads do does not disturb a capture.
pub(crate) const CAPTURE_THREAD_LOCAL: c_int = 1;
/// `hipStreamCaptureStatusActive`.
pub(crate) const CAPTURE_ACTIVE: c_int = 1;

/// `HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES`, `..._LOCAL_SIZE_BYTES`, `..._NUM_REGS`.
pub(crate) const FUNCTION_SHARED_BYTES: c_int = 1;
pub(crate) const FUNCTION_LOCAL_BYTES: c_int = 3;
pub(crate) const FUNCTION_REGISTERS: c_int = 4;

#[cfg(test)]
mod tests {
    use super::status::is_fatal;

    #[test]
    fn codes_that_end_the_device_are_told_from_those_that_do_not() {
        assert!([4, 53, 214, 700, 702, 709, 710, 719, 999, 1053].into_iter().all(is_fatal));
        // Invalid value, out of memory, no code for the card, not found, not ready, out of resources, not supported,
        // errors of captures, a failed update, and a code that no header knows.
        assert!(![0, 1, 2, 209, 500, 600, 701, 801, 900, 901, 907, 910, 4711].into_iter().any(is_fatal));
    }
}
