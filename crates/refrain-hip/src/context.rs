//! One device of the driver: making it current, and turning codes into errors.

use crate::api::{self, Hip, Status, status};
use crate::driver::{Driver, unavailable};
use refrain_device::DeviceError;
use std::ffi::c_int;
use std::sync::OnceLock;

pub(crate) struct Context {
    pub(crate) driver: Driver,
    /// `hip:0`.
    pub(crate) label: String,
    device: c_int,
    /// Set once, by the call that found the device lost.
    lost: OnceLock<(String, Status)>,
}

impl Context {
    /// Opens the device of an index.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when it can't be made current.
    pub(crate) fn open(driver: Driver, index: usize) -> Result<Context, DeviceError> {
        let device = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: takes a number; an unknown device is an error.
        match unsafe { (driver.hip.hipSetDevice)(device) } {
            status::SUCCESS => Ok(Context { driver, label: format!("hip:{index}"), device, lost: OnceLock::new() }),
            code => {
                let text = driver.text(code);
                Err(unavailable(format!("hip:{index} can't be made current: hipSetDevice failed: {code} ({text})")))
            }
        }
    }

    /// Makes the device current on this thread, which every call needs: HIP keeps it for each thread.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] once the device is; nothing reaches the driver then, whose calls might never return. A
    /// device that was opened and can't be made current any more is lost, whatever the code.
    pub(crate) fn enter(&self) -> Result<&Hip, DeviceError> {
        if let Some((call, code)) = self.lost.get() {
            return Err(self.loss(call, *code));
        }
        let hip = &self.driver.hip;
        // SAFETY: takes a number; an unknown device is an error.
        match unsafe { (hip.hipSetDevice)(self.device) } {
            status::SUCCESS => Ok(hip),
            code => Err(self.lose("hipSetDevice".to_owned(), code)),
        }
    }

    /// HIP's functions for graphs.
    ///
    /// # Errors
    /// As [`Context::enter`]; [`DeviceError::Driver`] with HIP's "not supported" where the library has not all of them.
    pub(crate) fn graphs(&self) -> Result<&api::Graphs, DeviceError> {
        self.enter()?;
        self.driver.graphs.as_ref().map_err(|missing| {
            let text = format!("{} can't record graphs: it lacks {}", self.driver.describe(), missing.join(", "));
            self.refusal("hipStreamBeginCapture", status::NOT_SUPPORTED, &text)
        })
    }

    /// The error for a code; `call` says what was called and what it was about.
    pub(crate) fn check(&self, code: Status, call: impl FnOnce() -> String) -> Result<(), DeviceError> {
        if code == status::SUCCESS {
            return Ok(());
        }
        if status::is_fatal(code) {
            return Err(self.lose(call(), code));
        }
        Err(self.driver.error(&self.label, call(), code))
    }

    /// The device is lost, unless it was before: then by that call.
    fn lose(&self, call: String, code: Status) -> DeviceError {
        let (call, code) = self.lost.get_or_init(|| (call, code));
        self.loss(call, *code)
    }

    /// An error that the driver did not find, or would not have told.
    pub(crate) fn refusal(&self, call: &str, code: Status, text: &str) -> DeviceError {
        let (device, call, text) = (self.label.clone(), call.to_owned(), text.to_owned());
        DeviceError::Driver { device, call, code: i64::from(code), text }
    }

    fn loss(&self, call: &str, code: Status) -> DeviceError {
        let (device, call) = (self.label.clone(), call.to_owned());
        DeviceError::Lost { device, call, code: i64::from(code), text: self.driver.text(code) }
    }
}
