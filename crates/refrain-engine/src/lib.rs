//! Scheduler, pools, sampler and the step loop
