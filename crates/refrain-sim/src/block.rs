//! Who runs when within a block. A thread runs until it has to wait or has finished; then the first one in the order
//! that can run does. As long as nobody waits, one stack serves all threads.
//!
//! The functions take the worker as a raw pointer, for many fibres are in the middle of them at the same time. They are
//! short: most of the time of kernels that exchange much is spent here.

use crate::fibre::{Resume, Suspended, prepare, rendezvous, switch};
use crate::worker::{Failure, Operation, Wave, Worker};
use std::ffi::c_void;

/// What waiting without a result gives.
static NOTHING: u32 = 0;

impl Worker {
    /// Runs one block to its end or until it fails.
    ///
    /// # Safety
    /// State, kernel and arguments are set and valid, turns are taken, shared memory is poisoned.
    pub(crate) unsafe fn run_block(&mut self) {
        let waves = self.threads.div_ceil(self.width) as usize;
        for wave in &mut self.waves[..waves] {
            wave.runnable = wave.all;
            wave.started = 0;
            wave.arrived = 0;
        }
        self.ready_waves = u64::MAX >> (64 - waves);
        self.at_barrier = 0;
        self.finished = 0;
        if self.copies_used {
            self.copies.iter_mut().for_each(crate::collectives::Copies::clear);
            self.copies_used = false;
        }
        self.stacks.give_all();
        let worker = &raw mut *self;
        // SAFETY: nobody uses the worker but the fibres until one of them comes back here.
        unsafe {
            (*worker).wave = (*worker).waves.as_mut_ptr();
            let Next::Start = next(worker) else { unreachable!("a block has threads, and none has run") };
            let Some(fibre) = begin(worker) else {
                (*worker).failure = Some(Failure::NoStack);
                return;
            };
            crate::fault::while_running(worker, || switch(&raw mut (*worker).main, fibre, 0));
        }
    }

    /// How many threads are where, in words.
    pub(crate) fn whereabouts(&self) -> String {
        let waves = self.threads.div_ceil(self.width) as usize;
        let mut parts = Vec::new();
        if self.at_barrier > 0 {
            parts.push(format!("{} of {} threads wait at kx_sync", self.at_barrier, self.threads));
        }
        for (turn, wave) in self.waves[..waves].iter().enumerate().filter(|(_, wave)| wave.arrived > 0) {
            let index = self.slots[turn * self.width as usize].tid / self.width;
            let (arrived, all) = (wave.arrived, wave.all.count_ones());
            parts.push(format!("{arrived} of {all} lanes of wave {index} wait at {}", wave.operation));
        }
        if self.finished > 0 {
            parts.push(format!("{} of {} threads have finished", self.finished, self.threads));
        }
        parts.join("; ")
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Operation::Sync => f.write_str("kx_sync_wave"),
            Operation::Shuffle => f.write_str("a shuffle"),
            Operation::MmaBf16 => f.write_str("kx_mma_bf16"),
            Operation::MmaF16 => f.write_str("kx_mma_f16"),
            Operation::LoadMatrix(count, false) => write!(f, "kx_ldmatrix{count}"),
            Operation::LoadMatrix(count, true) => write!(f, "kx_ldmatrix{count}_trans"),
        }
    }
}

/// How the thread whose turn it is now comes to run.
enum Next {
    Start,
    Resume,
    Nobody,
}

/// Gives the turn to the first thread that can run.
#[inline(always)]
unsafe fn next(worker: *mut Worker) -> Next {
    // SAFETY: see the module; no other fibre runs.
    unsafe {
        if (*(*worker).wave).runnable == 0 && !next_wave(worker) {
            return Next::Nobody;
        }
        let wave = (*worker).wave;
        let turn = (*wave).runnable.trailing_zeros();
        let thread = (*wave).threads.add(turn as usize);
        (*worker).thread = thread;
        (*(*worker).state).tid = (*thread).tid;
        if (*wave).started >> turn & 1 == 1 { Next::Resume } else { Next::Start }
    }
}

/// Goes from a wave in which nobody can run to the next one, and past the barrier once all threads are there. False when
/// there is none.
#[inline(never)]
unsafe fn next_wave(worker: *mut Worker) -> bool {
    // SAFETY: see the module.
    unsafe {
        (*worker).ready_waves &= (*worker).ready_waves - 1;
        if (*worker).ready_waves == 0 {
            if (*worker).at_barrier < (*worker).threads {
                return false;
            }
            (*worker).at_barrier = 0;
            let waves = (*worker).threads.div_ceil((*worker).width) as usize;
            for turn in 0..waves {
                let wave = (*worker).waves.as_mut_ptr().add(turn);
                (*wave).runnable = (*wave).all;
            }
            (*worker).ready_waves = u64::MAX >> (64 - waves);
        }
        (*worker).wave = (*worker).waves.as_mut_ptr().add((*worker).ready_waves.trailing_zeros() as usize);
        true
    }
}

/// A fibre for the thread whose turn it is. `None` when no stack can be had.
unsafe fn begin(worker: *mut Worker) -> Option<Suspended> {
    // SAFETY: the stack is free, and the fibre ends with the block.
    unsafe {
        let stack = (*worker).stacks.take()?;
        (*(*worker).thread).stack = stack;
        Some(prepare((*worker).stacks.top(stack), (*worker).stacks.bytes(), threads, worker.cast()))
    }
}

/// Runs threads from their beginnings on, as long as no thread has to be resumed.
unsafe extern "C" fn threads(worker: *mut c_void) -> ! {
    let worker = worker.cast::<Worker>();
    // SAFETY: see the module. The kernel is called as the launch's contract allows.
    unsafe {
        loop {
            // Its bit is the lowest one that is set, so what is added is the lowest one of those not yet started.
            (*(*worker).wave).started |= lowest((*(*worker).wave).runnable);
            ((*worker).kernel.run)((*worker).arguments);
            (*worker).finished += 1;
            if (*worker).finished == (*worker).threads {
                leave(worker);
            }
            stand_back((*worker).wave);
            let stack = (*(*worker).thread).stack;
            match next(worker) {
                Next::Start => (*(*worker).thread).stack = stack,
                Next::Resume => {
                    (*worker).stacks.give(stack);
                    (*worker).switches += 1;
                    // This fibre's stack is free now; nobody takes it before the switch is done.
                    let mut forgotten = std::ptr::null_mut();
                    let thread = (*worker).thread;
                    switch(&raw mut forgotten, (*thread).suspended, *(*thread).result);
                }
                Next::Nobody => fail(worker, Failure::Stuck),
            }
        }
    }
}

fn lowest(bits: u64) -> u64 {
    bits & bits.wrapping_neg()
}

/// The thread that has the turn can't run any more.
#[inline(always)]
pub(crate) unsafe fn stand_back(wave: *mut Wave) {
    // SAFETY: see the module. The thread's bit is the lowest one.
    unsafe { (*wave).runnable &= (*wave).runnable - 1 }
}

/// Suspends the thread that has the turn, which stood back, until it has it again.
#[inline(always)]
pub(crate) unsafe fn resume_next(worker: *mut Worker) -> Resume {
    // SAFETY: see the module.
    unsafe {
        (*worker).switches += 1;
        match next(worker) {
            Next::Resume => {
                let thread = (*worker).thread;
                Resume { to: (*thread).suspended, value: *(*thread).result }
            }
            Next::Start => match begin(worker) {
                Some(to) => Resume { to, value: 0 },
                None => fail(worker, Failure::NoStack),
            },
            Next::Nobody => fail(worker, Failure::Stuck),
        }
    }
}

/// Notes where the thread that has the turn goes on, without a result.
#[inline(always)]
pub(crate) unsafe fn suspend(worker: *mut Worker, own: Suspended) {
    // SAFETY: see the module.
    unsafe {
        (*(*worker).thread).suspended = own;
        (*(*worker).thread).result = &raw const NOTHING;
    }
}

/// Gives the block up.
#[cold]
pub(crate) unsafe fn fail(worker: *mut Worker, failure: Failure) -> ! {
    // SAFETY: see the module.
    unsafe {
        (*worker).failure = Some(failure);
        leave(worker)
    }
}

/// Goes back to the launching thread, for good.
unsafe fn leave(worker: *mut Worker) -> ! {
    // SAFETY: the launching thread waits in `run_block`; nobody resumes this fibre.
    unsafe {
        let mut forgotten = std::ptr::null_mut();
        switch(&raw mut forgotten, (*worker).main, 0);
    }
    unreachable!("a fibre that left was resumed")
}

rendezvous!(
    /// `kx_sync`.
    sync,
    wait_for_block
);

unsafe extern "C" fn wait_for_block(worker: *mut Worker, _: u64, _: u64, _: u64, _: u64, own: Suspended) -> Resume {
    // SAFETY: see the module.
    unsafe {
        suspend(worker, own);
        (*worker).at_barrier += 1;
        stand_back((*worker).wave);
        resume_next(worker)
    }
}
