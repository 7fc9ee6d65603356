use std::fs;

use super::*;
use crate::Model;
use crate::test_support::{TINY_CONFIG, tiny_tensors, write_safetensors, write_shards};

fn options(cache: &Path) -> ResolveOptions {
    ResolveOptions { hub_cache: cache.into(), offline: true, ..ResolveOptions::default() }
}

/// A cache that holds a snapshot of `owner/tiny` under `main`.
fn cache_with_snapshot() -> (tempfile::TempDir, PathBuf) {
    let cache = tempfile::tempdir().unwrap();
    let root = cache.path().join("models--owner--tiny");
    let snapshot = root.join("snapshots/c0ffee");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), "c0ffee").unwrap();
    fs::write(snapshot.join("config.json"), TINY_CONFIG).unwrap();
    write_safetensors(&snapshot.join("model.safetensors"), &tiny_tensors("model.", "BF16"));
    (cache, snapshot)
}

#[test]
fn no_name_is_the_embedded_model() {
    let source = ModelSource::resolve(None, &ResolveOptions::default()).unwrap();
    assert_eq!((source.name(), source), ("tinytales".to_string(), ModelSource::Embedded));
}

#[test]
fn a_folder_is_taken_as_named() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    let source = ModelSource::resolve(Some(name), &ResolveOptions::default()).unwrap();
    assert_eq!(source, ModelSource::Folder(folder.path().into()));
    assert_eq!(source.name(), name);
}

#[test]
fn a_snapshot_of_the_cache_is_found_by_branch_or_commit() {
    let (cache, snapshot) = cache_with_snapshot();
    for revision in [None, Some("main"), Some("c0ffee")] {
        let options = ResolveOptions { revision: revision.map(str::to_string), ..options(cache.path()) };
        let source = ModelSource::resolve(Some("owner/tiny"), &options).unwrap();
        let expected = ModelSource::Hub { id: "owner/tiny".into(), commit: "c0ffee".into(), folder: snapshot.clone() };
        assert_eq!(source, expected);
        let model = Model::open(&source).unwrap();
        assert_eq!(model.name, "owner/tiny");
    }
    let elsewhere = ResolveOptions { download_dir: Some(cache.path().into()), ..options(Path::new("/none")) };
    assert!(ModelSource::resolve(Some("owner/tiny"), &elsewhere).is_ok(), "download_dir comes before hub_cache");
}

#[test]
fn a_snapshot_that_is_not_whole_is_not_taken() {
    let (cache, snapshot) = cache_with_snapshot();
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    assert!(ModelSource::resolve(Some("owner/tiny"), &options(cache.path())).is_err());
    write_shards(&snapshot, &tiny_tensors("model.", "BF16"), 10);
    assert!(ModelSource::resolve(Some("owner/tiny"), &options(cache.path())).is_ok());
    fs::remove_file(snapshot.join("model-00002.safetensors")).unwrap();
    assert!(ModelSource::resolve(Some("owner/tiny"), &options(cache.path())).is_err());
}

#[test]
fn a_name_that_leads_nowhere_is_answered_with_both_readings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    fs::write(&file, "{}").unwrap();
    let options = options(folder.path());
    let mut messages = Vec::new();
    for name in
        ["Foo/Bar", "no-such-folder", "a/b/c", "./Foo", "../x/y", "/none", "", "Foo/", "a/..", file.to_str().unwrap()]
    {
        let error = ModelSource::resolve(Some(name), &options).expect_err(name).to_string();
        messages.push(error.replace(folder.path().to_str().unwrap(), "CACHE"));
    }
    let outside = ResolveOptions { revision: Some("../../x".into()), ..options };
    messages.push(ModelSource::resolve(Some("Foo/Bar"), &outside).unwrap_err().to_string());
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn a_ref_that_points_out_of_the_cache_is_not_followed() {
    let (cache, _) = cache_with_snapshot();
    fs::write(cache.path().join("models--owner--tiny/refs/main"), "../snapshots/c0ffee").unwrap();
    assert!(ModelSource::resolve(Some("owner/tiny"), &options(cache.path())).is_err());
}
