//! What all handlers share.

use crate::api::{ApiError, clip};
use crate::text::TextEngine;
use axum::http::StatusCode;
use prometheus_client::registry::Registry;
use refrain_engine::EngineHandle;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Time of a step after which the server is not healthy, unless its steps are that long.
const STUCK: Duration = Duration::from_secs(30);

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
    /// Send `X-Request-Id` in every answer: the client's own, else the body's `request_id`, else a new one.
    pub enable_request_id_headers: bool,
    /// Write a log line for each request.
    pub access_log: bool,
    /// Paths whose requests are not logged.
    pub disable_access_log_for_endpoints: Vec<String>,
    /// Largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// Object whose fields `/server_info` answers too: the resolved settings.
    pub server_info: serde_json::Value,
    /// Version of the program.
    pub version: String,
}

/// A setting of the server has a value that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {message}")]
pub struct ConfigError {
    /// The field of [`ServerConfig`].
    pub setting: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl ServerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first setting that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |setting, message: String| Err(ConfigError { setting, message });
        if self.served_model_names.is_empty() || self.served_model_names.iter().any(String::is_empty) {
            return wrong("served_model_names", "at least one name is needed, and none may be empty".to_owned());
        }
        // A header can't carry anything else.
        let is_key = |key: &String| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.api_keys.iter().all(is_key) {
            return wrong("api_keys", "a key must have visible ASCII characters only, and at least one".to_owned());
        }
        let is_origin = |origin: &&String| *origin == "*" || origin.contains("://") && is_key(origin);
        if let Some(origin) = self.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            return wrong(
                "allowed_origins",
                format!("{origin:?} is no origin: give for example https://example.com, or *"),
            );
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
        if !self.root_path.bytes().all(is_plain) {
            return wrong("root_path", format!("{:?} is no path: give for example /llm", self.root_path));
        }
        Ok(())
    }
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
    /// `system_fingerprint` of all answers: the same model and settings give the same answers.
    pub(crate) fingerprint: String,
    metrics: Registry,
    draining: AtomicBool,
    /// Requests for text that are being answered.
    in_flight: watch::Sender<usize>,
}

impl AppState {
    /// State of a server that is ready.
    ///
    /// # Errors
    /// [`ConfigError`] naming the setting that can't be.
    pub fn new(text: TextEngine, config: ServerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut metrics = Registry::default();
        text.engine().metrics().register(&mut metrics, &config.served_model_names[0]);
        Ok(Self {
            fingerprint: fingerprint(&text, &config),
            text,
            config,
            created: unix_now(),
            metrics,
            draining: AtomicBool::new(false),
            in_flight: watch::Sender::new(0),
        })
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

    /// Refuses names that are not served.
    pub(crate) fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        let served = &self.config.served_model_names;
        match name {
            Some(name) if !served.iter().any(|known| known == name) => {
                let message =
                    format!("The model `{}` does not exist; this server has: {}", clip(name), served.join(", "));
                let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
                Err(ApiError { param: Some("model".to_owned()), ..error.code("model_not_found") })
            }
            _ => Ok(()),
        }
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn metrics_text(&self) -> Result<String, ApiError> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics)
            .map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(text)
    }

    /// Whether the engine works, or has ended because it was told to.
    pub(crate) fn is_live(&self) -> bool {
        let engine = self.engine();
        (engine.is_alive() || self.is_draining()) && engine.stuck(STUCK).is_none()
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
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.send_modify(|count| *count += 1);
        InFlight(self.clone())
    }
}

/// One request for text that is being answered.
pub(crate) struct InFlight(Arc<AppState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|count| *count -= 1);
    }
}

/// Differs when the program, the model or what it computes with differ.
fn fingerprint(text: &TextEngine, config: &ServerConfig) -> String {
    let mut hasher = DefaultHasher::new();
    let engine = text.engine();
    (&config.version, &config.model_root, &config.served_model_names[0], &engine.device().compute).hash(&mut hasher);
    format!("refrain-{}-{:08x}", config.version, hasher.finish() as u32)
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
