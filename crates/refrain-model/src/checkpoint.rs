//! The weights of a model folder.

use std::path::Path;

use crate::{Dtype, ModelConfig, ModelError, TensorView, WeightSource};

/// Weights that were recognised and left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Tensors of the vision tower.
    pub vision_tensors: usize,
    /// Their bytes.
    pub vision_bytes: u64,
    /// Tensors of the multi-token-prediction block.
    pub mtp_tensors: usize,
    /// Their bytes.
    pub mtp_bytes: u64,
    /// Names that no known model has.
    pub unknown: Vec<String>,
}

/// The weights of a model, mapped into memory and named canonically.
#[derive(Debug)]
pub struct Checkpoint {}

impl Checkpoint {
    /// Maps the safetensors files of a folder.
    pub fn open(_folder: &Path) -> Result<Checkpoint, ModelError> {
        todo!()
    }

    /// Every tensor that the model uses, by canonical name, sorted.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        std::iter::empty()
    }

    /// The widest element type among the matrices: F32 before BF16 before F16.
    pub fn widest_matrix_dtype(&self) -> Dtype {
        todo!()
    }

    /// What was recognised and left alone.
    pub fn skipped(&self) -> &Skipped {
        todo!()
    }

    /// Bytes of the tensors that the model uses.
    pub fn total_bytes(&self) -> u64 {
        todo!()
    }

    /// Checks that every weight the configuration implies is there and has its shape.
    pub fn validate(&self, _config: &ModelConfig) -> Result<(), ModelError> {
        todo!()
    }
}

impl WeightSource for Checkpoint {
    fn tensor(&self, _name: &str) -> Option<TensorView<'_>> {
        todo!()
    }

    fn release(&self, _name: &str) {
        todo!()
    }
}
