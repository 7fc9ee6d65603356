//! Loaded code, and what is known of its kernels.

use crate::api::{self, Handle};
use crate::arguments::{Line, lines};
use crate::code_object::{CodeObject, KernelMetadata};
use crate::context::Context;
use refrain_device::{DeviceError, FunctionId, KernelResources, Launch, ModuleId, RuntimeInfo};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Modules and functions of a runtime.
#[derive(Default)]
pub(crate) struct Modules {
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    modules: HashMap<ModuleId, Module>,
    functions: HashMap<FunctionId, Function>,
}

struct Module {
    /// HIP may read the image as long as the module exists.
    _image: Box<[Line]>,
    /// `None` when it is of a form that is not known here.
    object: Option<CodeObject>,
}

struct Function {
    module: ModuleId,
    metadata: Option<KernelMetadata>,
    resources: KernelResources,
}

impl Modules {
    pub(crate) fn load(&self, context: &Context, image: &[u8]) -> Result<ModuleId, DeviceError> {
        let hip = context.enter()?;
        let kept = lines(image);
        let mut module: Handle = std::ptr::null_mut();
        // SAFETY: the image is kept as long as the module; the handle is stored before the call returns.
        let code = unsafe { (hip.hipModuleLoadData)(&raw mut module, kept.as_ptr().cast()) };
        let object = CodeObject::read(image);
        context.check(code, || {
            let what = match &object {
                Ok(object) => format!("code for {}", object.target),
                Err(error) => error.to_string(),
            };
            format!("hipModuleLoadData of {} bytes ({what})", image.len())
        })?;
        let id = ModuleId(module as u64);
        self.write().modules.insert(id, Module { _image: kept, object: object.ok() });
        Ok(id)
    }

    pub(crate) fn unload(&self, context: &Context, module: ModuleId) {
        if let Ok(hip) = context.enter() {
            // SAFETY: by contract of the trait nothing uses it any more.
            unsafe { (hip.hipModuleUnload)(handle(module.0)) };
        }
        let mut known = self.write();
        known.modules.remove(&module);
        known.functions.retain(|_, function| function.module != module);
    }

    /// Unloads all that are left.
    pub(crate) fn clear(&self, context: &Context) {
        let left: Vec<ModuleId> = self.read().modules.keys().copied().collect();
        left.into_iter().for_each(|module| self.unload(context, module));
    }

    pub(crate) fn function(
        &self,
        context: &Context,
        info: &RuntimeInfo,
        (module, name): (ModuleId, &str),
        shared_bytes: u32,
    ) -> Result<FunctionId, DeviceError> {
        let hip = context.enter()?;
        let call = || format!("hipModuleGetFunction of {name}");
        let Ok(c_name) = CString::new(name) else {
            return Err(context.refusal(&call(), 1, "a kernel's name has no zero byte"));
        };
        let mut function: Handle = std::ptr::null_mut();
        // SAFETY: a module of this runtime, a text that ends with a zero; the handle is stored before the call returns.
        let code = unsafe { (hip.hipModuleGetFunction)(&raw mut function, handle(module.0), c_name.as_ptr()) };
        context.check(code, call)?;
        let read = |known: &Known| known.modules.get(&module)?.object.as_ref()?.kernel(name).cloned();
        let metadata = read(&self.read());
        let resources = match &metadata {
            Some(metadata) => KernelResources::from(metadata),
            None => told_resources(context, name, function)?,
        };
        let id = FunctionId(function as u64);
        let function = Function { module, metadata, resources };
        function.check_shared(name, shared_bytes, info)?;
        self.write().functions.insert(id, function);
        Ok(id)
    }

    pub(crate) fn resources(&self, function: FunctionId) -> Result<KernelResources, DeviceError> {
        let known = self.read();
        let found = known.functions.get(&function);
        found.map(|function| function.resources).ok_or_else(|| invalid("a function that was never found".to_owned()))
    }

    /// Refuses what the driver would take and a kernel would not survive.
    ///
    /// # Errors
    /// [`DeviceError::InvalidStep`]: a bug of the caller.
    pub(crate) fn check(&self, launch: &Launch<'_>, arguments: usize, info: &RuntimeInfo) -> Result<(), DeviceError> {
        let Launch { name, grid, threads, .. } = *launch;
        if grid.contains(&0) || threads == 0 {
            return Err(invalid(format!("kernel {name}: an empty grid {grid:?} of {threads} threads")));
        }
        // HIP counts a grid in threads, in 32 bits.
        if grid[0].checked_mul(threads).is_none() {
            return Err(invalid(format!("kernel {name}: {} blocks of {threads} threads are more than 2^32", grid[0])));
        }
        let known = self.read();
        let Some(function) = known.functions.get(&launch.function) else {
            return Err(invalid(format!("kernel {name}: its function is unknown, or its module was unloaded")));
        };
        function.check_shared(name, launch.shared_bytes, info)?;
        let Some(metadata) = &function.metadata else { return Ok(()) };
        if let Some(wanted) = metadata.argument_bytes
            && wanted as usize != arguments
        {
            return Err(invalid(format!("kernel {name} takes {wanted} bytes of arguments, got {arguments}")));
        }
        if threads > metadata.max_threads {
            let most = metadata.max_threads;
            return Err(invalid(format!("kernel {name} is compiled for {most} threads, launched with {threads}")));
        }
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function {
    fn check_shared(&self, name: &str, dynamic: u32, info: &RuntimeInfo) -> Result<(), DeviceError> {
        let (fixed, most) = (self.resources.shared_bytes, info.shared_bytes);
        if fixed.saturating_add(dynamic) <= most {
            return Ok(());
        }
        Err(invalid(format!("kernel {name}: {fixed} and {dynamic} bytes of shared memory, a block has {most}")))
    }
}

/// What the driver says of a kernel whose code object can't be read here.
fn told_resources(context: &Context, name: &str, function: Handle) -> Result<KernelResources, DeviceError> {
    let hip = context.enter()?;
    let read = |attribute| {
        let mut value = 0;
        // SAFETY: a function that was just found; the number is stored before the call returns.
        let code = unsafe { (hip.hipFuncGetAttribute)(&raw mut value, attribute, function) };
        context.check(code, || format!("hipFuncGetAttribute {attribute} of {name}"))?;
        Ok::<u32, DeviceError>(u32::try_from(value).unwrap_or(0))
    };
    Ok(KernelResources {
        registers: read(api::FUNCTION_REGISTERS)?,
        shared_bytes: read(api::FUNCTION_SHARED_BYTES)?,
        local_bytes: read(api::FUNCTION_LOCAL_BYTES)?,
    })
}

/// HIP's handle of a number that this crate handed out.
pub(crate) fn handle(id: u64) -> Handle {
    id as usize as Handle
}

fn invalid(what: String) -> DeviceError {
    DeviceError::InvalidStep { what }
}
