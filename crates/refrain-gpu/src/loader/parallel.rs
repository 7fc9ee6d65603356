//! The same work on many items, in some threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

/// Does `work` on every item in `jobs` threads (at least one) and gives the results in the order of the items.
/// `progress(done, total)` is called in the calling thread, first with 0. After an error no new item is begun.
///
/// # Errors
/// That of the first item in order that failed.
pub fn in_parallel<T: Sync, R: Send, E: Send>(
    items: &[T],
    jobs: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<R>, E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Vec<Mutex<Option<Result<R, E>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let (say, said) = mpsc::channel();
    let worker = |say: mpsc::Sender<()>| {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            let result = work(item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            *results[index].lock().expect("each result has one writer") = Some(result);
            let _ = say.send(());
        }
    };
    progress(0, items.len());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let say = say.clone();
            scope.spawn(|| worker(say));
        }
        drop(say);
        // Ends when the last thread has dropped its sender.
        for (done, ()) in said.iter().enumerate() {
            progress(done + 1, items.len());
        }
    });
    // Items are begun in order, so those that were not begun stand behind the one that failed.
    let results = results.into_iter().map_while(|result| result.into_inner().expect("no thread is left"));
    results.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn results_are_in_order_and_progress_counts_up_to_all() {
        for (count, jobs) in [(0, 4), (1, 0), (100, 1), (100, 3), (3, 100)] {
            let items: Vec<usize> = (0..count).collect();
            let seen = RefCell::new(Vec::new());
            let squares: Result<Vec<usize>, ()> = in_parallel(&items, jobs, |&item| Ok(item * item), &|done, total| {
                assert_eq!(total, count);
                seen.borrow_mut().push(done);
            });
            assert_eq!(squares.unwrap(), items.iter().map(|item| item * item).collect::<Vec<_>>());
            assert_eq!(seen.into_inner(), (0..=count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_in_order_ends_it() {
        let items: Vec<usize> = (0..1000).collect();
        let begun = AtomicUsize::new(0);
        let work = |&item: &usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            if item >= 10 { Err(item) } else { Ok(()) }
        };
        assert_eq!(in_parallel(&items, 4, work, &|_, _| ()), Err(10));
        assert!(begun.into_inner() < 20, "nothing is begun after an error");
    }
}
