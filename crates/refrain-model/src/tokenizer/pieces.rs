//! How the spelling of a token in the vocabulary stands for bytes of text.

use serde_json::Value;

/// How tokens become text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decoder {
    /// Text is the bytes of the tokens, one after the other.
    Bytes {
        /// How the vocabulary spells bytes.
        spelling: Spelling,
        /// Whether a space in front of the whole text is left out.
        strip_first_space: bool,
    },
    /// Anything else: the `tokenizers` crate decodes.
    Other,
}

/// How a vocabulary spells bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One printable character for each byte (GPT-2).
    ByteLevel,
    /// Text with a character for the space and, perhaps, `<0x0A>` for the byte 10 (SentencePiece).
    SentencePiece {
        /// Stands for a space.
        space: char,
        /// Whether there are tokens for single bytes.
        byte_fallback: bool,
    },
}

impl Decoder {
    /// What tokenizer.json names.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Decoder {
        // The crate's types hide their fields; their JSON does not.
        let json = tokenizer.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok()).unwrap_or_default();
        let steps = match json.get("decoders") {
            Some(Value::Array(steps)) => steps.as_slice(),
            _ => std::slice::from_ref(&json),
        };
        if let [step] = steps
            && step["type"] == "ByteLevel"
        {
            return Decoder::Bytes { spelling: Spelling::ByteLevel, strip_first_space: false };
        }
        let (mut space, mut byte_fallback, mut strip_first_space) = (None, false, false);
        for step in steps {
            match step["type"].as_str() {
                Some("Metaspace") => {
                    space = step["replacement"].as_str().and_then(|text| text.chars().next());
                    strip_first_space |= step["prepend_scheme"] != "never";
                }
                Some("Replace") if step["content"] == " " => {
                    space = step["pattern"]["String"].as_str().and_then(|text| text.chars().next());
                }
                Some("Strip") if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                    strip_first_space = true;
                }
                Some("ByteFallback") => byte_fallback = true,
                Some("Fuse") => {}
                _ => return Decoder::Other,
            }
        }
        match space {
            Some(space) => {
                let spelling = Spelling::SentencePiece { space, byte_fallback };
                Decoder::Bytes { spelling, strip_first_space }
            }
            None => Decoder::Other,
        }
    }

    /// The bytes that a token of the vocabulary stands for.
    pub(super) fn token_bytes(&self, token: &str) -> Vec<u8> {
        let spelling = match self {
            Decoder::Bytes { spelling, .. } => spelling,
            Decoder::Other => return token.as_bytes().to_vec(),
        };
        match spelling {
            // A token with other characters was not made by the byte-level step and stands for itself.
            Spelling::ByteLevel => {
                token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Spelling::SentencePiece { space, byte_fallback } => match fallback_byte(token) {
                Some(byte) if *byte_fallback => vec![byte],
                _ => token.replace(*space, " ").into_bytes(),
            },
        }
    }
}

/// The byte of `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte that a character stands for in byte-level vocabularies: printable Latin-1 stands for itself, and the other
/// 68 bytes, in order, for the characters from U+0100 on (`bytes_to_unicode` in GPT-2's encoder.py).
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The bytes of every token, one after the other.
pub(super) struct TokenBytes {
    all: Vec<u8>,
    /// Where the token of each id lies; `None`: the vocabulary has no such id.
    spans: Vec<Option<(u32, u32)>>,
}

impl TokenBytes {
    pub(super) fn new(tokens: impl Iterator<Item = (u32, Vec<u8>)>) -> TokenBytes {
        let mut table = TokenBytes { all: Vec::new(), spans: Vec::new() };
        for (id, bytes) in tokens {
            let id = id as usize;
            if id >= table.spans.len() {
                table.spans.resize(id + 1, None);
            }
            table.spans[id] = Some((table.all.len() as u32, bytes.len() as u32));
            table.all.extend(bytes);
        }
        table
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let (start, len) = (*self.spans.get(id as usize)?)?;
        self.all.get(start as usize..(start + len) as usize)
    }

    /// One more than the largest id.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!((byte_of('Ġ'), byte_of('Ċ'), byte_of('a')), (Some(b' '), Some(b'\n'), Some(b'a')));
    }

    #[test]
    fn sentencepiece_spellings() {
        let decoder = |byte_fallback| {
            let spelling = Spelling::SentencePiece { space: '▁', byte_fallback };
            Decoder::Bytes { spelling, strip_first_space: true }
        };
        assert_eq!(decoder(true).token_bytes("▁the"), b" the");
        assert_eq!(decoder(true).token_bytes("<0xE2>"), [0xe2]);
        assert_eq!(decoder(true).token_bytes("<0xE>"), b"<0xE>");
        assert_eq!(decoder(false).token_bytes("<0xE2>"), b"<0xE2>");
    }
}
