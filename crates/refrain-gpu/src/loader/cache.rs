//! Compiled kernels on disk, so that a start compiles only what is new.
//!
//! What lies here is executed, so the folder must be the user's own. Each entry is a file of its own: it appears whole
//! (a temporary file that is renamed), carries a checksum, and is thrown away when that is wrong. Nothing is locked:
//! processes that write the same entry at once write the same bytes, and one that vanishes while another looks is a
//! miss. No path is kept inside, so the folder can be moved and copied. Beside the entries lies what the last compiler for
//! each architecture said of itself, which is part of their keys: so they serve also where there is no compiler any more.

use super::private::{CacheError, PrivateFolder};
use super::{Digest, entry};
use refrain_device::CompiledKernel;
use std::io;
use std::path::Path;

/// Bytes that a cache may take when nothing else is said.
pub const DEFAULT_CACHE_BYTES: u64 = 256 << 20;

const EXTENSION: &str = "kernel";

/// More than any compiler says of itself.
const MOST_COMPILER_BYTES: u64 = 64 << 10;

/// What is known about a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Cached {
    /// The kernel.
    Found(CompiledKernel),
    /// Nothing.
    Missing,
    /// There is an entry that can't be used: what was wrong, which file, and whether it is gone now.
    Damaged(String),
}

/// A folder of compiled kernels.
#[derive(Debug)]
pub struct KernelCache {
    folder: PrivateFolder,
    limit: u64,
}

impl KernelCache {
    /// The cache in a folder, which is made (mode 0700) if need be. It takes at most `limit` bytes: what was used
    /// longest ago goes first.
    ///
    /// # Errors
    /// [`CacheError`] when the folder can't be had or others can write to it.
    pub fn open(folder: &Path, limit: u64) -> Result<KernelCache, CacheError> {
        Ok(KernelCache { folder: PrivateFolder::open(folder)?, limit })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The kernel of a key.
    pub fn get(&self, key: &Digest) -> Cached {
        let name = file_name(key);
        let decode = |bytes: Vec<u8>| entry::decode(key, &bytes).map_err(str::to_owned);
        match self.folder.read(&name, self.limit).and_then(|found| found.map(decode).transpose()) {
            Ok(found) => found.map_or(Cached::Missing, Cached::Found),
            Err(why) => {
                let file = self.folder().join(&name).display().to_string();
                Cached::Damaged(match self.folder.remove(&name) {
                    Ok(()) => format!("{file}: {why}; it is removed"),
                    Err(error) => format!("{file}: {why}; remove it yourself, since that failed: {error}"),
                })
            }
        }
    }

    /// Keeps a kernel, and makes room for it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn put(&self, key: &Digest, compiled: &CompiledKernel) -> io::Result<()> {
        self.folder.write(&file_name(key), &entry::encode(key, compiled))?;
        self.folder.trim(EXTENSION, self.limit)
    }

    /// The compiler that last compiled for an architecture, as it described itself: entries of its kernels can be found
    /// where it is gone. `None` where nobody has noted one, or the note can't be trusted.
    pub fn compiler(&self, arch: &str) -> Option<String> {
        let bytes = self.folder.read(&compiler_file(arch), MOST_COMPILER_BYTES).ok()??;
        String::from_utf8(bytes).ok()
    }

    /// Notes the compiler for an architecture.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn note_compiler(&self, arch: &str, described: &str) -> io::Result<()> {
        if self.compiler(arch).as_deref() == Some(described) {
            return Ok(());
        }
        self.folder.write(&compiler_file(arch), described.as_bytes())
    }

    /// Throws the entry of a key away, if there is one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self, key: &Digest) -> io::Result<()> {
        self.folder.remove(&file_name(key))
    }
}

fn compiler_file(arch: &str) -> String {
    format!("{arch}.compiler")
}

fn file_name(key: &Digest) -> String {
    format!("{key}.{EXTENSION}")
}
