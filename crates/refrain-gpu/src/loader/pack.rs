//! Kernels that were compiled before, all those of one architecture in one file, for machines without a compiler.
//!
//! ```text
//! magic               8 bytes
//! checksum           32 bytes, SHA-256 of the index
//! index length        8 bytes, little-endian
//! index               architecture and compiler (each a length and UTF-8), then for each kernel
//!                     its source's key (32), offset in the file (8), length (8) and SHA-256 of its image (32)
//! images              one behind the other
//! ```
//!
//! The index is read when the pack is opened, an image when it is wanted.

use super::Digest;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Names the format; another one means another format.
const MAGIC: &[u8; 8] = b"RFNPACK1";
const HEADER: u64 = 8 + 32 + 8;
const INDEX_ENTRY: usize = 32 + 8 + 8 + 32;

/// A pack can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct PackError {
    /// The pack.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

struct Image {
    offset: u64,
    bytes: usize,
    checksum: Digest,
}

/// An open pack.
pub struct Pack {
    path: PathBuf,
    file: File,
    /// Who compiled it: [`refrain_device::Compiler::describe`].
    compiler: String,
    images: HashMap<Digest, Image>,
}

impl Pack {
    /// The file name of an architecture's pack.
    pub fn file_name(arch: &str) -> String {
        format!("{arch}.kernels")
    }

    /// Opens the pack of an architecture in a folder; `None` when there is none.
    ///
    /// # Errors
    /// [`PackError`] when it is damaged, of another version, or for another architecture.
    pub fn open(folder: &Path, arch: &str) -> Result<Option<Pack>, PackError> {
        let path = folder.join(Pack::file_name(arch));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PackError { path, why: error.to_string() }),
        };
        match read_index(&file, arch) {
            Ok((compiler, images)) => Ok(Some(Pack { path, file, compiler, images })),
            Err(why) => Err(PackError { path, why }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kernels in it.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Who compiled it.
    pub fn compiler(&self) -> &str {
        &self.compiler
    }

    /// The image of a source; `None` when it is not in this pack.
    ///
    /// # Errors
    /// [`PackError`] when it can't be read or its checksum is wrong.
    pub fn image(&self, source: &Digest) -> Result<Option<Vec<u8>>, PackError> {
        let Some(image) = self.images.get(source) else { return Ok(None) };
        let error = |why: String| PackError { path: self.path.clone(), why };
        let mut bytes = vec![0; image.bytes];
        self.file.read_exact_at(&mut bytes, image.offset).map_err(|failed| error(failed.to_string()))?;
        if Digest::of(&bytes) != image.checksum {
            return Err(error(format!("the checksum of kernel {source} is wrong: the file is damaged")));
        }
        Ok(Some(bytes))
    }
}

/// Writes a pack: at once or not at all. Equal kernels give equal files.
///
/// # Errors
/// When the system refuses.
pub fn write_pack(
    folder: &Path,
    arch: &str,
    compiler: &str,
    images: &BTreeMap<Digest, Vec<u8>>,
) -> io::Result<PathBuf> {
    let texts = [arch, compiler];
    let index_bytes = texts.iter().map(|text| 8 + text.len()).sum::<usize>() + images.len() * INDEX_ENTRY;
    let mut index = Vec::with_capacity(index_bytes);
    for text in texts {
        index.extend_from_slice(&(text.len() as u64).to_le_bytes());
        index.extend_from_slice(text.as_bytes());
    }
    let mut offset = HEADER + index_bytes as u64;
    for (key, image) in images {
        index.extend_from_slice(&key.0);
        index.extend_from_slice(&offset.to_le_bytes());
        index.extend_from_slice(&(image.len() as u64).to_le_bytes());
        index.extend_from_slice(&Digest::of(image).0);
        offset += image.len() as u64;
    }
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&[MAGIC.as_slice(), &Digest::of(&index).0, &(index.len() as u64).to_le_bytes(), &index].concat())?;
    for image in images.values() {
        file.write_all(image)?;
    }
    // Temporary files are the user's alone; a pack is for everybody.
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    let path = folder.join(Pack::file_name(arch));
    file.persist(&path).map_err(|error| error.error)?;
    Ok(path)
}

fn read_index(file: &File, wanted_arch: &str) -> Result<(String, HashMap<Digest, Image>), String> {
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    let mut header = [0; HEADER as usize];
    if size < HEADER {
        return Err("it ends within its header".to_owned());
    }
    file.read_exact_at(&mut header, 0).map_err(|error| error.to_string())?;
    let mut header = Bytes(&header);
    if header.take(8)? != MAGIC {
        return Err("it is no pack of this version".to_owned());
    }
    let checksum = header.digest()?;
    let index_bytes = header.number()?;
    if index_bytes > size - HEADER {
        return Err("it ends within its index".to_owned());
    }
    let mut index = vec![0; index_bytes as usize];
    file.read_exact_at(&mut index, HEADER).map_err(|error| error.to_string())?;
    if Digest::of(&index) != checksum {
        return Err("the checksum of its index is wrong".to_owned());
    }
    let mut index = Bytes(&index);
    let (arch, compiler) = (index.text()?, index.text()?);
    if arch != wanted_arch {
        return Err(format!("it is for {arch}, not for {wanted_arch}"));
    }
    let mut images = HashMap::new();
    while !index.0.is_empty() {
        let (key, offset, bytes, checksum) = (index.digest()?, index.number()?, index.number()?, index.digest()?);
        if offset.checked_add(bytes).is_none_or(|end| end > size) {
            return Err(format!("it ends within kernel {key}"));
        }
        images.insert(key, Image { offset, bytes: bytes as usize, checksum });
    }
    Ok((compiler, images))
}

/// What is left to read of an index.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("its index ends early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn digest(&mut self) -> Result<Digest, String> {
        Ok(Digest(self.take(32)?.try_into().expect("thirty-two bytes")))
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.number()?;
        let bytes = self.take(usize::try_from(length).map_err(|_| "its index is too long")?)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "its index is damaged".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> BTreeMap<Digest, Vec<u8>> {
        [("a", b"first".as_slice()), ("b", b""), ("c", b"third")]
            .map(|(key, image)| (Digest::of(key.as_bytes()), image.to_vec()))
            .into()
    }

    /// All images of a pack, or the first thing that is wrong.
    fn read(folder: &Path) -> Result<BTreeMap<Digest, Vec<u8>>, PackError> {
        let pack = Pack::open(folder, "gfx906")?.expect("it is there");
        let image = |key: &Digest| Ok((*key, pack.image(key)?.expect("it is in the index")));
        pack.images.keys().map(image).collect()
    }

    #[test]
    fn what_was_written_is_found_and_the_rest_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Pack::open(folder.path(), "gfx906").unwrap().is_none());
        let path = write_pack(folder.path(), "gfx906", "clang 19", &images()).unwrap();
        assert_eq!(read(folder.path()).unwrap(), images());
        let pack = Pack::open(folder.path(), "gfx906").unwrap().unwrap();
        assert_eq!((pack.compiler(), pack.len(), pack.is_empty()), ("clang 19", 3, false));
        assert!(pack.image(&Digest::of(b"unknown")).unwrap().is_none());
        let first = std::fs::read(&path).unwrap();
        write_pack(folder.path(), "gfx906", "clang 19", &images()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first, "the same kernels give the same file");
        // The pack that is still open reads the file that it has opened.
        assert_eq!(pack.image(&Digest::of(b"a")).unwrap().unwrap(), b"first");
    }

    #[test]
    fn a_renamed_pack_is_not_taken_for_another_architecture() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_pack(folder.path(), "sm_80", "nvrtc", &images()).unwrap();
        std::fs::rename(path, folder.path().join(Pack::file_name("gfx906"))).unwrap();
        let why = Pack::open(folder.path(), "gfx906").err().unwrap().to_string();
        assert!(why.ends_with("gfx906.kernels: it is for sm_80, not for gfx906"), "{why}");
    }

    #[test]
    fn each_flipped_byte_and_each_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_pack(folder.path(), "gfx906", "clang 19", &images()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            std::fs::write(&path, &flipped).unwrap();
            assert!(read(folder.path()).is_err(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read(folder.path()).is_err(), "cut after {at} bytes");
        }
    }
}
