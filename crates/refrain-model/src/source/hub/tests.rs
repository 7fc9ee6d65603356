use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::test_support::{TINY_CONFIG, tiny_tensors, write_shards};
use crate::{Model, ResolveOptions};

/// A hub with one repository, `owner/tiny`; keeps the paths and ranges it was asked for.
struct Hub {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

const COMMIT: &str = "0123456789abcdef";

impl Hub {
    fn start(files: BTreeMap<String, Vec<u8>>) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        // Ends with the process: it waits for connections that no longer come.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files, &log);
            }
        });
        Hub { endpoint, asked }
    }

    /// Resolves a name by this hub.
    fn resolve(&self, name: &str, options: &ResolveOptions) -> Result<ModelSource, ModelError> {
        let access = HubAccess { endpoint: Some(self.endpoint.clone()), token: None };
        ModelSource::resolve_from(Some(name), options, &access)
    }
}

fn options(cache: &tempfile::TempDir) -> ResolveOptions {
    ResolveOptions { hub_cache: cache.path().join("hub"), ..ResolveOptions::default() }
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, log: &Mutex<Vec<String>>) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let Some(path) = request.first().and_then(|line| line.split(' ').nth(1)) else { return };
    let range =
        request.iter().find_map(|line| line.strip_prefix("range: bytes=").or(line.strip_prefix("Range: bytes=")));
    log.lock().unwrap().push(format!("{path} {}", range.unwrap_or_default()));
    let mut reply = |head: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    };
    if path.starts_with("/api/models/owner/tiny") {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let info = serde_json::json!({ "sha": COMMIT, "siblings": siblings });
        return reply("200 OK", info.to_string().as_bytes());
    }
    let prefix = format!("/owner/tiny/resolve/{COMMIT}/");
    let Some((name, bytes)) = path.strip_prefix(&prefix).and_then(|name| files.get_key_value(name)) else {
        return reply("404 Not Found", b"");
    };
    let (start, end) = range.unwrap_or("0-").split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
    let head = format!(
        "206 Partial Content\r\nx-repo-commit: {COMMIT}\r\netag: \"etag-{}\"\r\ncontent-range: bytes {start}-{}/{}",
        name.replace('.', "-"),
        end - 1,
        bytes.len()
    );
    reply(&head, &bytes[start..end]);
}

/// The files of a small model, sharded, and one that nobody needs.
fn files() -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &tiny_tensors("model.", "BF16"), 20);
    let mut files: BTreeMap<String, Vec<u8>> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.insert("config.json".into(), TINY_CONFIG.into());
    files.insert("pytorch_model.bin".into(), vec![0; 100]);
    files
}

#[test]
fn a_repository_is_downloaded_once_and_then_comes_from_the_cache() {
    let hub = Hub::start(files());
    let cache = tempfile::tempdir().unwrap();
    let options = options(&cache);
    let source = hub.resolve("owner/tiny", &options).unwrap();
    let model = Model::open(&source).unwrap();
    assert_eq!(model.name, "owner/tiny");
    let asked = hub.asked.lock().unwrap().clone();
    assert!(!asked.iter().any(|path| path.contains("pytorch_model.bin")), "{asked:?}");
    let again = hub.resolve("owner/tiny", &options).unwrap();
    assert_eq!(again, source);
    let offline = ResolveOptions { offline: true, ..options };
    assert_eq!(hub.resolve("owner/tiny", &offline).unwrap(), source);
    assert_eq!(*hub.asked.lock().unwrap(), asked, "nothing was asked for again");
}

#[test]
fn a_download_that_broke_off_is_resumed() {
    let all = files();
    let hub = Hub::start(all.clone());
    let cache = tempfile::tempdir().unwrap();
    let options = options(&cache);
    let shard = "model-00000.safetensors";
    let blobs = options.hub_cache.join("models--owner--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("etag-{}.part", shard.replace('.', "-"))), &all[shard][..100]).unwrap();
    let source = hub.resolve("owner/tiny", &options).unwrap();
    Model::open(&source).unwrap();
    let asked = hub.asked.lock().unwrap();
    assert!(asked.contains(&format!("/owner/tiny/resolve/{COMMIT}/{shard} 100-")), "{asked:?}");
}

#[test]
fn what_the_hub_lacks_is_named() {
    let mut few = files();
    few.remove("model.safetensors.index.json");
    let hub = Hub::start(few);
    let cache = tempfile::tempdir().unwrap();
    let options = options(&cache);
    let error = |name: &str| hub.resolve(name, &options).unwrap_err().to_string();
    assert!(error("owner/tiny").contains("neither model.safetensors nor"), "{}", error("owner/tiny"));
    let unknown = error("owner/none");
    assert!(unknown.contains("no folder of this name here") && unknown.contains("404"), "{unknown}");
    let mut outside = files();
    let index = serde_json::json!({ "weight_map": { "model.norm.weight": "../../../x" } });
    outside.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    let hub = Hub::start(outside);
    let error = hub.resolve("owner/tiny", &options).unwrap_err().to_string();
    assert!(error.contains("not a plain file name"), "{error}");
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let access = HubAccess { endpoint: Some(format!("http://{port}")), token: Some("secret".into()) };
    let error = ModelSource::resolve_from(Some("owner/tiny"), &options(&cache), &access).unwrap_err();
    assert!(!format!("{access:?} {error:?}").contains("secret"));
    assert!(matches!(error, ModelError::NotFound { .. }));
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}
