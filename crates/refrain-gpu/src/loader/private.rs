//! A folder that only this user can write to, with files that appear whole or not at all.
//!
//! Nothing is locked: two processes that write a file at once write the same bytes, and one that vanishes while another
//! looks is a miss.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

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

/// A folder of this user's own.
#[derive(Debug)]
pub struct PrivateFolder {
    path: PathBuf,
    user: u32,
}

impl PrivateFolder {
    /// The folder, which is made (mode 0700) if need be.
    ///
    /// # Errors
    /// [`CacheError`] when it can't be had or others can write to it.
    pub fn open(folder: &Path) -> Result<PrivateFolder, CacheError> {
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
        Ok(PrivateFolder { path, user })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of at most `most` bytes, and notes that it was used; `None` when there is none.
    ///
    /// # Errors
    /// A sentence that says why the file can't be trusted or read.
    pub fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, String> {
        // Neither a link nor a pipe is opened, and owner and mode are looked at again at the open file: the folder may
        // have been exchanged since it was checked.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(self.path.join(name)) {
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
        if found.len() > most {
            return Err(format!("it has {} bytes, more than the {most} that it may have", found.len()));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        used_now(&file);
        Ok(Some(bytes))
    }

    /// Writes a file, or replaces it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Mode 0600. Not synchronised: what a power cut leaves half written, a checksum tells.
        let mut file = tempfile::Builder::new().suffix(PARTIAL).tempfile_in(&self.path)?;
        file.write_all(bytes)?;
        file.persist(self.path.join(name)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Throws a file away.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    /// Removes the files with this extension that were used longest ago until the rest is within `limit` bytes, and
    /// partial files that nobody will finish.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn trim(&self, extension: &str, limit: u64) -> io::Result<()> {
        let now = SystemTime::now();
        let mut entries: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        for found in fs::read_dir(&self.path)? {
            let path = found?.path();
            // Another process may have removed it.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let used = metadata.modified()?;
            let partial = path.to_string_lossy().ends_with(PARTIAL);
            if partial && now.duration_since(used).is_ok_and(|age| age > PARTIAL_AGE) {
                let _ = fs::remove_file(&path);
            } else if path.extension().is_some_and(|own| own == extension) {
                entries.push((used, path, metadata.len()));
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(.., bytes)| bytes).sum();
        for (_, path, bytes) in entries {
            if total <= limit {
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
