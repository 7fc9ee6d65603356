//! Workloads and reports: latency, throughput, serving
