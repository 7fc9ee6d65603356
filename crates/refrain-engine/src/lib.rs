//! Scheduler, pools, sampler and the step loop.
#![forbid(unsafe_code)]

mod config;
mod error;
mod handle;
mod memory;
mod metrics;
mod request;
mod validate;

pub use config::{EngineConfig, SchedulingPolicy, step_limits};
pub use error::{EngineError, SubmitError};
pub use handle::{Engine, EngineHandle, Load, RequestStream};
pub use memory::{
    DEFAULT_MAX_NUM_SEQS, MemoryError, MemoryLine, MemoryPlan, MemoryRequest, largest_model_len, plan_memory,
};
pub use metrics::EngineMetrics;
pub use request::{Event, FinishReason, PositionLogprobs, Request, RequestFailure, SamplingParams, TokenLogprob};
pub use validate::MAX_LOGPROBS;
