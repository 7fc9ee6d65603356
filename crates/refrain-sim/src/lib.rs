//! A simulated GPU behind the runtime trait: runs the kernel sources on the CPU, so that kernels, graphs and the whole
//! engine are tested where there is no GPU.
//!
//! A kernel file is compiled by the system's C++ compiler against `kernels/kx_sim.h` and loaded as a shared object. Each
//! thread of a block is a fibre: it runs until it waits for others, then the next one runs. One block runs at a time, in
//! an order that [`SimOptions::order`] chooses, so every run is repeatable, and what depends on an order that GPUs don't
//! promise shows by running in another one. Work is done when it is enqueued.
//!
//! What it finds: reads of memory that nobody wrote (it is [poisoned](POISON)), accesses outside of allocations and of
//! dynamic shared memory, barriers and wave operations that not all threads reach, missing waits for asynchronous
//! copies, argument structs that differ between the two languages, and calls that a capture doesn't allow.
//! What it can't find: races whose threads happen to run in the right order in every order tried, writes behind the end of
//! one static shared array into the next, and time. A kernel that spins until another thread or block has done something
//! never ends, for nobody else runs meanwhile.

mod abi;
mod block;
mod capture;
mod collectives;
mod compiler;
mod device;
mod driver;
mod fault;
mod fibre;
mod late;
mod mapping;
mod memory;
mod module;
mod options;
mod runtime;
mod turns;
mod worker;

pub use mapping::POISON;
pub use options::{Order, SimOptions};
pub use runtime::{SimCounters, SimRuntime};
