//! The way through an ELF file to the note with the metadata.

use super::CodeObjectError;

/// `EM_AMDGPU`.
const MACHINE: u16 = 224;
/// `PT_NOTE`.
const NOTE_SEGMENT: u32 = 4;
/// `NT_AMDGPU_METADATA`, of the owner `AMDGPU`.
const METADATA: u32 = 32;
const OWNER: &[u8] = b"AMDGPU\0";

/// The MessagePack document with the metadata.
///
/// # Errors
/// [`CodeObjectError`].
pub(super) fn metadata(image: &[u8]) -> Result<&[u8], CodeObjectError> {
    let other = |found: &str| CodeObjectError::Other { found: found.to_owned() };
    let magic = image.get(..16).ok_or_else(|| other("it is shorter than an ELF header"))?;
    if magic.starts_with(b"__CLANG_OFFLOAD_") {
        return Err(other("it is a bundle of code objects"));
    }
    // 64 bits, little endian.
    if magic[..6] != *b"\x7fELF\x02\x01" {
        return Err(other("it is no ELF file of 64 bits"));
    }
    let machine = u16_at(image, 18, "the ELF header")?;
    if machine != MACHINE {
        return Err(other(&format!("it is an ELF file for machine {machine}, not {MACHINE}")));
    }
    let table = position(u64_at(image, 32, "the ELF header")?);
    let size = usize::from(u16_at(image, 54, "the ELF header")?);
    for index in 0..usize::from(u16_at(image, 56, "the ELF header")?) {
        let header = table.saturating_add(size.saturating_mul(index));
        let field = |offset: usize| header.saturating_add(offset);
        if u32_at(image, field(0), "a program header")? != NOTE_SEGMENT {
            continue;
        }
        let start = position(u64_at(image, field(8), "a program header")?);
        let length = position(u64_at(image, field(32), "a program header")?);
        if let Some(found) = note(bytes_at(image, start, length, "the notes")?)? {
            return Ok(found);
        }
    }
    Err(CodeObjectError::Metadata { what: "there is no note with it".to_owned() })
}

/// Walks over notes: three words (length of the owner's name, length of the contents, kind), then name and contents, each
/// padded to four bytes.
fn note(notes: &[u8]) -> Result<Option<&[u8]>, CodeObjectError> {
    let mut at = 0_usize;
    while at < notes.len() {
        let word = |index: usize| u32_at(notes, at.saturating_add(4 * index), "a note");
        let (name, length, kind) = (word(0)? as usize, word(1)? as usize, word(2)?);
        let start = at.saturating_add(12);
        let owner = bytes_at(notes, start, name, "a note's name")?;
        let start = start.saturating_add(name.next_multiple_of(4));
        let contents = bytes_at(notes, start, length, "a note's contents")?;
        if kind == METADATA && owner == OWNER {
            return Ok(Some(contents));
        }
        at = start.saturating_add(length.next_multiple_of(4));
    }
    Ok(None)
}

/// An offset too large for the machine is as good as any other that lies outside of the file.
fn position(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn bytes_at<'a>(image: &'a [u8], at: usize, length: usize, what: &'static str) -> Result<&'a [u8], CodeObjectError> {
    let range = at..at.saturating_add(length);
    image.get(range).ok_or(CodeObjectError::Truncated { what, bytes: image.len() })
}

fn u16_at(image: &[u8], at: usize, what: &'static str) -> Result<u16, CodeObjectError> {
    let bytes = bytes_at(image, at, 2, what)?;
    Ok(u16::from_le_bytes(bytes.try_into().expect("two bytes")))
}

fn u32_at(image: &[u8], at: usize, what: &'static str) -> Result<u32, CodeObjectError> {
    let bytes = bytes_at(image, at, 4, what)?;
    Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

fn u64_at(image: &[u8], at: usize, what: &'static str) -> Result<u64, CodeObjectError> {
    let bytes = bytes_at(image, at, 8, what)?;
    Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}
