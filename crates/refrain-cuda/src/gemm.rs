//! Matrix products by cuBLASLt.

mod problem;
mod shape;
mod timer;

use crate::bindings::cublaslt::{CublasLtTable, cublasLtHandle_t};
use crate::context::Context;
use crate::library::{self, CudaOptions};
use problem::{Choice, Failed, Problem};
use refrain_device::{DeviceError, Gemm, GemmOperands, GemmShape, StreamId};
use shape::{ALIGNMENT, alignment, check, describe};
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::ptr::from_ref;
use std::sync::{Arc, PoisonError, RwLock};
use timer::Timer;

/// Algorithms that [`Gemm::tune`] tries.
const TUNED: usize = 8;
/// Products in one measurement, and measurements of each algorithm; the best one counts.
const BATCH: usize = 8;
const REPEATS: usize = 3;

/// cuBLASLt for one device.
pub(crate) struct CublasLt {
    context: Arc<Context>,
    table: &'static CublasLtTable,
    handle: cublasLtHandle_t,
    plans: RwLock<HashMap<Key, Arc<Plan>>>,
}

// SAFETY: a handle of cuBLASLt may be used from several threads at once.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// What an algorithm is chosen for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    shape: GemmShape,
    /// Of the least aligned operand, bytes.
    alignment: u32,
}

/// A product with its algorithm.
struct Plan {
    problem: Problem,
    choice: Choice,
}

impl CublasLt {
    /// Finds and loads cuBLASLt; an error says what was looked for and what to do.
    pub(crate) fn load(context: &Arc<Context>, options: &CudaOptions) -> Result<CublasLt, String> {
        let names = library::versioned("libcublasLt.so", Some(context.driver.major()));
        let found = library::find(&names, &library::folders(options)).map_err(|why| {
            format!(
                "NVIDIA's matrix products {why}; install CUDA's toolkit (or only nvidia-cublas, by pip) and put the folder \
                 of {} on LD_LIBRARY_PATH",
                names[0]
            )
        })?;
        // SAFETY: cuBLASLt, which stays loaded: it is never dropped.
        let table = unsafe { CublasLtTable::load(&found.library) }
            .map_err(|symbol| format!("{} has no {symbol}: CUDA 12.0 or later is needed", found.name))?;
        std::mem::forget(found.library);
        // A few pointers, once for each device that is opened.
        let table: &'static CublasLtTable = Box::leak(Box::new(table));
        context.make_current().map_err(|error| error.to_string())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is current; the handle is stored before the call returns.
        let code = unsafe { (table.cublasLtCreate)(&raw mut handle) };
        if code != 0 {
            return Err(format!("cublasLtCreate gave {code} ({})", text(table, code)));
        }
        Ok(CublasLt { context: context.clone(), table, handle, plans: RwLock::default() })
    }

    /// The plan of a product, made at its first use.
    fn plan(&self, key: Key, workspace_bytes: usize) -> Result<Arc<Plan>, DeviceError> {
        if let Some(plan) = self.plans.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(plan.clone());
        }
        let (problem, choices) = self.choices(key, workspace_bytes, 1)?;
        let plan = Arc::new(Plan { problem, choice: choices[0] });
        let mut plans = self.plans.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been quicker; all take the same plan.
        Ok(plans.entry(key).or_insert(plan).clone())
    }

    /// A product with at least one algorithm for it.
    fn choices(&self, key: Key, workspace_bytes: usize, most: usize) -> Result<(Problem, Vec<Choice>), DeviceError> {
        check(&key.shape).map_err(|why| self.refused(&key.shape, why))?;
        let failed = |failed: Failed| self.failed(&key.shape, failed);
        let problem = Problem::new(self.table, &key.shape).map_err(failed)?;
        let choices = problem.choices(self.handle, workspace_bytes, key.alignment, most).map_err(failed)?;
        if choices.is_empty() {
            let why = format!("no algorithm with {workspace_bytes} bytes of scratch memory");
            return Err(self.refused(&key.shape, why));
        }
        Ok((problem, choices))
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// As [`Gemm::run`].
    unsafe fn multiply(
        &self,
        stream: StreamId,
        problem: &Problem,
        choice: &Choice,
        operands: &GemmOperands,
    ) -> Result<(), Failed> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let out = operands.out.0 as *mut c_void;
        // SAFETY: descriptors live in `problem`; addresses by contract; the two factors are host memory that is read
        // before the call returns.
        let code = unsafe {
            (self.table.cublasLtMatmul)(
                self.handle,
                problem.operation,
                from_ref(&one).cast(),
                operands.weight.0 as *const c_void,
                problem.weight,
                operands.x.0 as *const c_void,
                problem.x,
                from_ref(&zero).cast(),
                out,
                problem.out,
                out,
                problem.out,
                &raw const choice.algorithm,
                operands.workspace.0 as *mut c_void,
                operands.workspace_bytes,
                stream.0 as *mut _,
            )
        };
        if code == 0 { Ok(()) } else { Err(("cublasLtMatmul", code)) }
    }

    /// Milliseconds of a batch of products, at best; `None` when the algorithm fails.
    ///
    /// # Safety
    /// As [`Gemm::run`].
    unsafe fn measure(
        &self,
        stream: StreamId,
        problem: &Problem,
        choice: &Choice,
        operands: &GemmOperands,
    ) -> Result<Option<f32>, DeviceError> {
        let timer = Timer::new(&self.context)?;
        let mut best = None;
        // One more, to load the code.
        for repeat in 0..=REPEATS {
            timer.start(stream)?;
            for _ in 0..if repeat == 0 { 1 } else { BATCH } {
                // SAFETY: by contract.
                if unsafe { self.multiply(stream, problem, choice, operands) }.is_err() {
                    return Ok(None);
                }
            }
            let milliseconds = timer.stop(stream)?;
            if repeat > 0 && best.is_none_or(|best| milliseconds < best) {
                best = Some(milliseconds);
            }
        }
        Ok(best)
    }

    /// cuBLASLt wants scratch memory aligned to 256 bytes.
    #[inline]
    fn check_workspace(&self, shape: &GemmShape, operands: &GemmOperands) -> Result<(), DeviceError> {
        if operands.workspace.0.is_multiple_of(256) {
            return Ok(());
        }
        Err(self.refused(shape, format!("scratch memory at {:#x} is not aligned to 256 bytes", operands.workspace.0)))
    }

    #[cold]
    fn failed(&self, shape: &GemmShape, (call, code): Failed) -> DeviceError {
        let call = format!("{call} of {}", describe(shape));
        DeviceError::Driver {
            device: self.context.label.clone(),
            call,
            code: code.into(),
            text: text(self.table, code),
        }
    }

    #[cold]
    fn refused(&self, shape: &GemmShape, why: String) -> DeviceError {
        let call = format!("product {}", describe(shape));
        DeviceError::Driver { device: self.context.label.clone(), call, code: 0, text: why }
    }
}

impl Gemm for CublasLt {
    fn describe(&self) -> String {
        // SAFETY: a plain call.
        let version = unsafe { (self.table.cublasLtGetVersion)() };
        format!("cuBLASLt {}.{}.{}", version / 10000, version / 100 % 100, version % 100)
    }

    fn prepare(&self, shape: &GemmShape, workspace_bytes: usize) -> Result<(), DeviceError> {
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        self.plan(Key { shape: *shape, alignment: ALIGNMENT }, workspace_bytes).map(drop)
    }

    unsafe fn run(&self, stream: StreamId, shape: &GemmShape, operands: &GemmOperands) -> Result<(), DeviceError> {
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        self.check_workspace(shape, operands)?;
        let plan = self.plan(Key { shape: *shape, alignment: alignment(operands) }, operands.workspace_bytes)?;
        if plan.choice.workspace_bytes > operands.workspace_bytes {
            let (needed, given) = (plan.choice.workspace_bytes, operands.workspace_bytes);
            let why = format!("{given} bytes of scratch memory given, {needed} needed by the algorithm chosen before");
            return Err(self.refused(shape, why));
        }
        // SAFETY: by contract.
        unsafe { self.multiply(stream, &plan.problem, &plan.choice, operands) }
            .map_err(|failed| self.failed(shape, failed))
    }

    unsafe fn tune(&self, stream: StreamId, shape: &GemmShape, operands: &GemmOperands) -> Result<(), DeviceError> {
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        self.check_workspace(shape, operands)?;
        let key = Key { shape: *shape, alignment: alignment(operands) };
        let (problem, choices) = self.choices(key, operands.workspace_bytes, TUNED)?;
        let mut best: Option<(f32, Choice)> = None;
        for choice in choices {
            // SAFETY: by contract.
            if let Some(milliseconds) = unsafe { self.measure(stream, &problem, &choice, operands) }?
                && best.is_none_or(|(least, _)| milliseconds < least)
            {
                best = Some((milliseconds, choice));
            }
        }
        let Some((_, choice)) = best else {
            return Err(self.refused(shape, "every algorithm that was proposed fails".to_owned()));
        };
        self.plans.write().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::new(Plan { problem, choice }));
        Ok(())
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: made once; whoever drops the runtime has waited for its streams.
            unsafe { (self.table.cublasLtDestroy)(self.handle) };
        }
    }
}

fn text(table: &CublasLtTable, code: u32) -> String {
    // SAFETY: the function returns a constant for every code.
    unsafe { CStr::from_ptr((table.cublasLtGetStatusString)(code)) }.to_string_lossy().into_owned()
}
