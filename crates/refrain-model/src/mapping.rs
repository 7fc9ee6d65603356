//! Files mapped into memory: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::ModelError;

/// A file mapped read-only.
#[derive(Debug)]
pub(crate) struct Mapping(Mmap);

impl Mapping {
    /// Maps a whole file.
    pub(crate) fn open(path: &Path) -> Result<Mapping, ModelError> {
        let error = |action| move |source| ModelError::Io { path: path.into(), action, source };
        let metadata = std::fs::metadata(path).map_err(error("open"))?;
        if !metadata.is_file() {
            // Opening a pipe would wait for ever.
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(error("map")(source));
        }
        let file = File::open(path).map_err(error("open"))?;
        // SAFETY: the mapping is private and read-only, so nothing in this process changes it. Another process that
        // rewrites the file in place could change weights under us, or end us with SIGBUS by truncating it: the same
        // holds for every engine that maps weights, and the documentation of `Checkpoint` says so.
        let map = unsafe { Mmap::map(&file) }.map_err(error("map"))?;
        Ok(Mapping(map))
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Lets the system take back the memory of the pages that lie wholly inside `range`; they are read from the file
    /// again if they are touched again.
    pub(crate) fn release(&self, range: Range<usize>) {
        // The smallest page in use. Where pages are larger, the call takes those at the edges too, which costs no more
        // than reading them again.
        const PAGE: usize = 4096;
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end.min(self.0.len()) / PAGE * PAGE;
        if start < end {
            // SAFETY: the mapping is private, backed by a file and never written, so a dropped page holds nothing that
            // isn't in the file, and reading it again gives the same bytes.
            let result = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
            if let Err(error) = result {
                tracing::debug!("madvise(MADV_DONTNEED) refused: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let content: Vec<u8> = (0..300_000u32).map(|i| (i / 1000) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mapping = Mapping::open(&path).unwrap();
        assert_eq!(mapping.bytes(), content);
        mapping.release(1..299_999);
        mapping.release(0..usize::MAX / 2);
        mapping.release(5..6);
        assert_eq!(mapping.bytes(), content);
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Mapping::open(folder.path()), Err(ModelError::Io { action: "map", .. })));
        assert!(matches!(Mapping::open(&folder.path().join("none")), Err(ModelError::Io { action: "open", .. })));
        let empty = folder.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        assert!(Mapping::open(&empty).unwrap().bytes().is_empty());
    }
}
