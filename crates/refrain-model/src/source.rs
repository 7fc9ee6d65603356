//! From the name of a model to a folder.

use std::path::PathBuf;

use crate::ModelError;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The model inside the binary, tinytales.
    Embedded,
    /// A folder, as the user named it.
    Folder(PathBuf),
    /// A repository of the Hugging Face hub, in the local cache.
    Hub {
        /// `owner/name`.
        id: String,
        /// The snapshot's commit.
        commit: String,
        /// The snapshot's folder.
        folder: PathBuf,
    },
}

/// How to look for a model.
#[derive(Clone, Debug, Default)]
pub struct ResolveOptions {
    /// Branch, tag or commit; `main` by default.
    pub revision: Option<String>,
    /// Where downloads go and are looked for, instead of `hub_cache`.
    pub download_dir: Option<PathBuf>,
    /// The Hugging Face cache, usually `~/.cache/huggingface/hub`.
    pub hub_cache: PathBuf,
    /// Don't use the network.
    pub offline: bool,
}

impl ModelSource {
    /// Finds a model: none named = the embedded one, else a folder, else a repository `owner/name` in the local Hugging
    /// Face cache, else (with the feature `hub`) the hub itself.
    pub fn resolve(_model: Option<&str>, _options: &ResolveOptions) -> Result<ModelSource, ModelError> {
        todo!()
    }
}
