//! Workloads and reports: how long a batch takes, how much an engine does in a while, how a server holds up.
//!
//! The JSON keys are those of `vllm bench latency|throughput|serve`, so that its tools read them; what vLLM does not
//! report (prefill and decode apart, share of the memory bandwidth, peak memory) stands beside them.
#![forbid(unsafe_code)]

mod arrivals;
mod calendar;
mod client;
mod columns;
mod error;
pub mod latency;
mod machine;
mod offline;
pub mod serve;
pub mod startup;
pub mod statistics;
pub mod table;
pub mod throughput;
mod workload;

pub use arrivals::Arrivals;
pub use calendar::date;
pub use error::BenchError;
pub use machine::{BANDWIDTH_BUFFER_BYTES, peak_memory_bytes, read_bandwidth};
pub use offline::EngineFacts;
pub use workload::{RandomWorkload, Sample, Vocabulary};
