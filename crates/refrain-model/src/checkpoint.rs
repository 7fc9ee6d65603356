//! The weights of a model: its safetensors files, with the names that the rest of the engine uses.

mod expected;
pub(crate) mod index;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub(crate) use self::expected::expected_weights;
use self::index::Index;
use self::names::{Role, role};
use crate::files::{FileBytes, ModelFiles};
use crate::{
    Dtype, ModelConfig, ModelError, StoredTensor, TensorView, WeightProblem, WeightSource, parse_safetensors_header,
};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Weights that were found and left alone.
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
    /// Tensors that the index takes from another shard, as the files spell them.
    pub duplicates: Vec<String>,
    /// Names that no known part of the model has, as the files spell them.
    pub unknown: Vec<String>,
}

/// The weights of a model, mapped into memory. Don't rewrite or truncate the files while they are in use: replace them.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<FileBytes>,
    /// By canonical name.
    tensors: BTreeMap<String, Weight>,
    skipped: Skipped,
}

/// One tensor that the model uses.
#[derive(Debug)]
struct Weight {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Checkpoint {
    /// Maps the safetensors files of a folder: `model.safetensors`, or those that `model.safetensors.index.json` names.
    pub fn open(folder: &Path) -> Result<Checkpoint, ModelError> {
        Checkpoint::read(&ModelFiles::Folder(folder))
    }

    /// The same, from a folder or from the binary.
    pub(crate) fn read(files: &ModelFiles<'_>) -> Result<Checkpoint, ModelError> {
        let folder = files.folder();
        let mut checkpoint =
            Checkpoint { folder, files: Vec::new(), tensors: BTreeMap::new(), skipped: Skipped::default() };
        if files.exists(SINGLE_FILE) {
            checkpoint.add_file(files, SINGLE_FILE, None)?;
        } else if let Some(json) = files.text(INDEX_FILE)? {
            let index = Index::parse(&json, &files.path(INDEX_FILE))?;
            index.check_shards(files)?;
            for shard in index.shards() {
                checkpoint.add_file(files, shard, Some(&index))?;
            }
        } else {
            let what = format!("has neither {SINGLE_FILE} nor {INDEX_FILE}");
            return Err(ModelError::Missing { folder: files.folder(), what });
        }
        checkpoint.report();
        Ok(checkpoint)
    }

    fn add_file(&mut self, files: &ModelFiles<'_>, name: &str, index: Option<&Index>) -> Result<(), ModelError> {
        let path = files.path(name);
        let bytes = files.weights(name)?;
        let tensors = parse_safetensors_header(&path, bytes.bytes(), bytes.bytes().len() as u64)?;
        if let Some(index) = index {
            index.check_contents(name, &tensors)?;
        }
        self.files.push(bytes);
        for tensor in tensors {
            let Some(index) = index else {
                self.add_tensor(&path, tensor)?;
                continue;
            };
            match index.shard_of(&tensor.name) {
                Some(shard) if shard == name => self.add_tensor(&path, tensor)?,
                Some(_) => self.skipped.duplicates.push(tensor.name),
                None => self.skipped.unknown.push(tensor.name),
            }
        }
        Ok(())
    }

    fn add_tensor(&mut self, path: &Path, tensor: StoredTensor) -> Result<(), ModelError> {
        let bytes = tensor.range.len() as u64;
        let error =
            |tensor: StoredTensor, problem| Err(ModelError::Tensor { file: path.into(), tensor: tensor.name, problem });
        let name = match role(&tensor.name) {
            Role::Vision => {
                self.skipped.vision_tensors += 1;
                self.skipped.vision_bytes += bytes;
                return Ok(());
            }
            Role::Mtp => {
                self.skipped.mtp_tensors += 1;
                self.skipped.mtp_bytes += bytes;
                return Ok(());
            }
            Role::Unknown => {
                self.skipped.unknown.push(tensor.name);
                return Ok(());
            }
            Role::Text(name) => name.to_string(),
        };
        let Some(dtype) = tensor.usable_dtype() else {
            let problem = format!("type {} is not supported; supported: BF16, F16, F32", tensor.dtype);
            return error(tensor, problem);
        };
        if self.tensors.contains_key(&name) {
            return error(tensor, format!("is a second tensor for `{name}`"));
        }
        let file = self.files.len() - 1;
        self.tensors.insert(name, Weight { file, dtype, shape: tensor.shape, range: tensor.range });
        Ok(())
    }

    /// One line for what is left alone by design, one each for what is there twice and what isn't known.
    fn report(&self) {
        let Skipped { vision_tensors, vision_bytes, mtp_tensors, mtp_bytes, duplicates, unknown } = &self.skipped;
        let mut parts = Vec::new();
        for (what, tensors, bytes) in
            [("vision tower", vision_tensors, vision_bytes), ("multi-token prediction", mtp_tensors, mtp_bytes)]
        {
            if *tensors > 0 {
                parts.push(format!("{tensors} tensors of the {what} ({:.1} MB)", *bytes as f64 / 1e6));
            }
        }
        if !parts.is_empty() {
            tracing::info!("{}: text only, left alone: {}", self.folder.display(), parts.join(", "));
        }
        if !duplicates.is_empty() {
            let (folder, names) = (self.folder.display(), first_names(duplicates.iter().map(String::as_str)));
            let count = duplicates.len();
            tracing::warn!("{folder}: {count} tensors are in a second shard too, only the index's counts: {names}");
        }
        if !unknown.is_empty() {
            let names = first_names(unknown.iter().map(String::as_str));
            tracing::warn!("{}: {} unknown tensors left alone: {names}", self.folder.display(), unknown.len());
        }
    }

    /// Every tensor that the model uses, by canonical name, sorted.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.tensors.iter().map(|(name, weight)| (name.as_str(), self.view(weight)))
    }

    /// The widest element type among the matrices: F32 before BF16 before F16. BF16 when there is no matrix.
    pub fn widest_matrix_dtype(&self) -> Dtype {
        let mut matrices = self.tensors.values().filter(|weight| weight.shape.len() == 2).map(|weight| weight.dtype);
        let order = |dtype: &Dtype| [Dtype::F16, Dtype::Bf16, Dtype::F32].iter().position(|known| known == dtype);
        matrices.by_ref().max_by_key(order).unwrap_or(Dtype::Bf16)
    }

    /// What was found and left alone.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Bytes of the tensors that the model uses.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|weight| weight.range.len() as u64).sum()
    }

    /// Checks that every weight the configuration implies is there and has its shape. A head of its own is not needed,
    /// and not used, when the configuration ties it to the embedding.
    pub fn validate(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let expected = expected_weights(config);
        let mut problems = Vec::new();
        for (tensor, shape) in &expected {
            let found = self.tensors.get(tensor).map(|weight| &weight.shape);
            if found != Some(shape) {
                let (tensor, expected, found) = (tensor.clone(), shape.clone(), found.cloned());
                problems.push(WeightProblem { tensor, expected, found });
            }
        }
        if !problems.is_empty() {
            return Err(ModelError::Weights { folder: self.folder.clone(), problems });
        }
        let unused: Vec<&str> =
            self.tensors.keys().map(String::as_str).filter(|&k| !expected.contains_key(k)).collect();
        if !unused.is_empty() {
            let (folder, names) = (self.folder.display(), first_names(unused.iter().copied()));
            tracing::warn!("{folder}: {} tensors that config.json has no use for: {names}", unused.len());
        }
        Ok(())
    }

    fn view<'a>(&'a self, weight: &'a Weight) -> TensorView<'a> {
        let data = &self.files[weight.file].bytes()[weight.range.clone()];
        TensorView { dtype: weight.dtype, shape: &weight.shape, data }
    }
}

/// Up to three names.
fn first_names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 3;
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    names.take(SHOWN).collect::<Vec<_>>().join(", ") + more
}

impl WeightSource for Checkpoint {
    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get(name).map(|weight| self.view(weight))
    }

    fn release(&self, name: &str) {
        if let Some(weight) = self.tensors.get(name) {
            self.files[weight.file].release(weight.range.clone());
        }
    }
}
