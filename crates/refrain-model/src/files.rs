//! The files of a model: in a folder, or inside the binary.

use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::mapping::Mapping;
use crate::{ModelError, embedded};

/// Far above any real config.json, tokenizer.json or index.
const MAX_TEXT_BYTES: u64 = 512 << 20;

/// Where the files are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ModelFiles<'a> {
    /// A folder.
    Folder(&'a Path),
    /// The model inside the binary.
    Embedded,
}

/// The bytes of a file of weights.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(Mapping),
    Static(&'static [u8]),
}

impl ModelFiles<'_> {
    /// The path of a file, for error messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            ModelFiles::Folder(folder) => folder.join(name),
            ModelFiles::Embedded => Path::new(embedded::NAME).join(name),
        }
    }

    /// The folder, for error messages.
    pub(crate) fn folder(&self) -> PathBuf {
        match self {
            ModelFiles::Folder(folder) => folder.to_path_buf(),
            ModelFiles::Embedded => PathBuf::from(embedded::NAME),
        }
    }

    /// Whether there is such a file.
    pub(crate) fn exists(&self, name: &str) -> bool {
        match self {
            ModelFiles::Folder(folder) => folder.join(name).exists(),
            ModelFiles::Embedded => embedded::file(name).is_some(),
        }
    }

    /// The text of a file; `None`: there is no such file.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, ModelError> {
        let bytes = match self {
            ModelFiles::Embedded => embedded::file(name).map(<[u8]>::to_vec),
            ModelFiles::Folder(folder) => read(&folder.join(name))?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(ModelError::Utf8 { file: self.path(name), offset: error.utf8_error().valid_up_to() }),
        }
    }

    /// The text of a file that must be there.
    pub(crate) fn needed_text(&self, name: &str) -> Result<String, ModelError> {
        self.text(name)?.ok_or_else(|| ModelError::Missing { folder: self.folder(), what: format!("has no {name}") })
    }

    /// The bytes of a file of weights, mapped rather than read.
    pub(crate) fn weights(&self, name: &str) -> Result<FileBytes, ModelError> {
        match self {
            ModelFiles::Folder(folder) => Ok(FileBytes::Mapped(Mapping::open(&folder.join(name))?)),
            ModelFiles::Embedded => match embedded::file(name) {
                Some(bytes) => Ok(FileBytes::Static(bytes)),
                None => Err(ModelError::Missing { folder: self.folder(), what: format!("has no {name}") }),
            },
        }
    }
}

impl FileBytes {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(mapping) => mapping.bytes(),
            FileBytes::Static(bytes) => bytes,
        }
    }

    /// See [`Mapping::release`]; bytes of the binary itself stay.
    pub(crate) fn release(&self, range: Range<usize>) {
        if let FileBytes::Mapped(mapping) = self {
            mapping.release(range);
        }
    }
}

/// Reads a whole file; `None`: there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    let error = |source| ModelError::Io { path: path.into(), action: "read", source };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    if !metadata.is_file() {
        return Err(error(std::io::Error::new(ErrorKind::InvalidInput, "not a regular file")));
    }
    if metadata.len() > MAX_TEXT_BYTES {
        return Err(ModelError::TooLarge { file: path.into(), bytes: metadata.len(), limit: MAX_TEXT_BYTES });
    }
    fs::read(path).map(Some).map_err(error)
}
