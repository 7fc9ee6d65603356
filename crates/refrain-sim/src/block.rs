//! Who runs when within a block. A thread runs until it has to wait or has finished; then the first one in the order
//! that can run does. As long as nobody waits, one stack serves all threads.
//!
//! The functions take the worker as a raw pointer, for many fibres are in the middle of them at the same time.

use crate::fibre::{prepare, switch};
use crate::worker::{Failure, Operation, Wave, Worker};
use std::ffi::c_void;

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
            wave.finished = 0;
            wave.arrived = 0;
        }
        self.ready_waves = u64::MAX >> (64 - waves);
        self.wave_turn = 0;
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
            match next(worker) {
                Next::Start => {
                    let Some(fibre) = begin(worker) else { return };
                    crate::fault::while_running(worker, || switch(&raw mut (*worker).main, fibre));
                }
                Next::Resume | Next::Nobody => unreachable!("a block has threads, and none has run"),
            }
        }
    }

    /// How many threads are where, in words.
    pub(crate) fn whereabouts(&self) -> String {
        let waves = self.threads.div_ceil(self.width) as usize;
        let mut parts = Vec::new();
        if self.at_barrier > 0 {
            parts.push(format!("{} of {} threads wait at kx_sync", self.at_barrier, self.threads));
        }
        for (turn, wave) in self.waves[..waves].iter().enumerate().filter(|(_, wave)| wave.arrived != 0) {
            let index = self.slots[turn * self.width as usize].tid / self.width;
            let (arrived, all) = (wave.arrived.count_ones(), wave.all.count_ones());
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
unsafe fn next(worker: *mut Worker) -> Next {
    // SAFETY: see the module; no other fibre runs.
    unsafe {
        let waves = (*worker).waves.as_mut_ptr();
        let mut wave = waves.add((*worker).wave_turn);
        if (*wave).runnable == 0 {
            (*worker).ready_waves &= !(1 << (*worker).wave_turn);
            if (*worker).ready_waves == 0 {
                return Next::Nobody;
            }
            (*worker).wave_turn = (*worker).ready_waves.trailing_zeros() as usize;
            wave = waves.add((*worker).wave_turn);
        }
        let lane = (*wave).runnable.trailing_zeros();
        (*worker).turn = (*worker).wave_turn * (*worker).width as usize + lane as usize;
        (*(*worker).state).tid = (*slot(worker)).tid;
        if (*wave).started >> lane & 1 == 1 { Next::Resume } else { Next::Start }
    }
}

unsafe fn slot(worker: *mut Worker) -> *mut crate::worker::Thread {
    // SAFETY: a turn is below the number of slots.
    unsafe { (&raw mut *(*worker).slots).cast::<crate::worker::Thread>().add((*worker).turn) }
}

/// The wave of the running thread, and the thread's bit in it.
pub(crate) unsafe fn place(worker: *mut Worker) -> (*mut Wave, u64) {
    // SAFETY: see the module.
    unsafe {
        let wave = (*worker).waves.as_mut_ptr().add((*worker).wave_turn);
        (wave, 1 << ((*worker).turn - (*worker).wave_turn * (*worker).width as usize))
    }
}

/// A fibre for the thread whose turn it is. `None` when no stack can be had, which is then the failure.
unsafe fn begin(worker: *mut Worker) -> Option<*mut c_void> {
    // SAFETY: the stack is free, and the fibre ends with the block.
    unsafe {
        let Some(stack) = (*worker).stacks.take() else {
            (*worker).failure = Some(Failure::NoStack);
            return None;
        };
        (*slot(worker)).stack = stack;
        Some(prepare((*worker).stacks.top(stack), (*worker).stacks.bytes(), threads, worker.cast()))
    }
}

/// Runs threads from their beginnings on, as long as no thread has to be resumed.
unsafe extern "C" fn threads(worker: *mut c_void) -> ! {
    let worker = worker.cast::<Worker>();
    // SAFETY: see the module. The kernel is called as the launch's contract allows.
    unsafe {
        loop {
            let (wave, bit) = place(worker);
            (*wave).started |= bit;
            ((*worker).kernel.run)((*worker).arguments);
            let (wave, bit) = place(worker);
            (*wave).runnable &= !bit;
            (*wave).finished |= bit;
            (*worker).finished += 1;
            if (*worker).finished == (*worker).threads {
                leave(worker);
            }
            let stack = (*slot(worker)).stack;
            match next(worker) {
                Next::Start => (*slot(worker)).stack = stack,
                Next::Resume => {
                    (*worker).stacks.give(stack);
                    (*worker).switches += 1;
                    // This fibre's stack is free now; nobody takes it before the switch is done.
                    let mut forgotten = std::ptr::null_mut();
                    switch(&raw mut forgotten, (*slot(worker)).suspended);
                }
                Next::Nobody => fail(worker, Failure::Stuck),
            }
        }
    }
}

/// Lets others run until the running thread, which is not runnable now, has been released and has its turn again.
pub(crate) unsafe fn wait(worker: *mut Worker) {
    // SAFETY: see the module.
    unsafe {
        let own = slot(worker);
        let to = match next(worker) {
            Next::Resume => (*slot(worker)).suspended,
            Next::Start => match begin(worker) {
                Some(fibre) => fibre,
                None => leave(worker),
            },
            Next::Nobody => fail(worker, Failure::Stuck),
        };
        if slot(worker) != own {
            (*worker).switches += 1;
            switch(&raw mut (*own).suspended, to);
        }
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
pub(crate) unsafe fn leave(worker: *mut Worker) -> ! {
    // SAFETY: the launching thread waits in `run_block`; nobody resumes this fibre.
    unsafe {
        let mut forgotten = std::ptr::null_mut();
        switch(&raw mut forgotten, (*worker).main);
    }
    unreachable!("a fibre that left was resumed")
}

/// `kx_sync`.
pub(crate) unsafe extern "C" fn sync(worker: *mut c_void) {
    let worker = worker.cast::<Worker>();
    // SAFETY: see the module.
    unsafe {
        let (wave, bit) = place(worker);
        (*wave).runnable &= !bit;
        (*worker).at_barrier += 1;
        if (*worker).at_barrier == (*worker).threads {
            (*worker).at_barrier = 0;
            let waves = (*worker).threads.div_ceil((*worker).width) as usize;
            for turn in 0..waves {
                let wave = (*worker).waves.as_mut_ptr().add(turn);
                (*wave).runnable = (*wave).all;
            }
            (*worker).ready_waves = u64::MAX >> (64 - waves);
            (*worker).wave_turn = 0;
        }
        wait(worker);
    }
}
