//! What all handlers share.

use crate::text::TextEngine;
use refrain_engine::EngineHandle;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Settings of the HTTP server. The names are those of vLLM's flags.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Names that requests may give as `model`; answers carry the first. At least one.
    pub served_model_names: Vec<String>,
    /// Folder or repository id of the model, shown as `root` in the list of models.
    pub model_root: String,
    /// Keys of which a request must carry one; empty lets everybody in.
    pub api_keys: Vec<String>,
    /// Origins whose web pages may call the server; `*` is any, empty is none.
    pub allowed_origins: Vec<String>,
    /// Path below which a proxy mounts the server, for example `/llm`. The routes exist with it and without it.
    pub root_path: String,
    /// Send `X-Request-Id` in every answer: the client's own, or a new one.
    pub enable_request_id_headers: bool,
    /// Write a log line for each request.
    pub access_log: bool,
    /// Paths whose requests are not logged.
    pub disable_access_log_for_endpoints: Vec<String>,
    /// Largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// What `/server_info` answers: the resolved settings.
    pub server_info: serde_json::Value,
    /// Version of the program.
    pub version: String,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            served_model_names: vec!["model".to_owned()],
            model_root: String::new(),
            api_keys: Vec::new(),
            allowed_origins: Vec::new(),
            root_path: String::new(),
            enable_request_id_headers: false,
            access_log: true,
            disable_access_log_for_endpoints: Vec::new(),
            max_body_bytes: 16 << 20,
            server_info: serde_json::Value::Null,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What all handlers share.
pub struct AppState {
    pub(crate) text: TextEngine,
    pub(crate) config: ServerConfig,
    /// Unix seconds of the start.
    pub(crate) created: u64,
    draining: AtomicBool,
    /// Requests for text that are being answered.
    in_flight: watch::Sender<usize>,
}

impl AppState {
    /// State of a server that is ready.
    ///
    /// # Panics
    /// When `served_model_names` is empty.
    pub fn new(text: TextEngine, config: ServerConfig) -> Self {
        assert!(!config.served_model_names.is_empty(), "a server needs a model name");
        Self { text, config, created: unix_now(), draining: AtomicBool::new(false), in_flight: watch::Sender::new(0) }
    }

    /// The text engine that answers.
    pub fn text(&self) -> &TextEngine {
        &self.text
    }

    /// The engine below it.
    pub fn engine(&self) -> &EngineHandle {
        self.text.engine()
    }

    /// Name of the model in answers.
    pub fn model_name(&self) -> &str {
        &self.config.served_model_names[0]
    }

    /// Requests for text that are being answered.
    pub fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Whether no new requests are taken because the server is about to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Takes no new requests for text from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Waits until no request for text is being answered.
    pub(crate) async fn idle(&self) {
        let mut count = self.in_flight.subscribe();
        // The sender lives as long as `self`.
        let _ = count.wait_for(|&count| count == 0).await;
    }

    /// Counts a request for text until the guard is dropped.
    pub(crate) fn enter(self: &std::sync::Arc<Self>) -> InFlight {
        self.in_flight.send_modify(|count| *count += 1);
        InFlight(self.clone())
    }
}

/// One request for text that is being answered.
pub(crate) struct InFlight(std::sync::Arc<AppState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|count| *count -= 1);
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
