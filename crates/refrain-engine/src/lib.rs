//! Scheduler, pools, sampler and the step loop.
#![forbid(unsafe_code)]

mod request;

pub use request::{
    Event, FinishReason, PositionLogprobs, Request, RequestFailure, SamplingParams, TokenLogprob,
};
