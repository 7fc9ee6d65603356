//! The header of a safetensors file: eight bytes of length, then JSON with the type, shape and place of every tensor.
//!
//! The checks are those of the format's description (huggingface/safetensors): the tensors cover the data without
//! overlap and without a hole, and each has as many bytes as its type and shape ask for.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::{Dtype, ModelError};

/// The format's own bound on the length of a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes in front of the header, its length.
const LENGTH_BYTES: usize = 8;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// The name in the file.
    pub name: String,
    /// The type as the file spells it, one of the format's.
    pub dtype: &'static str,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Where the elements lie, from the start of the file.
    pub range: Range<usize>,
}

impl StoredTensor {
    /// The type, if weights of it can be used.
    pub fn usable_dtype(&self) -> Option<Dtype> {
        match self.dtype {
            "F32" => Some(Dtype::F32),
            "F16" => Some(Dtype::F16),
            "BF16" => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

/// The types that the format knows, and the bits of an element.
const DTYPES: [(&str, usize); 22] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
    ("C64", 64),
];

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads and checks the header of a safetensors file of `file_len` bytes, of which `start` holds the beginning: at least
/// the header, or everything. `file` is for error messages. The tensors come in the order of their data.
pub fn parse_safetensors_header(file: &Path, start: &[u8], file_len: u64) -> Result<Vec<StoredTensor>, ModelError> {
    let broken = |problem: String| ModelError::Header { file: file.into(), problem };
    let Some((length, rest)) = start.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(broken(format!("the file has {file_len} bytes, even the length of a header takes {LENGTH_BYTES}")));
    };
    let length = u64::from_le_bytes(*length);
    let available = file_len.saturating_sub(LENGTH_BYTES as u64);
    if length > MAX_HEADER_BYTES {
        let problem = format!("it claims {length} bytes, the limit is {MAX_HEADER_BYTES}: is this a safetensors file?");
        return Err(broken(problem));
    }
    if length > available {
        return Err(broken(format!("it claims {length} bytes, but only {available} follow: the file is truncated")));
    }
    let Some(json) = rest.get(..length as usize) else {
        return Err(broken(format!("only {} of its {length} bytes were read", rest.len())));
    };
    let data_start = LENGTH_BYTES + length as usize;
    let data_len = available - length;

    let mut tensors = Vec::new();
    for (name, entry) in entries(file, json)? {
        let tensor_error = |problem| ModelError::Tensor { file: file.into(), tensor: name.clone(), problem };
        let (dtype, shape, range) = check(&entry, data_len).map_err(tensor_error)?;
        let range = data_start + range.start..data_start + range.end;
        tensors.push(StoredTensor { name, dtype, shape, range });
    }
    tensors.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    check_cover(file, &tensors, data_start, data_start + data_len as usize)?;
    Ok(tensors)
}

/// Checks one tensor by itself; returns its type, shape and place in the data.
fn check(entry: &Entry, data_len: u64) -> Result<(&'static str, Vec<usize>, Range<usize>), String> {
    let known = DTYPES.iter().find(|(name, _)| *name == entry.dtype);
    let Some(&(dtype, bits)) = known else {
        return Err(format!("type `{}` is not one of the format's", entry.dtype));
    };
    let (begin, end) = entry.data_offsets;
    if begin > end {
        return Err(format!("its data begins at {begin}, behind its end {end}"));
    }
    if end > data_len {
        return Err(format!("its data ends at {end}, but the file has {data_len} bytes of data: is it truncated?"));
    }
    let too_big = || format!("shape {:?} has more elements than fit in memory", entry.shape);
    let shape = entry.shape.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| too_big())?;
    let bits = shape.iter().try_fold(bits, |product, &n| product.checked_mul(n)).ok_or_else(too_big)?;
    if (end - begin).checked_mul(8) != Some(bits as u64) {
        let (found, needed) = (end - begin, bits.div_ceil(8));
        return Err(format!("it has {found} bytes of data, but type {dtype} and shape {shape:?} take {needed}"));
    }
    Ok((dtype, shape, begin as usize..end as usize))
}

/// Checks that the tensors, sorted by place, cover the data from `start` to `end` without overlap and hole.
fn check_cover(file: &Path, tensors: &[StoredTensor], start: usize, end: usize) -> Result<(), ModelError> {
    let mut covered = start;
    let mut previous = "";
    for tensor in tensors {
        let begin = tensor.range.start;
        if begin != covered {
            let problem = if begin < covered {
                format!("its data overlaps that of `{previous}` by {} bytes", covered - begin)
            } else {
                format!("{} bytes in front of its data belong to no tensor", begin - covered)
            };
            return Err(ModelError::Tensor { file: file.into(), tensor: tensor.name.clone(), problem });
        }
        covered = tensor.range.end;
        previous = &tensor.name;
    }
    if covered != end {
        let problem = format!("the last {} bytes of the file belong to no tensor", end - covered);
        return Err(ModelError::Header { file: file.into(), problem });
    }
    Ok(())
}

/// The entries of the header, with an error that names the tensor when one is malformed.
fn entries(file: &Path, json: &[u8]) -> Result<Vec<(String, Entry)>, ModelError> {
    let mut current = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let result = deserializer.deserialize_map(EntriesVisitor { current: &mut current });
    let result = result.and_then(|entries| deserializer.end().map(|()| entries));
    result.map_err(|error| match current {
        Some(tensor) => ModelError::Tensor { file: file.into(), tensor, problem: format!("broken entry: {error}") },
        None => ModelError::Header { file: file.into(), problem: error.to_string() },
    })
}

struct EntriesVisitor<'a> {
    /// The tensor whose entry is being read.
    current: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for EntriesVisitor<'_> {
    type Value = Vec<(String, Entry)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(de::Error::custom(format!("`{name}` appears twice")));
            }
            if name == "__metadata__" {
                map.next_value::<de::IgnoredAny>()?;
                continue;
            }
            *self.current = Some(name.clone());
            let entry = map.next_value()?;
            *self.current = None;
            entries.push((name, entry));
        }
        Ok(entries)
    }
}
