//! Text to token ids and back.

use std::path::Path;

use crate::ModelError;

/// A Hugging Face tokenizer (tokenizer.json).
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads a tokenizer.json.
    pub fn from_file(_file: &Path) -> Result<Tokenizer, ModelError> {
        todo!()
    }

    /// Reads the bytes of a tokenizer.json; `file` is for error messages.
    pub fn from_bytes(_bytes: &[u8], _file: &Path) -> Result<Tokenizer, ModelError> {
        todo!()
    }

    /// The ids of a text. Special tokens that are written out in the text become their ids; `add_special_tokens` adds
    /// what the tokenizer's post-processor adds, mostly a token for the beginning.
    pub fn encode(&self, _text: &str, _add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        todo!()
    }

    /// The text of ids. Ids outside the vocabulary give nothing; broken UTF-8 gives U+FFFD.
    pub fn decode(&self, _ids: &[u32], _skip_special_tokens: bool) -> String {
        todo!()
    }

    /// The bytes that one token stands for, which needn't be whole characters.
    pub fn token_bytes(&self, _id: u32) -> Option<Vec<u8>> {
        todo!()
    }

    /// The token as the vocabulary spells it.
    pub fn token_string(&self, _id: u32) -> Option<String> {
        todo!()
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, _token: &str) -> Option<u32> {
        todo!()
    }

    /// Whether the token is one of the special ones, which `skip_special_tokens` leaves out.
    pub fn is_special(&self, _id: u32) -> bool {
        todo!()
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
}
