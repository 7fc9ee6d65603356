//! Compiled kernels on disk, so that a start compiles only what is new.
//!
//! What lies here is executed, so the folder must be the user's own. Each entry is a file of its own: it appears whole
//! (a temporary file that is renamed), carries a checksum, and is thrown away when that is wrong. Nothing is locked:
//! processes that write the same entry at once write the same bytes, and one that vanishes while another looks is a
//! miss. No path is kept inside, so the folder can be moved and copied.

use super::{Digest, entry};
use refrain_device::CompiledKernel;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Bytes that a cache may take when nothing else is said.
pub const DEFAULT_CACHE_BYTES: u64 = 256 << 20;

const EXTENSION: &str = "kernel";
const PARTIAL: &str = ".partial";

/// A partial file older than this was left behind by a process that was ended.
const PARTIAL_AGE: Duration = Duration::from_secs(3600);

/// Why a folder can't be the cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else has its name.
    #[error("{} is not a folder; give another one or remove it", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else could put code into it.
    #[error(
        "{} belongs to user {owner}, and this process is user {user}'s: code in it can't be trusted; give a folder of \
         your own",
        path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
        /// The process's user's number.
        user: u32,
    },
    /// Others could put code into it.
    #[error("{} can be written by others (mode {mode:04o}): code in it can't be trusted; chmod it to 0700", path.display())]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// What is known about a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Cached {
    /// The kernel.
    Found(CompiledKernel),
    /// Nothing.
    Missing,
    /// There was an entry that can't be used and is gone now: which file, and what was wrong.
    Damaged(String),
}

/// A folder of compiled kernels.
#[derive(Debug)]
pub struct KernelCache {
    folder: PathBuf,
    limit: u64,
    user: u32,
}

impl KernelCache {
    /// The cache in a folder, which is made (mode 0700) if need be. It takes at most `limit` bytes: what was used
    /// longest ago goes first.
    ///
    /// # Errors
    /// [`CacheError`] when the folder can't be had or others can write to it.
    pub fn open(folder: &Path, limit: u64) -> Result<KernelCache, CacheError> {
        let path = folder.to_owned();
        let io = |source| CacheError::Io { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).or_else(|error| match error.kind() {
            ErrorKind::AlreadyExists => Ok(()),
            _ => Err(io(error)),
        })?;
        let found = fs::metadata(folder).map_err(io)?;
        // SAFETY: it reads the process's user and nothing else, and always succeeds.
        let user = unsafe { libc::geteuid() };
        let mode = found.mode() & 0o7777;
        if !found.is_dir() {
            return Err(CacheError::NotAFolder { path });
        }
        if found.uid() != user {
            return Err(CacheError::Foreign { path, owner: found.uid(), user });
        }
        if mode & 0o022 != 0 {
            return Err(CacheError::Writable { path, mode });
        }
        Ok(KernelCache { folder: path, limit, user })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The kernel of a key.
    pub fn get(&self, key: &Digest) -> Cached {
        let path = self.path(key);
        match self.read(key, &path) {
            Ok(found) => found.map_or(Cached::Missing, Cached::Found),
            Err(why) => {
                let _ = fs::remove_file(&path);
                Cached::Damaged(format!("{}: {why}", path.display()))
            }
        }
    }

    /// Keeps a kernel, and makes room for it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn put(&self, key: &Digest, compiled: &CompiledKernel) -> io::Result<()> {
        // Mode 0600. Not synchronised: what a power cut leaves half written, the checksum tells.
        let mut file = tempfile::Builder::new().suffix(PARTIAL).tempfile_in(&self.folder)?;
        file.write_all(&entry::encode(key, compiled))?;
        file.persist(self.path(key)).map_err(|error| error.error)?;
        self.trim()
    }

    /// Throws the entry of a key away, if there is one.
    pub fn remove(&self, key: &Digest) {
        let _ = fs::remove_file(self.path(key));
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.folder.join(key.to_string()).with_extension(EXTENSION)
    }

    fn read(&self, key: &Digest, path: &Path) -> Result<Option<CompiledKernel>, String> {
        // Neither a link nor a pipe is opened, and owner and mode are looked at again at the open file: the folder may
        // have been exchanged since it was checked.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let found = file.metadata().map_err(|error| error.to_string())?;
        if !found.is_file() {
            return Err("it is not a file".to_owned());
        }
        if found.uid() != self.user || found.mode() & 0o022 != 0 {
            return Err(format!("it belongs to user {} with mode {:04o}", found.uid(), found.mode() & 0o7777));
        }
        if found.len() > self.limit {
            return Err(format!("it has {} bytes, more than the whole cache may", found.len()));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let compiled = entry::decode(key, &bytes)?;
        used_now(&file);
        Ok(Some(compiled))
    }

    /// Removes what was used longest ago until the rest is within the limit, and partial files that nobody will finish.
    fn trim(&self) -> io::Result<()> {
        let now = SystemTime::now();
        let mut entries: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        for found in fs::read_dir(&self.folder)? {
            let path = found?.path();
            // Another process may have removed it.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let used = metadata.modified()?;
            let partial = path.to_string_lossy().ends_with(PARTIAL);
            if partial && now.duration_since(used).is_ok_and(|age| age > PARTIAL_AGE) {
                let _ = fs::remove_file(&path);
            } else if path.extension().is_some_and(|extension| extension == EXTENSION) {
                entries.push((used, path, metadata.len()));
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(.., bytes)| bytes).sum();
        for (_, path, bytes) in entries {
            if total <= self.limit {
                break;
            }
            let _ = fs::remove_file(path);
            total -= bytes;
        }
        Ok(())
    }
}

/// Notes in the file's time of modification that it was used. It only says what to remove first, so it may fail.
fn used_now(file: &File) {
    let _ = file.set_modified(SystemTime::now());
}
