//! One matrix product as cuBLASLt describes it, and the algorithms that it proposes.

use crate::bindings::cublaslt::{
    CublasLtTable, cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t, cublasLtReductionScheme_t,
    cudaDataType, cudaDataType_t,
};
use refrain_device::{GemmShape, GemmType};
use std::mem::MaybeUninit;
use std::ptr::{from_ref, null_mut};

/// `CUBLAS_OP_T` of `cublas_api.h`: transposed.
const OP_T: i32 = 1;

/// A call that failed: its name and cuBLAS's status.
pub(crate) type Failed = (&'static str, u32);

/// An algorithm that cuBLASLt proposes.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) algorithm: cublasLtMatmulAlgo_t,
    /// Scratch memory that it needs.
    pub(crate) workspace_bytes: usize,
}

/// Descriptors of `out = x weight^T`. cuBLASLt's matrices are column-major, which turns row-major ones of ours around:
/// `weight` is `[k, n]`, `x` is `[k, m]`, `out` is `[n, m]`, and the product is `out = weight^T x`.
pub(crate) struct Problem {
    table: &'static CublasLtTable,
    pub(crate) operation: cublasLtMatmulDesc_t,
    pub(crate) weight: cublasLtMatrixLayout_t,
    pub(crate) x: cublasLtMatrixLayout_t,
    pub(crate) out: cublasLtMatrixLayout_t,
}

// SAFETY: descriptors are memory of the library's that is only read once they are made.
unsafe impl Send for Problem {}
// SAFETY: as above.
unsafe impl Sync for Problem {}

impl Problem {
    /// `shape` is one that [`super::shape::check`] lets pass.
    pub(crate) fn new(table: &'static CublasLtTable, shape: &GemmShape) -> Result<Problem, Failed> {
        let mut problem = Problem { table, operation: null_mut(), weight: null_mut(), x: null_mut(), out: null_mut() };
        let (input, output) = (data_type(shape.input), data_type(shape.output));
        let transposed = OP_T;
        // SAFETY: handles are stored before the calls return; the attribute is read at once and has the size given.
        // What was made before a failure is destroyed with `problem`.
        unsafe {
            let single = (cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F);
            let code = (table.cublasLtMatmulDescCreate)(&raw mut problem.operation, single.0, single.1);
            done("cublasLtMatmulDescCreate", code)?;
            let code = (table.cublasLtMatmulDescSetAttribute)(
                problem.operation,
                cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                from_ref(&transposed).cast(),
                size_of_val(&transposed),
            );
            done("cublasLtMatmulDescSetAttribute", code)?;
            let layouts = [
                (&raw mut problem.weight, input, shape.k, shape.n, shape.k),
                (&raw mut problem.x, input, shape.k, shape.m, shape.x_stride),
                (&raw mut problem.out, output, shape.n, shape.m, shape.out_stride),
            ];
            for (layout, kind, rows, columns, stride) in layouts {
                let code = (table.cublasLtMatrixLayoutCreate)(layout, kind, rows as u64, columns as u64, stride as i64);
                done("cublasLtMatrixLayoutCreate", code)?;
            }
        }
        Ok(problem)
    }

    /// Up to `most` algorithms, the one that should be fastest first. Partial sums of a split `k` are kept and added in
    /// f32, never in the type of `out`.
    pub(crate) fn choices(
        &self,
        handle: cublasLtHandle_t,
        workspace_bytes: usize,
        alignment: u32,
        most: usize,
    ) -> Result<Vec<Choice>, Failed> {
        let preference = PreferenceHandle::new(self.table)?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes as u64)?;
        let reduction = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction)?;
        for operand in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(operand, alignment)?;
        }
        let mut results = vec![MaybeUninit::<cublasLtMatmulHeuristicResult_t>::zeroed(); most];
        let mut found = 0;
        // SAFETY: all descriptors are alive; at most as many results are stored as there is room for.
        let code = unsafe {
            (self.table.cublasLtMatmulAlgoGetHeuristic)(
                handle,
                self.operation,
                self.weight,
                self.x,
                self.out,
                self.out,
                preference.handle,
                i32::try_from(most).unwrap_or(i32::MAX),
                results.as_mut_ptr().cast(),
                &raw mut found,
            )
        };
        done("cublasLtMatmulAlgoGetHeuristic", code)?;
        let found = usize::try_from(found).unwrap_or(0).min(most);
        let choice = |result: &MaybeUninit<cublasLtMatmulHeuristicResult_t>| {
            let result = result.as_ptr();
            // SAFETY: zeroed, then filled in. The status is read as a number: it may be one that the enum doesn't have.
            unsafe {
                let usable = (&raw const (*result).state).cast::<u32>().read() == 0;
                usable.then(|| Choice { algorithm: (*result).algo, workspace_bytes: (*result).workspaceSize })
            }
        };
        Ok(results[..found].iter().filter_map(choice).collect())
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        // SAFETY: each was made once, or is null where `new` didn't get that far.
        unsafe {
            for layout in [self.weight, self.x, self.out] {
                if !layout.is_null() {
                    (self.table.cublasLtMatrixLayoutDestroy)(layout);
                }
            }
            if !self.operation.is_null() {
                (self.table.cublasLtMatmulDescDestroy)(self.operation);
            }
        }
    }
}

/// What an algorithm has to respect.
struct PreferenceHandle {
    table: &'static CublasLtTable,
    handle: cublasLtMatmulPreference_t,
}

impl PreferenceHandle {
    fn new(table: &'static CublasLtTable) -> Result<PreferenceHandle, Failed> {
        let mut handle = null_mut();
        // SAFETY: the handle is stored before the call returns.
        done("cublasLtMatmulPreferenceCreate", unsafe { (table.cublasLtMatmulPreferenceCreate)(&raw mut handle) })?;
        Ok(PreferenceHandle { table, handle })
    }

    fn set<T: Copy>(&self, which: Preference, value: T) -> Result<(), Failed> {
        // SAFETY: the value is read at once and has the size given.
        let code = unsafe {
            (self.table.cublasLtMatmulPreferenceSetAttribute)(
                self.handle,
                which,
                from_ref(&value).cast(),
                size_of::<T>(),
            )
        };
        done("cublasLtMatmulPreferenceSetAttribute", code)
    }
}

impl Drop for PreferenceHandle {
    fn drop(&mut self) {
        // SAFETY: made once.
        unsafe { (self.table.cublasLtMatmulPreferenceDestroy)(self.handle) };
    }
}

fn done(call: &'static str, code: u32) -> Result<(), Failed> {
    if code == 0 { Ok(()) } else { Err((call, code)) }
}

fn data_type(kind: GemmType) -> cudaDataType {
    match kind {
        GemmType::F32 => cudaDataType_t::CUDA_R_32F,
        GemmType::Bf16 => cudaDataType_t::CUDA_R_16BF,
        GemmType::F16 => cudaDataType_t::CUDA_R_16F,
    }
}
