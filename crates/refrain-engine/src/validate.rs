//! Checks a request's sampling parameters before it is accepted.

use crate::{SamplingParams, SubmitError};

/// Most best tokens whose log-probabilities can be asked for.
pub const MAX_LOGPROBS: usize = 20;

impl SamplingParams {
    /// Checks every field against its range, the vocabulary and the context limit.
    ///
    /// # Errors
    /// [`SubmitError::InvalidSampling`] naming the first field that is wrong, its value and its range.
    pub fn validate(&self, vocab_size: usize, max_model_len: usize) -> Result<(), SubmitError> {
        let _ = (vocab_size, max_model_len);
        todo!()
    }
}
