//! The functions of NVIDIA's libraries that are used, as tables of pointers that are filled when a library is loaded.
//!
//! Types and constants are those of cudarc's raw bindings, and every signature here is checked against them by the
//! compiler. The functions themselves are not called through cudarc, for two reasons: it panics where a symbol is
//! missing, and it returns Rust enums, so that a status code of a newer library than the bindings (NVRTC 13.3 has 18,
//! driver 13.1 has 917) would be undefined behaviour. Here a missing symbol is an error at load, and a status is a `u32`.

#![allow(non_snake_case)] // names as NVIDIA writes them

use libloading::os::unix::Library;

/// Declares a table: functions that return a status, functions that return something else, functions that can't be
/// checked against cudarc (they take a status, here a number, or cudarc has a later version only), and functions that
/// older libraries may lack.
macro_rules! table {
    (
        $(#[$doc:meta])* $table:ident of $sys:path;
        status $code:ident { $( $name:ident($($arg:ty),*); )* }
        value { $( $vname:ident($($varg:ty),*) -> $vret:ty; )* }
        unchecked { $( $tname:ident($($targ:ty),*) -> $tret:ty; )* }
        optional { $( $oname:ident($($oarg:ty),*); )* }
    ) => {
        $(#[$doc])*
        pub(crate) struct $table {
            $( pub(crate) $name: unsafe extern "C" fn($($arg),*) -> u32, )*
            $( pub(crate) $vname: unsafe extern "C" fn($($varg),*) -> $vret, )*
            $( pub(crate) $tname: unsafe extern "C" fn($($targ),*) -> $tret, )*
            $( pub(crate) $oname: Option<unsafe extern "C" fn($($oarg),*) -> u32>, )*
        }

        impl $table {
            /// Fills the table; an error is the name of the first function that the library lacks.
            ///
            /// # Safety
            /// The library is what it says it is: functions of these names have these signatures. It stays loaded.
            pub(crate) unsafe fn load(library: &Library) -> Result<$table, &'static str> {
                // SAFETY: by contract; a C enum of 32 bits is returned as a u32 is.
                unsafe {
                    Ok($table {
                        $( $name: symbol(library, concat!(stringify!($name), "\0"))?, )*
                        $( $vname: symbol(library, concat!(stringify!($vname), "\0"))?, )*
                        $( $tname: symbol(library, concat!(stringify!($tname), "\0"))?, )*
                        $( $oname: symbol(library, concat!(stringify!($oname), "\0")).ok(), )*
                    })
                }
            }
        }

        const _: () = {
            use $sys as sys;
            $( const _: unsafe fn($($arg),*) -> sys::$code = sys::$name; )*
            $( const _: unsafe fn($($varg),*) -> $vret = sys::$vname; )*
            $( const _: unsafe fn($($oarg),*) -> sys::$code = sys::$oname; )*
            assert!(size_of::<sys::$code>() == size_of::<u32>());
        };
    };
}

/// The address of a symbol as a function pointer, or its name.
///
/// # Safety
/// `F` is the pointer type of the function of that name.
unsafe fn symbol<F: Copy>(library: &Library, name: &'static str) -> Result<F, &'static str> {
    // SAFETY: by contract.
    match unsafe { library.get::<F>(name.as_bytes()) } {
        Ok(found) => Ok(*found),
        Err(_) => Err(name.trim_end_matches('\0')),
    }
}

pub(crate) mod driver {
    use core::ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
    pub(crate) use cudarc::driver::sys::*;
    use libloading::os::unix::Library;

    use super::symbol;
    table! {
        /// The driver, `libcuda.so.1`.
        DriverTable of cudarc::driver::sys;
        status CUresult {
            cuInit(c_uint);
            cuDriverGetVersion(*mut c_int);
            cuDeviceGet(*mut CUdevice, c_int);
            cuDeviceGetCount(*mut c_int);
            cuDeviceGetName(*mut c_char, c_int, CUdevice);
            cuDeviceTotalMem_v2(*mut usize, CUdevice);
            cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
            cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
            cuDevicePrimaryCtxRelease_v2(CUdevice);
            cuCtxSetCurrent(CUcontext);
            cuMemGetInfo_v2(*mut usize, *mut usize);
            cuMemAlloc_v2(*mut CUdeviceptr, usize);
            cuMemFree_v2(CUdeviceptr);
            cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
            cuMemFreeHost(*mut c_void);
            cuStreamCreate(*mut CUstream, c_uint);
            cuStreamDestroy_v2(CUstream);
            cuStreamSynchronize(CUstream);
            cuStreamWaitEvent(CUstream, CUevent, c_uint);
            cuEventCreate(*mut CUevent, c_uint);
            cuEventDestroy_v2(CUevent);
            cuEventRecord(CUevent, CUstream);
            cuEventQuery(CUevent);
            cuEventSynchronize(CUevent);
            cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
            cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
            cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
            cuMemsetD8Async(CUdeviceptr, c_uchar, usize, CUstream);
            cuModuleLoadDataEx(*mut CUmodule, *const c_void, c_uint, *mut CUjit_option, *mut *mut c_void);
            cuModuleUnload(CUmodule);
            cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
            cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
            cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
            cuLaunchKernelEx(*const CUlaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void);
            cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
            cuStreamEndCapture(CUstream, *mut CUgraph);
            cuGraphGetNodes(CUgraph, *mut CUgraphNode, *mut usize);
            cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, c_ulonglong);
            cuGraphExecUpdate_v2(CUgraphExec, CUgraph, *mut CUgraphExecUpdateResultInfo);
            cuGraphLaunch(CUgraphExec, CUstream);
            cuGraphExecDestroy(CUgraphExec);
            cuGraphDestroy(CUgraph);
        }
        value {}
        unchecked {
            cuGetErrorName(u32, *mut *const c_char) -> u32;
            cuGetErrorString(u32, *mut *const c_char) -> u32;
            cuEventElapsedTime(*mut f32, CUevent, CUevent) -> u32;
        }
        optional {
            cuFuncLoad(CUfunction);
        }
    }
}

pub(crate) mod nvrtc {
    use core::ffi::{c_char, c_int};
    pub(crate) use cudarc::nvrtc::sys::*;
    use libloading::os::unix::Library;

    use super::symbol;
    table! {
        /// The run-time compiler, `libnvrtc.so`.
        NvrtcTable of cudarc::nvrtc::sys;
        status nvrtcResult {
            nvrtcVersion(*mut c_int, *mut c_int);
            nvrtcCreateProgram(
                *mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
            );
            nvrtcDestroyProgram(*mut nvrtcProgram);
            nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char);
            nvrtcGetProgramLogSize(nvrtcProgram, *mut usize);
            nvrtcGetProgramLog(nvrtcProgram, *mut c_char);
            nvrtcGetCUBINSize(nvrtcProgram, *mut usize);
            nvrtcGetCUBIN(nvrtcProgram, *mut c_char);
        }
        value {}
        unchecked {
            nvrtcGetErrorString(u32) -> *const c_char;
        }
        optional {}
    }
}

pub(crate) mod cublaslt {
    use core::ffi::{c_char, c_int, c_void};
    pub(crate) use cudarc::cublaslt::sys::*;
    use libloading::os::unix::Library;

    use super::symbol;
    table! {
        /// Matrix products, `libcublasLt.so`.
        CublasLtTable of cudarc::cublaslt::sys;
        status cublasStatus_t {
            cublasLtCreate(*mut cublasLtHandle_t);
            cublasLtDestroy(cublasLtHandle_t);
            cublasLtMatmulDescCreate(*mut cublasLtMatmulDesc_t, cublasComputeType_t, cudaDataType_t);
            cublasLtMatmulDescSetAttribute(
                cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, *const c_void, usize
            );
            cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t);
            cublasLtMatrixLayoutCreate(*mut cublasLtMatrixLayout_t, cudaDataType, u64, u64, i64);
            cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t);
            cublasLtMatmulPreferenceCreate(*mut cublasLtMatmulPreference_t);
            cublasLtMatmulPreferenceSetAttribute(
                cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, *const c_void, usize
            );
            cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t);
            cublasLtMatmulAlgoGetHeuristic(
                cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, c_int,
                *mut cublasLtMatmulHeuristicResult_t, *mut c_int
            );
            cublasLtMatmul(
                cublasLtHandle_t, cublasLtMatmulDesc_t, *const c_void, *const c_void, cublasLtMatrixLayout_t,
                *const c_void, cublasLtMatrixLayout_t, *const c_void, *const c_void, cublasLtMatrixLayout_t,
                *mut c_void, cublasLtMatrixLayout_t, *const cublasLtMatmulAlgo_t, *mut c_void, usize, cudaStream_t
            );
        }
        value {
            cublasLtGetVersion() -> usize;
        }
        unchecked {
            cublasLtGetStatusString(u32) -> *const c_char;
        }
        optional {}
    }
}
