//! How much memory the process may use: what the machine has left, less what control groups and rlimits forbid.

use std::path::{Path, PathBuf};

/// Memory that the process can still take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsableMemory {
    /// Bytes.
    pub bytes: u64,
    /// What sets the limit, for reports.
    pub limited_by: &'static str,
}

/// The least of what the machine has available and of what every limit on the process leaves.
pub fn usable_memory() -> UsableMemory {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let mut found = vec![];
    found.extend(machine(&read));
    found.extend(control_groups(&read));
    found.extend(address_space(&read));
    found.into_iter().min_by_key(|found| found.bytes).unwrap_or_else(physical)
}

/// Reads a file, or nothing; the tests have their own.
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// What the kernel says that new processes can get without swapping.
fn machine(read: Read<'_>) -> Option<UsableMemory> {
    let kilobytes = field(&read(Path::new("/proc/meminfo"))?, "MemAvailable:")?;
    Some(UsableMemory { bytes: kilobytes * 1024, limited_by: "memory available on the machine" })
}

/// The tightest control group that the process is in, of either version.
fn control_groups(read: Read<'_>) -> Option<UsableMemory> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let mut tightest: Option<UsableMemory> = None;
    for version in [&V2, &V1] {
        for mount in mounts.lines().filter_map(|line| version.mount(line)) {
            let Some(group) = groups.lines().find_map(|line| version.group(line)) else { continue };
            for folder in folders(&mount, group) {
                if let Some(bytes) = version.headroom(read, &folder)
                    && tightest.is_none_or(|found| bytes < found.bytes)
                {
                    tightest = Some(UsableMemory { bytes, limited_by: version.name });
                }
            }
        }
    }
    tightest
}

/// File names of one version of the control groups' memory controller.
struct Version {
    name: &'static str,
    file_system: &'static str,
    controller: &'static str,
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

const V2: Version = Version {
    name: "control group limit (memory.max)",
    file_system: "cgroup2",
    controller: "",
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file",
};

const V1: Version = Version {
    name: "control group limit (memory.limit_in_bytes)",
    file_system: "cgroup",
    controller: "memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// Where a hierarchy is mounted, and which of its groups is the root of what is seen there.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    root: PathBuf,
    point: PathBuf,
}

impl Version {
    /// Reads a line of `/proc/self/mountinfo`: `id parent device root point options... - type source options`.
    fn mount(&self, line: &str) -> Option<Mount> {
        let (front, back) = line.split_once(" - ")?;
        let mut back = back.split(' ');
        let has_controller = |options: &str| options.split(',').any(|option| option == self.controller);
        if back.next()? != self.file_system || !(self.controller.is_empty() || has_controller(back.nth(1)?)) {
            return None;
        }
        let mut front = front.split(' ').skip(3);
        Some(Mount { root: front.next()?.into(), point: front.next()?.into() })
    }

    /// Reads a line of `/proc/self/cgroup`: `id:controllers:path`.
    fn group<'a>(&self, line: &'a str) -> Option<&'a Path> {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        let path = parts.next()?;
        controllers.split(',').any(|controller| controller == self.controller).then_some(Path::new(path))
    }

    /// What the group in `folder` may still take; nothing if it has no limit.
    fn headroom(&self, read: Read<'_>, folder: &Path) -> Option<u64> {
        // "max" isn't a number; version 1 writes "no limit" as a number near 2^63.
        let limit: u64 = read(&folder.join(self.limit))?.trim().parse().ok().filter(|&limit| limit < 1 << 60)?;
        let usage: u64 = read(&folder.join(self.usage))?.trim().parse().ok()?;
        // Page cache counts as used, but the kernel drops it before it runs out.
        let cache = read(&folder.join("memory.stat")).and_then(|stat| field(&stat, self.reclaimable)).unwrap_or(0);
        Some(limit.saturating_sub(usage.saturating_sub(cache)))
    }
}

/// The folder of a group and those of its parents. In a container the group's path may lead outside of what is mounted:
/// then what is mounted is the container's own group.
fn folders(mount: &Mount, group: &Path) -> Vec<PathBuf> {
    let inside = group.strip_prefix(&mount.root).unwrap_or(Path::new(""));
    if inside.components().any(|part| part == std::path::Component::ParentDir) {
        return vec![mount.point.clone()];
    }
    inside.ancestors().map(|part| mount.point.join(part)).collect()
}

/// What `ulimit -v` leaves.
fn address_space(read: Read<'_>) -> Option<UsableMemory> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    if unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) } != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    let pages: u64 = read(Path::new("/proc/self/statm"))?.split(' ').next()?.parse().ok()?;
    Some(UsableMemory {
        bytes: limit.rlim_cur.saturating_sub(pages * page_bytes()),
        limited_by: "address space limit (ulimit -v)",
    })
}

/// All memory of the machine, where nothing better is known.
fn physical() -> UsableMemory {
    // SAFETY: no memory is passed.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    UsableMemory { bytes: pages.max(0) as u64 * page_bytes(), limited_by: "memory of the machine" }
}

fn page_bytes() -> u64 {
    // SAFETY: no memory is passed.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(0) as u64
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn control_groups_of(files: &[(&str, &str)]) -> Option<(u64, &'static str)> {
        let read = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, content)| (*content).to_owned())
        };
        control_groups(&read).map(|found| (found.bytes, found.limited_by))
    }

    #[test]
    fn this_machine_has_memory() {
        let found = usable_memory();
        assert!(found.bytes > 1 << 20, "{found:?}");
    }

    #[test]
    fn available_memory_is_in_kilobytes() {
        let read = |_: &Path| Some("MemTotal: 99 kB\nMemAvailable:    2048 kB\n".to_owned());
        assert_eq!(machine(&read).unwrap().bytes, 2 << 20);
    }

    #[test]
    fn the_tightest_parent_counts_and_page_cache_does_not() {
        let files = [
            ("/proc/self/cgroup", "0::/system.slice/refrain.service\n"),
            ("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n"),
            ("/sys/fs/cgroup/system.slice/refrain.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/refrain.service/memory.current", "1\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "8589934592\n"),
            ("/sys/fs/cgroup/system.slice/memory.current", "6442450944\n"),
            ("/sys/fs/cgroup/system.slice/memory.stat", "anon 5\nactive_file 7\ninactive_file 1073741824\n"),
        ];
        assert_eq!(control_groups_of(&files), Some((3 * GIB, "control group limit (memory.max)")));
    }

    #[test]
    fn version_1_has_its_own_names() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let mut files = vec![
            ("/proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n0::/\n"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4294967296\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"),
        ];
        assert_eq!(control_groups_of(&files), Some((3 * GIB, "control group limit (memory.limit_in_bytes)")));
        files[2].1 = "9223372036854771712\n";
        assert_eq!(control_groups_of(&files), None, "no limit");
    }

    #[test]
    fn a_group_outside_of_the_mount_is_the_mount_itself() {
        let mount = Mount { root: "/pod/a".into(), point: "/sys/fs/cgroup".into() };
        assert_eq!(folders(&mount, Path::new("/elsewhere")), [PathBuf::from("/sys/fs/cgroup")]);
        assert_eq!(folders(&mount, Path::new("/pod/a/../b")), [PathBuf::from("/sys/fs/cgroup")]);
        let inner = folders(&mount, Path::new("/pod/a/b"));
        assert_eq!(inner, [PathBuf::from("/sys/fs/cgroup/b"), PathBuf::from("/sys/fs/cgroup")]);
    }

    #[test]
    fn a_group_over_its_limit_has_nothing_left() {
        let files = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("/sys/fs/cgroup/memory.max", "1000\n"),
            ("/sys/fs/cgroup/memory.current", "2000\n"),
        ];
        assert_eq!(control_groups_of(&files), Some((0, "control group limit (memory.max)")));
    }

    #[test]
    fn unreadable_files_are_no_limit() {
        assert_eq!(control_groups_of(&[]), None);
        let files = [("/proc/self/cgroup", "nonsense"), ("/proc/self/mountinfo", "nonsense - \n")];
        assert_eq!(control_groups_of(&files), None);
    }
}
