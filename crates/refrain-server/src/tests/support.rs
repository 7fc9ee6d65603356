//! A server on a parrot, and clients for it.

use super::parrot::{EOS, Parrot, VOCAB};
use crate::{AppState, Listener, SamplingDefaults, ServeOptions, ServerConfig, TextEngine, router, serve};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use refrain_device::PoolSizes;
use refrain_engine::{Engine, EngineConfig, EngineHandle, SchedulingPolicy};
use refrain_model::{ChatTemplate, SpecialTokens, Tokenizer};
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// The tokenizer of the embedded model.
pub fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let read = || Arc::new(Tokenizer::from_file(&embedded().join("tokenizer.json")).unwrap());
    TOKENIZER.get_or_init(read).clone()
}

/// The chat template of the embedded model.
pub fn template() -> Arc<ChatTemplate> {
    static TEMPLATE: OnceLock<Arc<ChatTemplate>> = OnceLock::new();
    let read = || {
        let source = std::fs::read_to_string(embedded().join("chat_template.jinja")).unwrap();
        compiled(&source)
    };
    TEMPLATE.get_or_init(read).clone()
}

fn compiled(template: &str) -> Arc<ChatTemplate> {
    Arc::new(ChatTemplate::new(template, &SpecialTokens::default()).unwrap())
}

fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tinytales")
}

/// What a test server is made of.
pub struct Setup {
    pub engine: EngineConfig,
    pub server: ServerConfig,
    pub step_time: Duration,
    pub tokenizer: bool,
    /// Another template than the embedded model's.
    pub template: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        let engine = EngineConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 512,
            max_model_len: 1024,
            pools: PoolSizes { blocks: 8 * 64, slots: 8 },
            scheduling_policy: SchedulingPolicy::Fcfs,
            max_num_queued_reqs: None,
            max_num_queued_tokens: None,
            eos_token_ids: vec![EOS],
            vocab_size: VOCAB,
            seed: 7,
        };
        let server = ServerConfig {
            served_model_names: vec!["tinytales".to_owned(), "tale/alias".to_owned()],
            model_root: "embedded".to_owned(),
            version: "0.0.0".to_owned(),
            ..ServerConfig::default()
        };
        Self { engine, server, step_time: Duration::ZERO, tokenizer: true, template: None }
    }
}

impl Setup {
    pub fn engine(&self) -> EngineHandle {
        let backend = Parrot::new(self.engine.step_limits(), self.engine.pools, self.step_time);
        Engine::start(Box::new(backend), self.engine.clone()).unwrap()
    }

    pub fn text(&self) -> TextEngine {
        let tokenizer = self.tokenizer.then(tokenizer);
        let template = self.tokenizer.then(|| self.template.map_or_else(template, compiled));
        // Greedy, unless a request says otherwise: the parrot then repeats exactly.
        let defaults = SamplingDefaults { temperature: 0.0, ..SamplingDefaults::default() };
        TextEngine::new(self.engine(), tokenizer, template, defaults)
    }

    pub fn state(&self) -> Arc<AppState> {
        Arc::new(AppState::new(self.text(), self.server.clone()).unwrap())
    }

    pub fn client(&self) -> Client {
        Client { router: router(self.state()) }
    }
}

/// Calls the API without a network.
pub struct Client {
    router: Router,
}

/// An answer.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The JSON with what differs from run to run replaced.
    pub fn redacted(&self) -> Value {
        redact(self.json())
    }

    /// The events of a stream, redacted; `[DONE]` as a string.
    pub fn events(&self) -> Vec<Value> {
        let events = self.body.split_terminator("\n\n").map(|event| match event.strip_prefix("data: ") {
            Some("[DONE]") => Value::from("[DONE]"),
            Some(json) => redact(serde_json::from_str(json).unwrap()),
            None => panic!("no event: {event:?}"),
        });
        events.collect()
    }

    /// Status, and what is wrong with which field.
    pub fn error(&self) -> (u16, String, Option<String>) {
        let json = self.json();
        let error = &json["error"];
        let message = error["message"].as_str().unwrap().to_owned();
        (self.status.as_u16(), message, error["param"].as_str().map(str::to_owned))
    }
}

fn redact(mut json: Value) -> Value {
    for field in ["id", "created", "system_fingerprint"] {
        if json.get("object").is_some() && json.get(field).is_some() {
            json[field] = Value::from(format!("[{field}]"));
        }
    }
    round(&mut json);
    json
}

/// Rounds log-probabilities to what doesn't depend on how the last bits were computed.
fn round(json: &mut Value) {
    match json {
        Value::Number(number) if number.is_f64() => {
            let value = number.as_f64().unwrap();
            *json = Value::from((value * 1000.0).round() / 1000.0);
        }
        Value::Array(items) => items.iter_mut().for_each(round),
        Value::Object(fields) => fields.values_mut().for_each(round),
        _ => {}
    }
}

impl Client {
    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, json: &Value) -> Reply {
        self.post_bytes(path, json.to_string()).await
    }

    pub async fn post_bytes(&self, path: &str, body: impl Into<Body>) -> Reply {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request.body(body.into()).unwrap()).await
    }

    pub async fn method(&self, method: &Method, path: &str) -> Reply {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        self.send(request.body(Body::from("{}")).unwrap()).await
    }

    /// The one answer's text to a completions request.
    pub async fn text(&self, json: &Value) -> String {
        let reply = self.post("/v1/completions", json).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        reply.json()["choices"][0]["text"].as_str().unwrap().to_owned()
    }
}

/// A server that listens.
pub struct Server {
    pub address: String,
    pub state: Arc<AppState>,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<io::Result<()>>,
}

impl Server {
    pub async fn start(setup: &Setup, options: ServeOptions) -> Self {
        let listener = Listener::tcp("127.0.0.1:0").await.unwrap();
        let address = listener.url().trim_start_matches("http://").to_owned();
        let state = setup.state();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(vec![listener], state.clone(), options, shutdown));
        Self { address, state, stop: Some(stop), task }
    }

    /// Tells it to end.
    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Opens a connection and sends bytes.
    pub async fn open(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// Opens a connection and sends a request, whose answer ends the connection.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n"
        );
        self.open(format!("{head}{body}").as_bytes()).await
    }

    /// The whole answer to a request, head and body.
    pub async fn get(&self, path: &str) -> String {
        read_all(self.request("GET", path, "").await).await
    }
}

/// Everything that comes until the server closes the connection.
pub async fn read_all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Waits until something is so, for at most ten seconds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("in vain waited until {what}");
}
