//! As much of MessagePack as code objects use, read without trust in any length.

use super::CodeObjectError;

/// Reads one document from front to back.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Containers within containers, at most: metadata has four.
const DEPTH: usize = 16;

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Begins a map; its number of pairs.
    pub(super) fn map(&mut self) -> Result<usize, CodeObjectError> {
        match self.byte()? {
            tag @ 0x80..=0x8f => Ok(usize::from(tag & 0x0f)),
            0xde => self.number(2),
            0xdf => self.number(4),
            tag => Err(self.unexpected(tag, "a map")),
        }
    }

    /// Begins an array; its number of elements.
    pub(super) fn array(&mut self) -> Result<usize, CodeObjectError> {
        match self.byte()? {
            tag @ 0x90..=0x9f => Ok(usize::from(tag & 0x0f)),
            0xdc => self.number(2),
            0xdd => self.number(4),
            tag => Err(self.unexpected(tag, "an array")),
        }
    }

    /// A string.
    pub(super) fn string(&mut self) -> Result<&'a str, CodeObjectError> {
        let length = match self.byte()? {
            tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
            0xd9 => self.number(1)?,
            0xda => self.number(2)?,
            0xdb => self.number(4)?,
            tag => return Err(self.unexpected(tag, "a string")),
        };
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes)
            .map_err(|_| CodeObjectError::Metadata { what: format!("no UTF-8 in the string before byte {}", self.at) })
    }

    /// A number that is not negative and fits 32 bits.
    pub(super) fn unsigned(&mut self) -> Result<u32, CodeObjectError> {
        let value = match self.byte()? {
            tag @ 0..=0x7f => usize::from(tag),
            0xcc => self.number(1)?,
            0xcd => self.number(2)?,
            0xce => self.number(4)?,
            0xcf => self.number(8)?,
            tag => return Err(self.unexpected(tag, "a number")),
        };
        u32::try_from(value)
            .map_err(|_| CodeObjectError::Metadata { what: format!("{value} before byte {} is too large", self.at) })
    }

    /// Passes over one value of any kind.
    pub(super) fn skip(&mut self) -> Result<(), CodeObjectError> {
        self.skip_within(DEPTH)
    }

    fn skip_within(&mut self, depth: usize) -> Result<(), CodeObjectError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(CodeObjectError::Metadata { what: format!("more than {DEPTH} containers in each other") });
        };
        let tag = *self.bytes.get(self.at).ok_or_else(|| self.truncated())?;
        let values = match tag {
            0x80..=0x8f | 0xde | 0xdf => self.map()?.saturating_mul(2),
            0x90..=0x9f | 0xdc | 0xdd => self.array()?,
            0xa0..=0xbf | 0xd9..=0xdb => return self.string().map(drop),
            _ => {
                self.at += 1;
                let length = match tag {
                    0xc4 => self.number(1)?,
                    0xc5 => self.number(2)?,
                    0xc6 => self.number(4)?,
                    0xcc | 0xd0 => 1,
                    0xcd | 0xd1 => 2,
                    0xca | 0xce | 0xd2 => 4,
                    0xcb | 0xcf | 0xd3 => 8,
                    0..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
                    _ => return Err(self.unexpected(tag, "a value")),
                };
                return self.take(length).map(drop);
            }
        };
        for _ in 0..values {
            self.skip_within(depth)?;
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, CodeObjectError> {
        Ok(self.take(1)?[0])
    }

    /// A big-endian number of 1, 2, 4 or 8 bytes.
    fn number(&mut self, bytes: usize) -> Result<usize, CodeObjectError> {
        let value = self.take(bytes)?.iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        // What is too large for the machine lies outside of the document anyway.
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], CodeObjectError> {
        let taken = self.bytes.get(self.at..self.at.saturating_add(length)).ok_or_else(|| self.truncated())?;
        self.at += length;
        Ok(taken)
    }

    fn truncated(&self) -> CodeObjectError {
        CodeObjectError::Truncated { what: "the metadata's end", bytes: self.bytes.len() }
    }

    fn unexpected(&self, tag: u8, wanted: &str) -> CodeObjectError {
        let at = self.at.saturating_sub(1);
        CodeObjectError::Metadata { what: format!("tag {tag:#04x} at byte {at}, where {wanted} should be") }
    }
}
