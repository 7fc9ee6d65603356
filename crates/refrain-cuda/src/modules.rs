//! Device code: loading it, finding kernels in it, launching them.

use crate::bindings::driver::{
    CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT, CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT, CU_LAUNCH_PARAM_END_AS_INT, CUfunction,
    CUfunction_attribute as Attribute, CUjit_option, CUlaunchAttribute, CUlaunchAttributeID_enum,
    CUlaunchAttributeValue, CUlaunchConfig, CUmodule, CUstream,
};
use crate::context::Context;
use crate::image;
use refrain_device::{DeviceError, FunctionId, KernelResources, Launch, ModuleId, StreamId};
use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;

/// Room for the driver's words about an image that it does not take.
const LOG_BYTES: usize = 4096;

/// Loads device code into the current context.
pub(crate) fn load(context: &Context, image: &[u8]) -> Result<ModuleId, DeviceError> {
    let call = |log: &str| format!("cuModuleLoadDataEx of {} bytes{log}", image.len());
    image::check(image).map_err(|why| DeviceError::Driver {
        device: context.label.clone(),
        call: call(""),
        code: 0,
        text: why,
    })?;
    // The driver is given no length: text must end with a zero, and one behind other images does no harm.
    let ended: Vec<u8> = image.iter().copied().chain([0]).collect();
    let mut log = vec![0_u8; LOG_BYTES];
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG_BYTES as *mut c_void];
    let mut module: CUmodule = null_mut();
    // SAFETY: the image is whole and ended; the log has the size given; the handle is stored before the call returns.
    let code = unsafe {
        (context.driver.table.cuModuleLoadDataEx)(
            &raw mut module,
            ended.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    context.check(code, || {
        let said = String::from_utf8_lossy(log.split(|&byte| byte == 0).next().unwrap_or_default());
        call(&if said.trim().is_empty() { String::new() } else { format!(" ({})", said.trim()) })
    })?;
    Ok(ModuleId(module as u64))
}

/// Finds a kernel, loads it, and lets it have the dynamic shared memory that it may be launched with.
pub(crate) fn function(
    context: &Context,
    module: ModuleId,
    name: &str,
    shared_bytes: u32,
) -> Result<FunctionId, DeviceError> {
    let table = &context.driver.table;
    let c_name = CString::new(name).unwrap_or_default(); // a kernel of that name is not found
    let mut function: CUfunction = null_mut();
    // SAFETY: the module is the caller's; the handle is stored before the call returns.
    let code = unsafe { (table.cuModuleGetFunction)(&raw mut function, module.0 as CUmodule, c_name.as_ptr()) };
    context.check(code, || format!("cuModuleGetFunction of {name}"))?;
    if let Some(load) = table.cuFuncLoad {
        // Else the first launch would load it, which takes long and is not allowed in a capture.
        // SAFETY: just found.
        context.check(unsafe { load(function) }, || format!("cuFuncLoad of {name}"))?;
    }
    let id = FunctionId(function as u64);
    // Only ever raised: the function is the same for all who find it.
    let limit = attribute(context, id, Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)?;
    if shared_bytes > limit {
        let bytes = c_int::try_from(shared_bytes).unwrap_or(c_int::MAX);
        // SAFETY: as above; more than the device has is an error.
        let code = unsafe {
            (table.cuFuncSetAttribute)(function, Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)
        };
        context
            .check(code, || format!("cuFuncSetAttribute of {name}: {shared_bytes} bytes of dynamic shared memory"))?;
    }
    Ok(id)
}

pub(crate) fn resources(context: &Context, function: FunctionId) -> Result<KernelResources, DeviceError> {
    Ok(KernelResources {
        registers: attribute(context, function, Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        shared_bytes: attribute(context, function, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        local_bytes: attribute(context, function, Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
    })
}

fn attribute(context: &Context, function: FunctionId, which: Attribute) -> Result<u32, DeviceError> {
    let mut value = 0;
    // SAFETY: the function is the caller's; the number is stored before the call returns.
    let code = unsafe { (context.driver.table.cuFuncGetAttribute)(&raw mut value, which, function.0 as CUfunction) };
    context.check(code, || "cuFuncGetAttribute".to_owned())?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// Enqueues a kernel. On the way of a step: it allocates nothing, locks nothing, and formats only when it fails.
///
/// # Safety
/// As [`refrain_device::Runtime::launch`]; the context is current.
#[inline]
pub(crate) unsafe fn launch(
    context: &Context,
    overlap: bool,
    stream: StreamId,
    launch: &Launch<'_>,
    arguments: &[u8],
) -> Result<(), DeviceError> {
    let mut bytes = arguments.len();
    let mut blob: [*mut c_void; 5] = [
        CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT as usize as *mut c_void,
        arguments.as_ptr().cast_mut().cast(),
        CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT as usize as *mut c_void,
        (&raw mut bytes).cast(),
        CU_LAUNCH_PARAM_END_AS_INT as usize as *mut c_void,
    ];
    let mut serialization = CUlaunchAttribute {
        id: CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = CUlaunchConfig {
        gridDimX: launch.grid[0],
        gridDimY: launch.grid[1],
        gridDimZ: launch.grid[2],
        blockDimX: launch.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared_bytes,
        hStream: stream.0 as CUstream,
        attrs: &raw mut serialization,
        numAttrs: u32::from(overlap && launch.overlap),
    };
    // A kernel without arguments has no blob.
    let extra = if arguments.is_empty() { null_mut() } else { blob.as_mut_ptr() };
    // SAFETY: function, stream and what the arguments point to by contract; the blob is copied before the call returns.
    let code = unsafe {
        (context.driver.table.cuLaunchKernelEx)(&raw const config, launch.function.0 as CUfunction, null_mut(), extra)
    };
    context.check(code, || described(stream, launch, arguments.len()))
}

/// A launch, for errors.
fn described(stream: StreamId, launch: &Launch<'_>, argument_bytes: usize) -> String {
    let Launch { name, grid: [x, y, z], threads, shared_bytes, .. } = launch;
    format!(
        "launch of {name} (grid {x} x {y} x {z}, {threads} threads, {shared_bytes} bytes of dynamic shared memory, \
         {argument_bytes} bytes of arguments, stream {:#x})",
        stream.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_is_told_with_all_that_can_be_wrong_about_it() {
        let launch = Launch {
            function: FunctionId(0),
            name: "gdn_scan",
            grid: [32, 2, 1],
            threads: 256,
            shared_bytes: 65536,
            overlap: true,
        };
        assert_eq!(
            described(StreamId(0x55), &launch, 96),
            "launch of gdn_scan (grid 32 x 2 x 1, 256 threads, 65536 bytes of dynamic shared memory, 96 bytes of \
             arguments, stream 0x55)"
        );
    }
}
