//! How many threads are worth using.

use std::collections::HashSet;

/// Threads for the compute pool when nobody says otherwise: the processors this process may run on, counting those that
/// share a core once, because they would share its arithmetic units too.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    allowed.min(cores().unwrap_or(allowed)).max(1)
}

/// Distinct cores among the processors of the system.
fn cores() -> Option<usize> {
    let mut siblings = HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()? {
        let path = entry.ok()?.path().join("topology/thread_siblings_list");
        if let Ok(list) = std::fs::read_to_string(path) {
            siblings.insert(list);
        }
    }
    if siblings.is_empty() { None } else { Some(siblings.len()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_at_least_one_thread_and_no_more_than_processors() {
        let threads = super::default_threads();
        assert!(threads >= 1 && threads <= std::thread::available_parallelism().unwrap().get());
    }
}
