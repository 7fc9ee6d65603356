//! What a backend needs of a checkpoint.

use crate::Dtype;

/// A tensor of a checkpoint, where it lies.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: &'a [usize],
    /// Elements, little-endian, row-major, not necessarily aligned.
    pub data: &'a [u8],
}

/// Where weights come from: a checkpoint, or a test's own numbers.
pub trait WeightSource: Sync {
    /// The tensor of a canonical name (`embed_tokens.weight`, `layers.0.mlp.up_proj.weight`, `norm.weight`,
    /// `lm_head.weight`: no `model.` or `model.language_model.` prefix).
    fn tensor(&self, name: &str) -> Option<TensorView<'_>>;

    /// Says that the tensor has been copied and won't be read again, so that its pages needn't stay in memory.
    fn release(&self, _name: &str) {}
}
