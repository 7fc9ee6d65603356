//! The disk cache of compiled kernels: what is damaged, foreign or too much, and several that use it at once.

use refrain_device::CompiledKernel;
use refrain_gpu::loader::{CacheError, Cached, Digest, KernelCache};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

const LIMIT: u64 = 1 << 20;

fn key(index: usize) -> Digest {
    Digest::of(format!("kernel {index}").as_bytes())
}

/// A kernel of some size whose bytes depend on its number.
fn compiled(index: usize, bytes: usize) -> CompiledKernel {
    CompiledKernel { image: vec![index as u8; bytes], log: format!("kernel {index} compiled") }
}

fn open(folder: &Path) -> KernelCache {
    KernelCache::open(folder, LIMIT).unwrap()
}

/// The only file of a folder.
fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether this process may do what the permissions of a file forbid.
fn is_root(folder: &Path) -> bool {
    let file = folder.join("owner-test");
    fs::write(&file, "").unwrap();
    let changed = chown(&file, Some(65534), None).is_ok();
    fs::remove_file(file).unwrap();
    changed
}

#[test]
fn a_kernel_is_found_again_by_whoever_opens_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("new/cache");
    let cache = open(&folder);
    assert_eq!(cache.get(&key(1)), Cached::Missing);
    cache.put(&key(1), &compiled(1, 100)).unwrap();
    assert_eq!(open(&folder).get(&key(1)), Cached::Found(compiled(1, 100)));
    assert_eq!(open(&folder).get(&key(2)), Cached::Missing);
    assert_eq!((mode(&folder), mode(&only_file(&folder))), (0o700, 0o600));
    cache.put(&key(1), &compiled(2, 50)).unwrap();
    assert_eq!(cache.get(&key(1)), Cached::Found(compiled(2, 50)), "the later one counts");
    cache.remove(&key(1)).unwrap();
    assert_eq!(cache.get(&key(1)), Cached::Missing);
}

#[test]
fn the_folder_can_be_moved() {
    let parent = tempfile::tempdir().unwrap();
    let (old, new) = (parent.path().join("old"), parent.path().join("new"));
    let cache = open(&old);
    cache.put(&key(1), &compiled(1, 100)).unwrap();
    let bytes = fs::read(only_file(&old)).unwrap();
    let path = parent.path().to_str().unwrap().as_bytes();
    assert!(!bytes.windows(path.len()).any(|window| window == path), "an entry names its folder");
    fs::rename(&old, &new).unwrap();
    assert_eq!(open(&new).get(&key(1)), Cached::Found(compiled(1, 100)));
}

#[test]
fn a_damaged_entry_is_told_once_and_gone() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    cache.put(&key(1), &compiled(1, 3)).unwrap();
    let path = only_file(folder.path());
    let whole = fs::read(&path).unwrap();
    let damaged = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        set_mode(&path, 0o600);
        match cache.get(&key(1)) {
            Cached::Damaged(why) => assert!(why.starts_with(path.to_str().unwrap()), "{why}"),
            found => panic!("{found:?}"),
        }
        assert_eq!(cache.get(&key(1)), Cached::Missing);
    };
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0xff;
        damaged(&flipped);
        damaged(&whole[..at]);
    }
    cache.put(&key(1), &compiled(1, 3)).unwrap();
    assert_eq!(cache.get(&key(1)), Cached::Found(compiled(1, 3)));
}

#[test]
fn what_is_no_entry_of_this_user_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let refused = |what: &str| match cache.get(&key(1)) {
        Cached::Damaged(why) => assert!(why.contains(what), "{why}"),
        found => panic!("{found:?}"),
    };
    cache.put(&key(1), &compiled(1, 3)).unwrap();
    let path = only_file(folder.path());
    set_mode(&path, 0o622);
    refused("with mode 0622");
    cache.put(&key(1), &compiled(1, 3)).unwrap();
    fs::rename(&path, folder.path().join("elsewhere")).unwrap();
    symlink(folder.path().join("elsewhere"), &path).unwrap();
    refused("; it is removed");
    fs::create_dir(&path).unwrap();
    refused("it is not a file; remove it yourself, since that failed: ");
    fs::remove_dir(&path).unwrap();
    // The entry of one kernel under the name of another.
    fs::rename(folder.path().join("elsewhere"), &path).unwrap();
    cache.put(&key(2), &compiled(2, 3)).unwrap();
    fs::copy(folder.path().join(format!("{}.kernel", key(2))), &path).unwrap();
    refused("another kernel");
    // More than the whole cache may have is not even read.
    fs::File::create(&path).unwrap().set_len(LIMIT + 1).unwrap();
    set_mode(&path, 0o600);
    refused("that it may have");
    if is_root(folder.path()) {
        cache.put(&key(1), &compiled(1, 3)).unwrap();
        chown(&path, Some(65534), None).unwrap();
        refused("belongs to user 65534");
    }
}

#[test]
fn a_folder_that_others_can_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in [0o770, 0o707, 0o1777, 0o722] {
        set_mode(folder.path(), wrong);
        let error = KernelCache::open(folder.path(), LIMIT).unwrap_err();
        assert!(matches!(error, CacheError::Writable { mode, .. } if mode == wrong), "{error}");
        assert!(error.to_string().contains("chmod it to 0700"), "{error}");
    }
    // That others can read it harms nobody.
    set_mode(folder.path(), 0o755);
    open(folder.path());
}

#[test]
fn a_folder_of_another_user_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    // Root can give a folder away; for anybody else the root folder is one.
    let foreign = if is_root(folder.path()) {
        chown(folder.path(), Some(65534), None).unwrap();
        folder.path()
    } else {
        Path::new("/")
    };
    let error = KernelCache::open(foreign, LIMIT).unwrap_err();
    assert!(matches!(error, CacheError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("give a folder of your own"), "{error}");
}

#[test]
fn what_can_not_be_a_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below"), PathBuf::from("/proc/refrain")] {
        let error = KernelCache::open(&path, LIMIT).unwrap_err().to_string();
        assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_folder_that_takes_no_more_is_an_error_of_put_only() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(&folder.path().join("cache"));
    fs::remove_dir(cache.folder()).unwrap();
    assert!(cache.put(&key(1), &compiled(1, 3)).is_err());
    assert_eq!(cache.get(&key(1)), Cached::Missing);
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let cache = KernelCache::open(folder.path(), 10_000).unwrap();
    let file = |index| folder.path().join(format!("{}.kernel", key(index)));
    let used = |index, hours: u64| {
        let time = SystemTime::now() - Duration::from_secs(hours * 3600);
        fs::File::options().write(true).open(file(index)).unwrap().set_modified(time).unwrap();
    };
    for index in 0..4 {
        cache.put(&key(index), &compiled(index, 2000)).unwrap();
    }
    used(0, 40);
    used(1, 30);
    used(2, 20);
    used(3, 10);
    // Finding it is a use.
    assert!(matches!(cache.get(&key(0)), Cached::Found(_)));
    // What a killed process left behind, what one is still writing, and what is not the cache's.
    let old = folder.path().join(".old.partial");
    for name in [".old.partial", ".new.partial", "notes.txt"] {
        fs::write(folder.path().join(name), "half").unwrap();
    }
    let hours = SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().write(true).open(&old).unwrap().set_modified(hours).unwrap();
    cache.put(&key(4), &compiled(4, 4000)).unwrap();
    let left: Vec<usize> = (0..5).filter(|&index| file(index).exists()).collect();
    assert_eq!(left, [0, 3, 4], "1 and 2 were used longest ago");
    assert!(!old.exists() && folder.path().join(".new.partial").exists() && folder.path().join("notes.txt").exists());
}

/// Puts and gets the same few kernels over and over, in a cache that is too small for all of them. With `damage` it
/// also leaves half an entry now and then.
fn use_the_cache(folder: &Path, damage: bool) {
    let cache = KernelCache::open(folder, 6_000).unwrap();
    for round in 0..500 {
        let index = round * 7 % 10;
        match cache.get(&key(index)) {
            Cached::Found(found) => assert_eq!(found, compiled(index, 1000)),
            Cached::Missing => cache.put(&key(index), &compiled(index, 1000)).unwrap(),
            Cached::Damaged(why) => assert!(damage, "an entry was seen half written: {why}"),
        }
        if damage && round % 50 == 0 {
            let _ = fs::write(folder.join(format!("{}.kernel", key(index))), "half an entry");
        }
    }
}

#[test]
fn threads_share_a_folder() {
    for damage in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| use_the_cache(folder.path(), damage));
            }
        });
    }
}

const CHILD: &str = "REFRAIN_TEST_CACHE";

#[test]
fn processes_share_a_folder() {
    // This very test is run by other processes, which get the folder in a variable.
    if let Some(folder) = std::env::var_os(CHILD) {
        return use_the_cache(Path::new(&folder), false);
    }
    let folder = tempfile::tempdir().unwrap();
    let child = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "processes_share_a_folder"]).env(CHILD, folder.path());
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| child()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert!(fs::read_dir(folder.path()).unwrap().count() > 0);
}
