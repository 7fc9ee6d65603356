//! One worker runs the blocks of a grid, one after another. Here: what it keeps, and what happens around a block;
//! `block.rs` says who runs when within one.

use crate::Order;
use crate::abi::{Kernel, State};
use crate::collectives::Copies;
use crate::fault::{self, Fault};
use crate::fibre::{Stacks, Suspended};
use crate::mapping::{Mapping, poison};
use crate::module::Loaded;
use crate::turns::{Random, Walk, turns, unpack};
use refrain_device::DeviceError;

/// The most threads of a block, and the most waves they make.
pub(crate) const MOST_THREADS: usize = 1024;
pub(crate) const MOST_WAVES: usize = MOST_THREADS / 32;

/// A thread of the running block, by its turn: `turn = wave's turn * width + lane's turn`.
#[derive(Clone, Copy)]
pub(crate) struct Thread {
    /// Where it goes on, once it has waited, and where the result of what it waited for is then.
    pub suspended: Suspended,
    pub result: *const u32,
    pub stack: u32,
    pub tid: u32,
    pub lane: u32,
}

/// A wave of the running block, by its turn.
pub(crate) struct Wave {
    /// Lanes that can run, and those that have begun, as bits by their turns. The lowest one that can run has the turn
    /// and keeps its bit until it waits.
    pub runnable: u64,
    pub started: u64,
    /// Its threads; the one with the first turn.
    pub all: u64,
    pub threads: *mut Thread,
    /// How many lanes have reached the operation of the wave, and which one the first of them reached.
    pub arrived: u32,
    pub operation: Operation,
    /// The values of a shuffle, by lane; two rooms, for the first lanes may write the next values while the last ones
    /// still read.
    pub exchange: [[u32; 64]; 2],
    pub room: usize,
    /// What each lane hands to an operation that the last one carries out for all.
    pub operands: [[*mut u32; 3]; 64],
}

/// What lanes of a wave do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Sync,
    Shuffle,
    MmaBf16,
    MmaF16,
    /// How many matrices, and whether transposed.
    LoadMatrix(u32, bool),
}

/// Why a block was given up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// Nobody can run: some wait for threads that will never come.
    Stuck,
    /// Lanes of one wave wait in two operations.
    Mixed { first: Operation, second: Operation },
    /// An address that the operation doesn't take.
    Address { operation: &'static str, why: &'static str, address: usize },
    /// The processor refused an access.
    Fault(Fault),
    /// A thread has more local variables than a fibre's stack holds.
    StackOverflow,
    /// No memory for another stack.
    NoStack,
}

/// Everything about the block that runs. The fibres reach it through the image's state, by a raw pointer: while a block
/// runs nobody holds a reference to it.
pub(crate) struct Worker {
    pub state: *mut State,
    pub kernel: Kernel,
    pub arguments: *const u8,
    /// The launching thread, while fibres run.
    pub main: Suspended,
    /// Whose turn it is.
    pub wave: *mut Wave,
    pub thread: *mut Thread,
    /// Waves in which somebody can run, as bits by turn. The lowest one has the turn.
    pub ready_waves: u64,
    pub at_barrier: u32,
    pub finished: u32,
    pub threads: u32,
    pub width: u32,
    pub switches: u64,
    pub failure: Option<Failure>,
    pub stacks: Stacks,
    pub slots: Box<[Thread; MOST_THREADS]>,
    pub waves: Box<[Wave]>,
    pub copies: Box<[Copies]>,
    pub copies_used: bool,
    /// Shared memory of the image, and the dynamic one: from, to.
    pub shared: [(usize, usize); 2],
    pub wide_registers: bool,
    dynamic: Option<Mapping>,
    order: Order,
}

// SAFETY: its pointers are into memory that it owns or, while a launch runs, borrows; nothing is tied to a thread.
unsafe impl Send for Worker {}

/// A grid to run.
pub(crate) struct Grid<'a> {
    pub image: &'a Loaded,
    pub kernel: Kernel,
    pub blocks: [u32; 3],
    pub shared_bytes: u32,
    pub arguments: &'a [u64],
}

/// The block that failed, and why.
pub(crate) struct FailedBlock {
    pub block: [u32; 3],
    pub tid: u32,
    pub failure: Failure,
    /// Where the threads of the block were, in words.
    pub whereabouts: String,
}

impl Worker {
    pub(crate) fn new(width: u32, order: Order) -> Worker {
        let thread = Thread { suspended: std::ptr::null_mut(), result: std::ptr::null(), stack: 0, tid: 0, lane: 0 };
        let wave = || Wave {
            runnable: 0,
            started: 0,
            all: 0,
            threads: std::ptr::null_mut(),
            arrived: 0,
            operation: Operation::Sync,
            exchange: [[0; 64]; 2],
            room: 0,
            operands: [[std::ptr::null_mut(); 3]; 64],
        };
        unsafe extern "C" fn nothing(_: *const u8) {}
        Worker {
            state: std::ptr::null_mut(),
            kernel: Kernel { arguments: 0, threads: 0, run: nothing },
            arguments: std::ptr::null(),
            main: std::ptr::null_mut(),
            wave: std::ptr::null_mut(),
            thread: std::ptr::null_mut(),
            ready_waves: 0,
            at_barrier: 0,
            finished: 0,
            threads: 0,
            width,
            switches: 0,
            failure: None,
            stacks: Stacks::new(),
            slots: Box::new([thread; MOST_THREADS]),
            waves: (0..MOST_WAVES).map(|_| wave()).collect(),
            copies: (0..MOST_THREADS).map(|_| Copies::default()).collect(),
            copies_used: false,
            shared: [(0, 0); 2],
            wide_registers: crate::collectives::wide_registers(),
            dynamic: None,
            order,
        }
    }

    /// Runs all blocks of a grid.
    ///
    /// # Errors
    /// Outside: memory for stacks. Inside: the first block that failed; those after it did not run.
    ///
    /// # Safety
    /// The arguments are what the kernel takes, with addresses that are valid.
    pub(crate) unsafe fn run(&mut self, grid: &Grid<'_>) -> Result<Result<(), FailedBlock>, DeviceError> {
        fault::install();
        fault::alternate_stack()?;
        self.stacks.reserve()?;
        let dynamic = self.dynamic_shared(grid.shared_bytes as usize)?;
        self.state = grid.image.state();
        self.kernel = grid.kernel;
        self.arguments = grid.arguments.as_ptr().cast();
        self.threads = grid.kernel.threads;
        self.failure = None;
        let fixed = grid.image.shared();
        self.shared = [address_range(fixed), address_range(dynamic)];
        // SAFETY: the image is loaded, and nobody else runs it: the device is locked.
        unsafe {
            (*self.state).blocks = grid.blocks;
            (*self.state).dynamic_shared = dynamic.0;
            (*self.state).worker = (&raw mut *self).cast();
        }
        self.take_turns(0);
        let blocks = u64::from(grid.blocks[0]) * u64::from(grid.blocks[1]) * u64::from(grid.blocks[2]);
        let walk = Walk::new(self.order, blocks);
        for step in 0..blocks {
            let index = walk.at(step);
            let block = unpack(index, grid.blocks);
            if let Order::Shuffled(_) = self.order {
                self.take_turns(index);
            }
            // SAFETY: both are ranges of memory that belong to this worker while it runs.
            unsafe {
                poison(fixed.0, fixed.1);
                poison(dynamic.0, dynamic.1);
                (*self.state).block = block;
                self.run_block();
            }
            if let Some(mut failure) = self.failure.take() {
                if matches!(&failure, Failure::Fault(fault) if self.stacks.overflowed(fault.address)) {
                    failure = Failure::StackOverflow;
                }
                // SAFETY: as above.
                let tid = unsafe { (*self.state).tid };
                let whereabouts = self.whereabouts();
                return Ok(Err(FailedBlock { block, tid, failure, whereabouts }));
            }
        }
        Ok(Ok(()))
    }

    /// The dynamic shared memory of a launch: it ends where nobody can write.
    fn dynamic_shared(&mut self, bytes: usize) -> Result<(*mut u8, usize), DeviceError> {
        let bytes = bytes.next_multiple_of(128);
        if self.dynamic.as_ref().is_none_or(|mapping| mapping.bytes() < bytes) {
            self.dynamic = Some(Mapping::new(bytes, "shared memory of a simulated block")?);
        }
        let mapping = self.dynamic.as_ref().expect("made above");
        Ok((mapping.end().wrapping_sub(bytes), bytes))
    }

    /// Fills in which thread has which turn.
    fn take_turns(&mut self, block: u64) {
        let width = self.width as usize;
        let waves = (self.threads as usize).div_ceil(width);
        let mut random = match self.order {
            Order::Shuffled(seed) => Random::new(seed ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            _ => Random::new(0),
        };
        let wave_order = turns(self.order, waves, &mut random);
        for (wave_turn, &wave) in wave_order.iter().take(waves).enumerate() {
            let lanes = (self.threads as usize - wave as usize * width).min(width);
            let lane_order = turns(self.order, lanes, &mut random);
            for (turn, &lane) in lane_order.iter().take(lanes).enumerate() {
                let thread = &mut self.slots[wave_turn * width + turn];
                thread.tid = u32::from(wave) * self.width + u32::from(lane);
                thread.lane = u32::from(lane);
            }
            let state = &mut self.waves[wave_turn];
            state.threads = &raw mut self.slots[wave_turn * width];
            state.all = u64::MAX >> (64 - lanes);
            // Lanes that don't exist give poison.
            state.exchange = [[crate::POISON * 0x1_0001; 64]; 2];
        }
    }
}

fn address_range(range: (*mut u8, usize)) -> (usize, usize) {
    (range.0.addr(), range.0.addr() + range.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_one_turn_and_partial_waves_are_partial() {
        for order in [Order::Forward, Order::Reverse, Order::Shuffled(3)] {
            for (width, threads) in [(32, 32), (32, 100), (64, 100), (64, 1024), (32, 1024), (64, 7)] {
                let mut worker = Worker::new(width, order);
                worker.threads = threads;
                worker.take_turns(5);
                let mut seen = Vec::new();
                for (wave_turn, wave) in worker.waves.iter().enumerate().take(threads.div_ceil(width) as usize) {
                    let lanes = wave.all.count_ones() as usize;
                    let from = wave_turn * width as usize;
                    seen.extend(worker.slots[from..from + lanes].iter().map(|thread| thread.tid));
                    let waves = seen[seen.len() - lanes..].iter().map(|tid| tid / width);
                    assert!(waves.clone().eq(waves.clone().take(1).cycle().take(lanes)), "waves are mixed");
                }
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..threads), "{order:?} {width} {threads}");
            }
        }
    }
}
