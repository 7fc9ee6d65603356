//! A GPU behind the runtime trait: opening it, and what its operations share.

mod operations;

use crate::api::{Status, status};
use crate::capture::Captures;
use crate::context::Context;
use crate::devices::summary;
use crate::driver::{Driver, unavailable};
use crate::graphs::GraphTable;
use crate::modules::Modules;
use crate::rocblas::RocBlas;
use crate::toolkit::HipOptions;
use refrain_device::{Compiler, DeviceError, RuntimeInfo, StreamId};
use std::sync::{Arc, OnceLock};

/// An AMD or Hygon GPU.
///
/// Versions of HIP have had errors in captures (issues ROCm/TheRock 7869 and 7877, ROCm/pytorch 3323). What can be done about
/// them is done here, except for one: a stream may not be captured twice. `refrain_device::Graph` takes a new one for
/// each capture.
pub struct HipRuntime {
    context: Arc<Context>,
    options: HipOptions,
    info: RuntimeInfo,
    captures: Arc<Captures>,
    graphs: GraphTable,
    modules: Modules,
    compiler: OnceLock<Result<Box<dyn Compiler>, String>>,
    products: OnceLock<Result<RocBlas, String>>,
}

impl HipRuntime {
    /// Opens the device of an index.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is no such device or it can't be used: what was looked for, what was
    /// found, what to do.
    pub fn open(options: &HipOptions, index: usize) -> Result<Arc<HipRuntime>, DeviceError> {
        let driver = Driver::load(options)?;
        let count = driver.count()?;
        if index >= count {
            return Err(unavailable(format!(
                "there is no hip:{index}, {} finds {count} (from hip:0)",
                driver.describe()
            )));
        }
        let found = summary(&driver, options, index)?;
        if let Some(problem) = found.problem {
            return Err(unavailable(format!("hip:{index} ({}): {problem}", found.name)));
        }
        let info = RuntimeInfo {
            kind: "hip",
            index,
            name: found.name,
            arch: found.arch,
            driver: driver.version(),
            wave: found.wave,
            processors: found.processors,
            shared_bytes: found.shared_bytes,
            mma: false,
            overlap: false,
        };
        let context = Arc::new(Context::open(driver, index)?);
        Ok(Arc::new(HipRuntime {
            context,
            options: options.clone(),
            info,
            captures: Arc::default(),
            graphs: GraphTable::default(),
            modules: Modules::default(),
            compiler: OnceLock::new(),
            products: OnceLock::new(),
        }))
    }

    /// Gives a stream work that makes one node of a graph when the stream is captured.
    fn enqueue(&self, stream: StreamId, code: Status, call: impl FnOnce() -> String) -> Result<(), DeviceError> {
        let result = self.context.check(code, call);
        self.captures.note(stream, 1, None, &result);
        result
    }

    /// Refuses what a capture of this thread does not permit; HIP before 7.1 lets it happen and spoils the graph.
    fn outside_of_captures(&self, call: &str) -> Result<(), DeviceError> {
        self.permit(!self.captures.on_this_thread(), call, status::CAPTURE_UNSUPPORTED, "while a stream is captured")
    }

    fn permit(&self, permitted: bool, call: &str, code: Status, text: &str) -> Result<(), DeviceError> {
        if permitted { Ok(()) } else { Err(self.context.refusal(call, code, &format!("not permitted {text}"))) }
    }
}

impl Drop for HipRuntime {
    fn drop(&mut self) {
        // What its owners left: otherwise HIP would keep it until the process ends.
        self.graphs.clear(&self.context);
        self.modules.clear(&self.context);
    }
}
