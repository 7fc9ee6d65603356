//! Scheduler, pools, sampler and the step loop: token ids in, token ids out.
//!
//! # The way of a step
//! One thread owns the backend, both state pools and every running sequence. It does the same again and again:
//!
//! 1. **Commands.** `submit` checks a request and puts it into a channel; a dropped [`RequestStream`] puts a cancel
//!    there. The thread takes all that came since the last step, and sleeps when there is nothing to do.
//! 2. **Plan.** The scheduler, a pure function of waiting line, running sequences, pools and budgets, says which tokens
//!    of which sequences the step computes, who is admitted, and who is thrown back because the pool is full.
//! 3. **Apply.** Slots and exactly the KV blocks that the step needs change hands.
//! 4. **Execute.** The backend gets the [`refrain_device::Step`] and gives logits for the rows that want them. If it
//!    fails or panics, the requests of this step fail, and the next step goes on with the others.
//! 5. **Sample.** Prompt log-probabilities and the next token of each sequence that is due; the events go to the
//!    streams.
//! 6. **End.** Requests that are complete give their blocks and slot back; the load is published; then their last events
//!    go out.
//!
//! # Promises
//! - A request's answer doesn't depend on what else is in the batch: prompts are cut at multiples of
//!   [`refrain_device::SCAN_CHUNK`], a preempted sequence recomputes its generated tokens as it computed them first, and
//!   random numbers depend on the seed and the place in the answer only.
//! - The first sequence in line always computes something and is never preempted, so every request ends.
//! - Blocks and slots are conserved; whoever sees the last event of a request finds them free.
//! - Every stream ends with [`Event::Finished`] or [`Event::Failed`], even if the thread dies.
#![forbid(unsafe_code)]

mod clock;
mod config;
mod error;
mod handle;
mod memory;
mod metrics;
mod policy;
mod pool;
mod request;
mod runner;
mod sampling;
mod scheduler;
mod shared;
mod validate;

pub use config::{EngineConfig, SchedulingPolicy, step_limits};
pub use error::{EngineError, SubmitError};
pub use handle::{Engine, EngineHandle, Load, RequestStream};
pub use memory::{
    DEFAULT_MAX_NUM_SEQS, MOST_NUM_SEQS, MemoryError, MemoryLine, MemoryPlan, MemoryRequest, human_bytes,
    largest_model_len, plan_memory,
};
pub use metrics::EngineMetrics;
pub use policy::{
    Alike, Average, Bench, Calibration, CellSteps, Phase, Policy, PolicyEntry, PolicyMode, Span, StepWorld,
};
pub use request::{Event, FinishReason, PositionLogprobs, Request, RequestFailure, SamplingParams, TokenLogprob};
pub use validate::{MAX_BAD_WORD_TOKENS, MAX_LOGPROBS, MAX_STOP_TOKENS, MAX_TEMPERATURE};
