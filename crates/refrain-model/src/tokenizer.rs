//! Text to token ids and back.

mod pieces;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use self::pieces::{Decoder, TokenBytes};
use crate::ModelError;
use crate::files;

/// A Hugging Face tokenizer (tokenizer.json).
pub struct Tokenizer {
    file: PathBuf,
    inner: tokenizers::Tokenizer,
    decoder: Decoder,
    bytes: TokenBytes,
    /// Sorted.
    special: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("file", &self.file).field("vocab_size", &self.vocab_size()).finish()
    }
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    pub fn from_file(file: &Path) -> Result<Tokenizer, ModelError> {
        match files::read(file)? {
            Some(bytes) => Tokenizer::from_bytes(&bytes, file),
            None => Err(ModelError::Tokenizer { file: file.into(), problem: "there is no such file".into() }),
        }
    }

    /// Reads the bytes of a tokenizer.json; `file` is for error messages.
    pub fn from_bytes(bytes: &[u8], file: &Path) -> Result<Tokenizer, ModelError> {
        let error = |problem: String| ModelError::Tokenizer { file: file.into(), problem };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|source| error(format!("not a tokenizer that can be read: {source}")))?;
        // Some files carry settings for training batches, which would cut and pad prompts.
        inner.with_truncation(None).map_err(|source| error(source.to_string()))?;
        inner.with_padding(None);
        let decoder = Decoder::of(&inner);
        let added = inner.get_added_tokens_decoder();
        let vocabulary: HashMap<String, u32> = inner.get_vocab(true);
        let bytes = TokenBytes::new(vocabulary.iter().map(|(token, &id)| {
            let bytes = match added.get(&id) {
                Some(added) => added.content.as_bytes().to_vec(),
                None => decoder.token_bytes(token),
            };
            (id, bytes)
        }));
        let mut special: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        special.sort_unstable();
        Ok(Tokenizer { file: file.into(), inner, decoder, bytes, special })
    }

    /// The ids of a text. Special tokens that are written out in the text become their ids; `add_special_tokens` adds
    /// what the tokenizer's post-processor adds, mostly a token for the beginning.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        match self.inner.encode_fast(text, add_special_tokens) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(source) => {
                let problem = format!("cannot encode a text of {} bytes: {source}", text.len());
                Err(ModelError::Tokenizer { file: self.file.clone(), problem })
            }
        }
    }

    /// The text of ids. Ids outside the vocabulary give nothing; broken UTF-8 gives U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let Decoder::Bytes { strip_first_space, .. } = self.decoder else {
            return self.inner.decode(ids, skip_special_tokens).unwrap_or_default();
        };
        let shown = ids.iter().filter(|&&id| !(skip_special_tokens && self.is_special(id)));
        let bytes: Vec<u8> = shown.flat_map(|&id| self.bytes.get(id).unwrap_or_default()).copied().collect();
        let text = if strip_first_space { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        String::from_utf8_lossy(text).into_owned()
    }

    /// The bytes that one token stands for, which needn't be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.bytes.get(id).map(<[u8]>::to_vec)
    }

    /// The token as the vocabulary spells it.
    pub fn token_string(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the token is one of the special ones, which `skip_special_tokens` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether text is the bytes of its tokens, one after the other, but for a space in front of the whole.
    pub(crate) fn is_concatenation(&self) -> bool {
        matches!(self.decoder, Decoder::Bytes { .. })
    }

    /// Whether a space in front of the whole text is left out.
    pub(crate) fn strips_first_space(&self) -> bool {
        matches!(self.decoder, Decoder::Bytes { strip_first_space: true, .. })
    }

    /// As [`token_bytes`](Self::token_bytes), without a copy.
    pub(crate) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id)
    }

    /// What the `tokenizers` crate makes of ids.
    #[cfg(test)]
    pub(crate) fn inner_decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        self.inner.decode(ids, skip_special_tokens).unwrap()
    }
}
