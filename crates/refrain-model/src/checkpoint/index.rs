//! model.safetensors.index.json: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::config::fields::{Fields, parse_object};
use crate::files::ModelFiles;
use crate::{ModelError, StoredTensor};

/// A checked index.
pub(crate) struct Index {
    file: PathBuf,
    /// Tensor to shard.
    shard_of: HashMap<String, String>,
    /// Shard to its tensors, sorted.
    tensors_of: BTreeMap<String, BTreeSet<String>>,
}

impl Index {
    /// Reads an index. A shard must be a plain path below the folder: an index from the network must not make us read
    /// other files.
    pub(crate) fn parse(json: &str, file: &Path) -> Result<Index, ModelError> {
        let map = parse_object(json, file)?;
        let fields = Fields::new(file, &map);
        let Some(Value::Object(weight_map)) = fields.get("weight_map") else {
            return Err(fields.error("weight_map", "is missing or not an object"));
        };
        let once: Once = serde_json::from_str(json).map_err(|source| ModelError::Json { file: file.into(), source })?;
        if let Some((tensor, first, second)) = once.weight_map.repeated {
            let problem = format!("is given twice, in {first} and in {second}: name it once");
            return Err(ModelError::Tensor { file: file.into(), tensor, problem });
        }
        let mut index = Index { file: file.into(), shard_of: HashMap::new(), tensors_of: BTreeMap::new() };
        for (tensor, shard) in weight_map {
            let error = |problem| ModelError::Tensor { file: file.into(), tensor: tensor.clone(), problem };
            let Some(shard) = shard.as_str() else {
                return Err(error(format!("its shard {shard} is not a file name")));
            };
            if !is_plain_path(shard) {
                return Err(error(format!("its shard {shard:?} is not a plain file name inside the model folder")));
            }
            index.shard_of.insert(tensor.clone(), shard.to_string());
            index.tensors_of.entry(shard.to_string()).or_default().insert(tensor.clone());
        }
        if index.shard_of.is_empty() {
            return Err(fields.error("weight_map", "is empty"));
        }
        Ok(index)
    }

    /// The shards, sorted.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &str> {
        self.tensors_of.keys().map(String::as_str)
    }

    /// The shard that the index has this tensor in.
    pub(crate) fn shard_of(&self, tensor: &str) -> Option<&str> {
        self.shard_of.get(tensor).map(String::as_str)
    }

    /// Checks that every shard is there.
    pub(crate) fn check_shards(&self, files: &ModelFiles<'_>) -> Result<(), ModelError> {
        match self.tensors_of.iter().find(|(shard, _)| !files.exists(shard)) {
            None => Ok(()),
            Some((shard, tensors)) => Err(ModelError::MissingShard {
                index: self.file.clone(),
                shard: shard.clone(),
                tensors: tensors.len(),
                example: tensors.first().cloned().unwrap_or_default(),
            }),
        }
    }

    /// Checks that a shard holds what the index says.
    pub(crate) fn check_contents(&self, shard: &str, found: &[StoredTensor]) -> Result<(), ModelError> {
        let found: BTreeSet<&str> = found.iter().map(|tensor| tensor.name.as_str()).collect();
        match self.tensors_of[shard].iter().find(|tensor| !found.contains(tensor.as_str())) {
            None => Ok(()),
            Some(tensor) => Err(ModelError::Tensor {
                file: self.file.clone(),
                tensor: tensor.clone(),
                problem: format!("is said to be in `{shard}`, but that file has no such tensor"),
            }),
        }
    }
}

/// Reads the index for names that it has twice, of which a JSON map keeps the last and tells nobody.
#[derive(serde::Deserialize)]
struct Once {
    weight_map: Repeated,
}

struct Repeated {
    /// A tensor, and two of its shards.
    repeated: Option<(String, Value, Value)>,
}

impl<'de> Deserialize<'de> for Repeated {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RepeatedVisitor)
    }
}

struct RepeatedVisitor;

impl<'de> Visitor<'de> for RepeatedVisitor {
    type Value = Repeated;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the shard of each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Repeated, A::Error> {
        let mut shards = HashMap::new();
        while let Some((tensor, shard)) = map.next_entry::<String, Value>()? {
            if let Some(first) = shards.insert(tensor.clone(), shard.clone()) {
                while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
                return Ok(Repeated { repeated: Some((tensor, first, shard)) });
            }
        }
        Ok(Repeated { repeated: None })
    }
}

/// Whether a path stays below the folder it is joined to.
pub(crate) fn is_plain_path(path: &str) -> bool {
    let mut components = Path::new(path).components();
    !path.is_empty() && !path.contains('\0') && components.all(|component| matches!(component, Component::Normal(_)))
}
