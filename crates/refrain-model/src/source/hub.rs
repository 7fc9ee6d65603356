//! Downloads from the Hugging Face hub, into its usual cache, resumed where an earlier one broke off.

#[cfg(test)]
mod tests;

use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{HubAccess, ModelSource, Repository};
use crate::ModelError;
use crate::checkpoint::index::{Index, is_plain_path};

/// Small files that are taken if the repository has them.
const SMALL_FILES: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const HUB: &str = "https://huggingface.co";
const RETRIES: usize = 5;

/// Downloads what a model needs: the small files and the safetensors.
pub(super) fn download(repository: &Repository, hub: &HubAccess) -> Result<ModelSource, ModelError> {
    let endpoint = hub.endpoint.as_deref().unwrap_or(HUB);
    let api = api(repository, hub, endpoint).map_err(|error| refused(repository, endpoint, &error))?;
    let named = Repo::with_revision(repository.id.clone(), RepoType::Model, repository.revision.clone());
    let info = api.repo(named.clone()).info().map_err(|error| refused(repository, endpoint, &error))?;
    let commit = info.sha;
    if !is_plain_path(&commit) {
        return Err(failed(repository, "the list of files", format!("the commit {commit:?} is no commit")));
    }

    // From here on by commit, so that a push in between can't mix two versions.
    let job = Job {
        repository,
        files: api.repo(Repo::with_revision(repository.id.clone(), RepoType::Model, commit.clone())),
        folder: repository.cache.join(repository.folder_name()).join("snapshots").join(&commit),
    };
    let has = |name: &str| info.siblings.iter().any(|sibling| sibling.rfilename == name);
    for name in SMALL_FILES.into_iter().filter(|name| has(name)) {
        job.fetch(name)?;
    }
    if has(SINGLE_FILE) {
        job.fetch(SINGLE_FILE)?;
    } else if has(INDEX_FILE) {
        let path = job.fetch(INDEX_FILE)?;
        let json = fs::read_to_string(&path).map_err(|source| ModelError::Io {
            path: path.clone(),
            action: "read",
            source,
        })?;
        let index = Index::parse(&json, &path)?;
        for shard in index.shards() {
            job.fetch(shard)?;
        }
    } else {
        let problem = format!("the repository has neither {SINGLE_FILE} nor {INDEX_FILE}");
        return Err(failed(repository, "the weights", problem));
    }
    let cache = Cache::new(repository.cache.clone()).repo(named);
    cache.create_ref(&commit).map_err(|source| ModelError::Io {
        path: repository.cache.join(repository.folder_name()).join("refs"),
        action: "write",
        source,
    })?;
    Ok(ModelSource::Hub { id: repository.id.clone(), commit, folder: job.folder })
}

fn api(repository: &Repository, hub: &HubAccess, endpoint: &str) -> Result<Api, ApiError> {
    let mut builder = ApiBuilder::from_cache(Cache::new(repository.cache.clone()))
        .with_endpoint(endpoint.to_string())
        .with_progress(stderr().is_terminal())
        .with_retries(RETRIES)
        .with_user_agent("refrain", env!("CARGO_PKG_VERSION"));
    if let Some(token) = &hub.token {
        builder = builder.with_token(Some(token.clone()));
    }
    builder.build()
}

/// The files of one commit.
struct Job<'a> {
    repository: &'a Repository,
    files: ApiRepo,
    folder: PathBuf,
}

impl Job<'_> {
    /// Downloads a file unless the snapshot has it; returns its path.
    fn fetch(&self, name: &str) -> Result<PathBuf, ModelError> {
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(path);
        }
        tracing::info!("{}: downloading {name}", self.repository.id);
        self.files.download(name).map_err(|error| failed(self.repository, name, described(&error)))
    }
}

fn failed(repository: &Repository, file: &str, problem: String) -> ModelError {
    ModelError::Download { model: repository.id.clone(), file: file.into(), problem }
}

/// The hub doesn't give the list of files: no such repository, no access, no network.
fn refused(repository: &Repository, endpoint: &str, error: &ApiError) -> ModelError {
    let problem = format!(
        "there is no folder of this name here, and the Hugging Face hub ({endpoint}) does not give revision `{}` of \
         such a repository: {}",
        repository.revision,
        described(error)
    );
    ModelError::NotFound { model: repository.id.clone(), problem }
}

/// The error, with what to do about it where that is known.
fn described(error: &ApiError) -> String {
    let text = error.to_string();
    let advice = if text.contains("401") || text.contains("403") {
        " (private, gated or misspelt: an access token may be needed)"
    } else if text.contains("404") {
        " (misspelt?)"
    } else if matches!(error, ApiError::LockAcquisition(_)) {
        " (another process is downloading it)"
    } else {
        ""
    };
    text + advice
}
