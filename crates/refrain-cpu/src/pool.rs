//! The compute threads. One job at a time is cut into items that any thread may take; the caller works too, and the
//! call returns when every item is done. A thread that comes too late for a job, because the system gave its processor
//! to somebody else, is not waited for: only those that joined the job are.
//!
//! Threads spin for a moment after a job, because the next one usually comes within microseconds, and then sleep, so
//! that an idle server costs nothing.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// In [`Shared::state`]: workers may join the current job.
const OPEN: u64 = 1 << 31;
/// In [`Shared::state`]: how many workers have joined and not yet left.
const ACTIVE: u64 = OPEN - 1;
/// In [`Shared::state`]: the number of the job starts at this bit.
const JOB_SHIFT: u32 = 32;

struct Shared {
    /// Number of the job, [`OPEN`], [`ACTIVE`]. A new number is the signal to start.
    state: AtomicU64,
    /// The current job; written by the caller while no worker can join, read by workers that have joined.
    job: UnsafeCell<Option<*const Work<'static>>>,
    items: AtomicUsize,
    next: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only between jobs, when no worker reads it; everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only used while the caller that owns the closure waits.
unsafe impl Send for Shared {}

/// A fixed set of compute threads, the calling thread being one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `threads` threads in all, at least one; `threads - 1` are started.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            items: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self { shared: Arc::clone(&shared), workers: Vec::new() };
        for worker in 1..threads.max(1) {
            let shared = Arc::clone(&shared);
            let name = format!("refrain-cpu-{worker}");
            pool.workers.push(std::thread::Builder::new().name(name).spawn(move || run_worker(&shared, worker))?);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `work(item, worker)` for every item in `0..items`; `worker` is in `0..threads`, and no two calls with the
    /// same worker run at a time. Which worker gets which item is not determined.
    ///
    /// # Panics
    /// When an item panicked, with its payload, after all threads have stopped working.
    pub(crate) fn run(&mut self, items: usize, work: &Work<'_>) {
        if items <= 1 || self.workers.is_empty() {
            (0..items).for_each(|item| work(item, 0));
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; no worker touches the closure after this call has returned.
        let job: *const Work<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        // SAFETY: the job before this one is closed and all who had joined it have left.
        unsafe { *shared.job.get() = Some(job) };
        shared.items.store(items, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        shared.announce(OPEN);
        take_items(shared, work, 0);
        let mut state = shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while state & ACTIVE > 0 {
            spins += 1;
            // A worker that lost its processor won't come back while we hold it.
            if spins.is_multiple_of(1 << 12) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
            state = shared.state.load(Ordering::Acquire);
        }
        // Not in the `if let`: the lock would be held, and poisoned, while the panic goes on.
        let panic = shared.panic.lock().expect("no thread panics with this lock").take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.announce(0);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Makes the state that of the next job and wakes all who sleep.
    fn announce(&self, open: u64) {
        let job = (self.state.load(Ordering::Relaxed) >> JOB_SHIFT) + 1;
        // SeqCst pairs with the sleeper's count: either it sees the new job or we see that it sleeps.
        self.state.store(job << JOB_SHIFT | open, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock());
            self.wake.notify_all();
        }
    }

    /// Joins job `number` if it is still open. Whoever joined must leave.
    fn join(&self, number: u64) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        while state >> JOB_SHIFT == number && state & OPEN > 0 {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    fn leave(&self) {
        self.state.fetch_sub(1, Ordering::Release);
    }
}

fn take_items(shared: &Shared, work: &Work<'_>, worker: usize) {
    let items = shared.items.load(Ordering::Relaxed);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let item = shared.next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                break;
            }
            work(item, worker);
        }
    }));
    if let Err(payload) = outcome {
        shared.next.store(items, Ordering::Relaxed);
        *shared.panic.lock().expect("no thread panics with this lock") = Some(payload);
    }
}

fn run_worker(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        seen = wait_for_change(shared, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if shared.join(seen) {
            // SAFETY: the caller wrote the job before it opened it and waits until all who joined have left.
            let work = unsafe { &*(*shared.job.get()).expect("an open job is there") };
            take_items(shared, work, worker);
            shared.leave();
        }
    }
}

/// Waits for a job with another number than `seen` and gives its number.
fn wait_for_change(shared: &Shared, seen: u64) -> u64 {
    let start = Instant::now();
    loop {
        for _ in 0..256 {
            let job = shared.state.load(Ordering::Acquire) >> JOB_SHIFT;
            if job != seen {
                return job;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            break;
        }
    }
    let mut guard = shared.lock.lock().expect("no thread panics with this lock");
    shared.sleepers.fetch_add(1, Ordering::SeqCst);
    loop {
        let job = shared.state.load(Ordering::SeqCst) >> JOB_SHIFT;
        if job != seen {
            shared.sleepers.fetch_sub(1, Ordering::SeqCst);
            return job;
        }
        guard = shared.wake.wait(guard).expect("no thread panics with this lock");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            for items in [0, 1, 2, 3, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(items, &|item, worker| {
                    assert!(worker < threads);
                    counts[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn threads_that_fell_asleep_wake_up() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..3 {
            std::thread::sleep(SPIN * 20);
            let count = AtomicUsize::new(0);
            pool.run(10, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 10);
        }
    }

    #[test]
    fn many_short_jobs_in_a_row_lose_no_item() {
        let mut pool = Pool::new(4).unwrap();
        let total = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(3, &|item, _| {
                total.fetch_add(item + 1, Ordering::Relaxed);
            });
        }
        assert_eq!(total.into_inner(), 20_000 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_works_on() {
        let mut pool = Pool::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(64, &|item, _| assert!(item != 40, "item {item}"))));
        let payload = outcome.unwrap_err();
        assert!(payload.downcast_ref::<String>().unwrap().contains("item 40"));
        let count = AtomicUsize::new(0);
        pool.run(64, &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 64);
    }
}
