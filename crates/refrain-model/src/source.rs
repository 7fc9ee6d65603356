//! From the name of a model to a folder.

#[cfg(feature = "hub")]
mod hub;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::index::{Index, is_plain_path};
use crate::files::ModelFiles;
use crate::{ModelError, embedded};

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

/// Which hub downloads come from.
#[derive(Clone, Default)]
pub struct HubAccess {
    /// Its address, `https://huggingface.co` by default (`HF_ENDPOINT` in Hugging Face's tools).
    pub endpoint: Option<String>,
    /// The access token (`HF_TOKEN` there); by default the one that is stored beside the cache.
    pub token: Option<String>,
}

impl std::fmt::Debug for HubAccess {
    /// Without the token, which is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubAccess").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl ModelSource {
    /// Finds a model: none named = the embedded one, else a folder, else a repository `owner/name` in the local Hugging
    /// Face cache, else (with the feature `hub`) the hub itself, with progress bars on a terminal.
    pub fn resolve(model: Option<&str>, options: &ResolveOptions) -> Result<ModelSource, ModelError> {
        ModelSource::resolve_from(model, options, &HubAccess::default())
    }

    /// As [`resolve`](Self::resolve), with another hub or a token.
    #[cfg_attr(not(feature = "hub"), expect(unused_variables, reason = "this build can't download"))]
    pub fn resolve_from(
        model: Option<&str>,
        options: &ResolveOptions,
        hub: &HubAccess,
    ) -> Result<ModelSource, ModelError> {
        let Some(name) = model else { return Ok(ModelSource::Embedded) };
        let path = Path::new(name);
        if path.is_dir() {
            return Ok(ModelSource::Folder(path.to_path_buf()));
        }
        let not_found = |problem: String| ModelError::NotFound { model: name.into(), problem };
        if path.exists() {
            let problem = "is a file; a model is the folder with config.json and the *.safetensors files".to_string();
            return Err(not_found(problem));
        }
        // It becomes a path in the cache.
        if let Some(revision) = options.revision.as_deref().filter(|revision| !is_plain_path(revision)) {
            return Err(not_found(format!("the revision {revision:?} is no name of a branch, tag or commit")));
        }
        let Some(repository) = Repository::named(name, options) else {
            let problem = "there is no such folder, and it is no name of a Hugging Face repository (owner/name)".into();
            return Err(not_found(problem));
        };
        if let Some(source) = repository.cached() {
            return Ok(source);
        }
        let looked = format!(
            "there is no folder of this name here, and no whole copy of the Hugging Face repository in {}",
            repository.cache.join(repository.folder_name()).display()
        );
        let advice = "give a folder with config.json and *.safetensors, or none for the embedded model";
        if options.offline {
            return Err(not_found(format!("{looked}; downloads are off (offline): {advice}")));
        }
        #[cfg(feature = "hub")]
        return hub::download(&repository, hub);
        #[cfg(not(feature = "hub"))]
        Err(not_found(format!("{looked}; this build can't download (it lacks the feature `hub`): {advice}")))
    }

    /// The name that the model is served under unless the user gives another.
    pub fn name(&self) -> String {
        match self {
            ModelSource::Embedded => embedded::NAME.into(),
            ModelSource::Folder(folder) => folder.display().to_string(),
            ModelSource::Hub { id, .. } => id.clone(),
        }
    }

    pub(crate) fn files(&self) -> ModelFiles<'_> {
        match self {
            ModelSource::Embedded => ModelFiles::Embedded,
            ModelSource::Folder(folder) | ModelSource::Hub { folder, .. } => ModelFiles::Folder(folder),
        }
    }
}

/// A repository of the hub and its place in the local cache: `models--owner--name/refs/<revision>` holds a commit,
/// `snapshots/<commit>` the files (huggingface_hub's layout).
struct Repository {
    id: String,
    revision: String,
    cache: PathBuf,
}

impl Repository {
    /// The repository of a name, if it can be one.
    fn named(name: &str, options: &ResolveOptions) -> Option<Repository> {
        let is_part = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && part.chars().all(plain) && !part.starts_with(['-', '.']) && !part.contains("..")
        };
        let (owner, repository) = name.split_once('/')?;
        if !is_part(owner) || !is_part(repository) {
            return None;
        }
        let revision = options.revision.clone().unwrap_or_else(|| "main".into());
        let cache = options.download_dir.clone().unwrap_or_else(|| options.hub_cache.clone());
        Some(Repository { id: name.into(), revision, cache })
    }

    fn folder_name(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }

    /// The snapshot in the cache, if it is whole.
    fn cached(&self) -> Option<ModelSource> {
        let (commit, folder) = self.snapshot()?;
        match missing_file(&folder) {
            Ok(None) => Some(ModelSource::Hub { id: self.id.clone(), commit, folder }),
            Ok(Some(file)) => {
                tracing::info!("{}: the copy in the cache lacks {file}", self.id);
                None
            }
            // The error comes again, with its file, when the folder is opened.
            Err(_) => Some(ModelSource::Hub { id: self.id.clone(), commit, folder }),
        }
    }

    /// Commit and folder of the snapshot in the cache. A revision is a name under refs/, or the commit itself.
    fn snapshot(&self) -> Option<(String, PathBuf)> {
        let root = self.cache.join(self.folder_name());
        let commit = match fs::read_to_string(root.join("refs").join(&self.revision)) {
            Ok(commit) => commit.trim().to_string(),
            Err(_) => self.revision.clone(),
        };
        let folder = root.join("snapshots").join(&commit);
        (is_plain_path(&commit) && folder.is_dir()).then_some((commit, folder))
    }
}

/// The first file that a model folder lacks.
fn missing_file(folder: &Path) -> Result<Option<String>, ModelError> {
    const INDEX: &str = "model.safetensors.index.json";
    let files = ModelFiles::Folder(folder);
    if !files.exists("config.json") {
        return Ok(Some("config.json".into()));
    }
    if files.exists("model.safetensors") {
        return Ok(None);
    }
    match files.text(INDEX)? {
        None => Ok(Some("model.safetensors".into())),
        Some(json) => {
            let index = Index::parse(&json, &files.path(INDEX))?;
            Ok(index.shards().find(|shard| !files.exists(shard)).map(str::to_string))
        }
    }
}
