//! Errors as a driver words them. The codes are those of CUDA's driver API, so that what handles them is tested with
//! codes that exist.

use refrain_device::DeviceError;

/// A code and its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(pub i64, pub &'static str);

pub(crate) const INVALID_VALUE: Code = Code(1, "invalid argument");
pub(crate) const OUT_OF_MEMORY: Code = Code(2, "out of memory");
pub(crate) const DEVICE_LOST: Code = Code(46, "device is lost");
pub(crate) const INVALID_IMAGE: Code = Code(200, "device kernel image is invalid");
pub(crate) const INVALID_HANDLE: Code = Code(400, "invalid resource handle");
pub(crate) const NOT_FOUND: Code = Code(500, "named symbol not found");
pub(crate) const ILLEGAL_ADDRESS: Code = Code(700, "an illegal memory access was encountered");
pub(crate) const OUT_OF_RESOURCES: Code = Code(701, "too many resources requested for launch");
pub(crate) const LAUNCH_FAILED: Code = Code(719, "unspecified launch failure");
pub(crate) const CAPTURE_UNSUPPORTED: Code = Code(900, "operation not permitted when stream is capturing");
pub(crate) const CAPTURE_INVALIDATED: Code = Code(901, "operation failed due to a previous error during capture");
pub(crate) const CAPTURE_UNJOINED: Code = Code(904, "capturing stream has unjoined work");
pub(crate) const ILLEGAL_STATE: Code = Code(401, "the operation cannot be performed in the present state");

const DEVICE: &str = "sim:0";

impl Code {
    /// The call failed; the text says why if there is more to say.
    pub(crate) fn error(self, call: impl Into<String>, why: &str) -> DeviceError {
        DeviceError::Driver { device: DEVICE.to_owned(), call: call.into(), code: self.0, text: self.text(why) }
    }

    /// The call found that the device can't be used any more.
    pub(crate) fn lost(self, call: impl Into<String>, why: &str) -> DeviceError {
        DeviceError::Lost { device: DEVICE.to_owned(), call: call.into(), code: self.0, text: self.text(why) }
    }

    fn text(self, why: &str) -> String {
        if why.is_empty() { self.1.to_owned() } else { format!("{}: {why}", self.1) }
    }
}
