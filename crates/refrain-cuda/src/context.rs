//! A device's primary context, and making it current.

use crate::bindings::driver::{CUcontext, CUdevice};
use crate::driver::{Driver, unavailable};
use refrain_device::DeviceError;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// Serial number of the context that this thread made current last. A number, not the handle: the driver may give a
    /// later context the handle of one that was released.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// Holds the primary context of a device, which the runtime library inside cuBLASLt uses too.
pub(crate) struct Context {
    pub(crate) driver: &'static Driver,
    /// Such as `cuda:0`, for errors.
    pub(crate) label: String,
    device: CUdevice,
    handle: CUcontext,
    serial: u64,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above; the driver serialises what has to be.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when the driver can't make one.
    pub(crate) fn retain(driver: &'static Driver, index: usize, device: CUdevice) -> Result<Context, DeviceError> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let label = format!("cuda:{index}");
        let mut handle = std::ptr::null_mut();
        // SAFETY: the device is one that the driver gave; the handle is stored before the call returns.
        let code = unsafe { (driver.table.cuDevicePrimaryCtxRetain)(&raw mut handle, device) };
        if code != 0 {
            let text = driver.text(code);
            return Err(unavailable(format!(
                "{label} gives no context: cuDevicePrimaryCtxRetain gave {code} ({text})"
            )));
        }
        Ok(Context { driver, label, device, handle, serial: SERIAL.fetch_add(1, Ordering::Relaxed) })
    }

    /// Makes this the context of the calling thread, unless this crate did so last.
    #[inline]
    pub(crate) fn make_current(&self) -> Result<(), DeviceError> {
        if CURRENT.get() == self.serial { Ok(()) } else { self.switch() }
    }

    #[cold]
    fn switch(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained as long as `self` lives.
        self.check(unsafe { (self.driver.table.cuCtxSetCurrent)(self.handle) }, || "cuCtxSetCurrent".to_owned())?;
        CURRENT.set(self.serial);
        Ok(())
    }

    /// Turns a code into a result; `call` says what was called and with what.
    #[inline]
    pub(crate) fn check(&self, code: u32, call: impl FnOnce() -> String) -> Result<(), DeviceError> {
        if code == 0 { Ok(()) } else { Err(self.driver.error(&self.label, call(), code)) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `retain`. An error at this point could be told to nobody.
        unsafe { (self.driver.table.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}
