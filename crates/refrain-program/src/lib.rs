//! A model as a straight list of ops on named tensors: builder, passes, costs, memory plan, text form.
//!
//! Pure: nothing here knows a device. A backend takes a [`Program`] and the weights it names and runs it; how (op by
//! op, compiled, replayed) is the backend's and the policy's business.
#![forbid(unsafe_code)]

mod build;
mod cache_dtype;
mod columns;
mod config_check;
mod cost;
mod error;
mod explain;
mod fp8;
mod op;
pub mod passes;
mod plan;
mod program;
mod roofline;
mod text;
mod validate;

pub use cache_dtype::CacheDtype;
pub use cost::{Cost, SCAN_CHUNK, StepShape};
pub use error::ProgramError;
pub use explain::{
    CompiledSteps, ExplainOptions, Explanation, FullestMoment, Memory, PassEffect, PlacedTensor, Section, explain,
};
pub use fp8::{Fp8, scale_factor, scale_inverse};
pub use op::{
    AttentionGate, AttentionShape, Elementwise, ElementwiseFunction, ElementwiseOperand, Epilogue, GdnPrepare,
    GdnShape, Op, Prologue, QkNormRopeAppend,
};
pub use passes::{
    Applied, BytesSaved, CompileOptions, Compiled, CompiledRange, FEW_ROWS, PassConfig, compile, compile_ranges,
};
pub use plan::{ACTIVATION_ALIGNMENT, ActivationPlan, Lifetime};
pub use program::{
    BuildOptions, Node, Program, Rows, StateDef, StateId, StateKind, TensorDef, TensorId, View, WeightDef, WeightId,
    WeightKind, WeightPart,
};
pub use refrain_model::{Dtype, TensorView, WeightSource};
pub use roofline::{Bound, Ceilings, Estimate, OpEstimate};

#[cfg(test)]
mod testing;
