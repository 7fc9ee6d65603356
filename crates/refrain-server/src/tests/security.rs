//! Who may come in, and how much they may bring.

use super::support::{Client, Setup};
use crate::ServerConfig;
use crate::http::{Access, routes};
use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;

fn with_keys() -> Client {
    let mut setup = Setup::default();
    setup.server.api_keys = vec!["first-key".to_owned(), "second-key".to_owned()];
    setup.client()
}

/// A path of a route with its variables filled in.
fn example(path: &str) -> String {
    path.replace("{*id}", "tinytales")
}

#[tokio::test]
async fn every_route_but_the_probes_wants_a_key() {
    let client = with_keys();
    let mut open = Vec::new();
    for route in routes() {
        let reply = client.method(&route.method, &example(route.path)).await;
        match route.access {
            Access::Key => assert_eq!(reply.status, 401, "{}", route.path),
            Access::Open => {
                assert_eq!(reply.status, 200, "{}", route.path);
                open.push(route.path);
            }
        }
    }
    assert_eq!(open, ["/health", "/ping", "/livez", "/readyz", "/version", "/load", "/metrics"]);
}

#[tokio::test]
async fn a_key_must_be_one_of_them_exactly() {
    let client = with_keys();
    let get = async |authorization: &str| {
        let request = Request::get("/v1/models").header("authorization", authorization);
        client.send(request.body(Body::empty()).unwrap()).await
    };
    for good in ["Bearer first-key", "bearer second-key"] {
        assert_eq!(get(good).await.status, 200, "{good}");
    }
    for bad in [
        "first-key",
        "Bearer",
        "Bearer ",
        "Bearer first-ke",
        "Bearer first-key2",
        "Basic first-key",
        "Bearer FIRST-KEY",
        "Bearer \u{e9}",
    ] {
        let reply = get(bad).await;
        assert_eq!(reply.status, 401, "{bad}");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
    }
}

#[tokio::test]
async fn no_spelling_of_a_path_gets_around_the_key() {
    let mut setup = Setup::default();
    setup.server.api_keys = vec!["k".to_owned()];
    setup.server.root_path = "/llm".to_owned();
    let client = setup.client();
    for path in [
        "/v1/models",
        "/llm/v1/models",
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models/",
        "/%761/models",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/v1/models/tale%2Falias",
        "/v1/models?x=/health",
        "/llm/llm/v1/models",
        "/llm/server_info",
        "http://other/v1/models",
        "/v1/models#/health",
    ] {
        let Ok(request) = Request::get(path).body(Body::empty()) else { continue };
        let reply = client.send(request).await;
        assert!([401, 404].contains(&reply.status.as_u16()), "{path}: {}", reply.status);
    }
    assert_eq!(client.get("/llm/health").await.status, 200);
}

#[tokio::test]
async fn bodies_have_a_limit_and_a_type() {
    let setup = Setup { server: ServerConfig { max_body_bytes: 2000, ..Setup::default().server }, ..Setup::default() };
    let client = setup.client();
    let long = json!({"prompt": "x".repeat(3000)}).to_string();
    let (status, message, _) = client.post_bytes("/v1/completions", long.clone()).await.error();
    assert_eq!(status, 413);
    assert!(message.contains("2000"), "{message}");
    // Without a length it is noticed while reading.
    let pieces = futures_util::stream::iter(vec![Ok::<_, std::io::Error>(long)]);
    assert_eq!(client.post_bytes("/v1/completions", Body::from_stream(pieces)).await.status, 413);
    for (kind, status) in [
        (Some("application/json"), 200),
        (Some("Application/JSON; charset=utf-8"), 200),
        (Some("text/plain"), 415),
        (Some("application/x-www-form-urlencoded"), 415),
        (None, 415),
    ] {
        let mut request = Request::post("/v1/completions");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let reply = client.send(request.body(Body::from(r#"{"prompt": "a"}"#)).unwrap()).await;
        assert_eq!(reply.status.as_u16(), status, "{kind:?}: {}", reply.body);
    }
    let squeezed = Request::post("/v1/completions").header("content-type", "application/json");
    let squeezed = squeezed.header("content-encoding", "gzip").body(Body::from("\x1f")).unwrap();
    assert_eq!(client.send(squeezed).await.status, 415);
}

#[tokio::test]
async fn web_pages_may_call_from_the_allowed_origins_only() {
    let allowed = async |origins: &[&str], origin: &str| {
        let mut setup = Setup::default();
        setup.server.api_keys = vec!["k".to_owned()];
        setup.server.allowed_origins = origins.iter().map(|&origin| origin.to_owned()).collect();
        let preflight = Request::builder()
            .method(Method::OPTIONS)
            .uri("/v1/chat/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
        let reply = setup.client().send(preflight.body(Body::empty()).unwrap()).await;
        let header = |name: &str| reply.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        if let Some(headers) = header("access-control-allow-headers") {
            assert!(headers.contains("authorization"), "{headers}");
        }
        header("access-control-allow-origin")
    };
    assert_eq!(allowed(&[], "https://a.example").await, None);
    assert_eq!(allowed(&["*"], "https://a.example").await.as_deref(), Some("*"));
    let one = ["https://a.example"];
    assert_eq!(allowed(&one, "https://a.example").await.as_deref(), Some("https://a.example"));
    assert_eq!(allowed(&one, "https://b.example").await, None);
}

#[tokio::test]
async fn request_ids_are_echoed_when_enabled() {
    let mut setup = Setup::default();
    setup.server.enable_request_id_headers = true;
    let client = setup.client();
    let send = async |id: Option<&str>| {
        let mut request = Request::post("/v1/completions").header("content-type", "application/json");
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        client.send(request.body(Body::from(r#"{"prompt": "a"}"#)).unwrap()).await
    };
    let reply = send(Some("abc-1")).await;
    assert_eq!(reply.headers["x-request-id"], "abc-1");
    assert_eq!(reply.json()["id"], "cmpl-abc-1");
    let reply = send(None).await;
    let id = reply.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!((id.len(), reply.json()["id"].as_str().unwrap()), (32, format!("cmpl-{id}").as_str()));
    // What is no name is not taken for one.
    assert_eq!(send(Some("two words")).await.headers["x-request-id"].len(), 32);
    assert!(Setup::default().client().get("/health").await.headers.get("x-request-id").is_none());
}

#[tokio::test]
async fn a_request_id_of_the_body_counts_where_the_header_has_none() {
    for enabled in [true, false] {
        let mut setup = Setup::default();
        setup.server.enable_request_id_headers = enabled;
        let client = setup.client();
        let send = async |header: Option<&str>, body: &'static str| {
            let mut request = Request::post("/v1/completions").header("content-type", "application/json");
            if let Some(id) = header {
                request = request.header("x-request-id", id);
            }
            let reply = client.send(request.body(Body::from(body)).unwrap()).await;
            let header = reply.headers.get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
            assert_eq!(header.is_some(), enabled);
            (header, reply)
        };
        let body = r#"{"prompt": "a", "request_id": "of-body"}"#;
        for (header, effective) in [(None, "of-body"), (Some("two words"), "of-body"), (Some("of-head"), "of-head")] {
            let (echoed, reply) = send(header, body).await;
            assert_eq!(reply.json()["id"], format!("cmpl-{effective}"));
            assert!(echoed.is_none_or(|id| id == effective));
        }
        let (echoed, reply) = send(None, r#"{"prompt": "a", "request_id": "of-body", "stream": true}"#).await;
        assert!(reply.body.contains(r#""id":"cmpl-of-body""#), "{}", reply.body);
        assert!(echoed.is_none_or(|id| id == "of-body"));
        // Also where the request is refused after its body was read.
        let (echoed, reply) = send(None, r#"{"prompt": "", "request_id": "of-body"}"#).await;
        assert_eq!(reply.status, 400);
        assert!(echoed.is_none_or(|id| id == "of-body"));
    }
}

#[tokio::test]
async fn settings_that_can_t_be_are_refused() {
    type Break = fn(&mut ServerConfig);
    let cases: [(&str, Break); 5] = [
        ("served_model_names", |config| config.served_model_names.clear()),
        ("api_keys", |config| config.api_keys = vec![String::new()]),
        ("api_keys", |config| config.api_keys = vec!["a\nb".to_owned()]),
        ("allowed_origins", |config| config.allowed_origins = vec!["example.com".to_owned()]),
        ("root_path", |config| config.root_path = "/{x}".to_owned()),
    ];
    for (setting, damage) in cases {
        let mut config = Setup::default().server;
        damage(&mut config);
        assert_eq!(config.validate().unwrap_err().setting, setting);
    }
}

#[tokio::test]
async fn what_the_server_says_about_itself() {
    let mut setup = Setup::default();
    setup.server.server_info = json!({"settings": {"max_num_seqs": {"value": 8, "from": "default"}}});
    let client = setup.client();
    let mut models = client.get("/v1/models").await.json();
    for model in models["data"].as_array_mut().unwrap() {
        model["created"] = json!("[created]");
    }
    insta::assert_json_snapshot!("models", models);
    assert_eq!(client.get("/v1/models/tale/alias").await.json()["id"], "tale/alias");
    assert_eq!(client.get("/version").await.json(), json!({"version": "0.0.0"}));
    assert_eq!(client.get("/load").await.json(), json!({"server_load": 0}));
    assert_eq!(client.get("/health").await.body, "");
    assert_eq!(client.get("/readyz").await.json(), json!({"status": "ready"}));
    insta::assert_json_snapshot!("server_info", client.get("/server_info").await.json());
    let metrics = client.get("/metrics").await.body;
    for name in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"] {
        assert!(metrics.contains(&format!("{name}{{model_name=\"tinytales\"")), "{name} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_panic_in_a_handler_is_an_answer_of_500() {
    use axum::routing::get;
    use tower::ServiceExt;
    async fn broken() -> &'static str {
        panic!("secret details")
    }
    let router: axum::Router = crate::http::with_panic_guard(axum::Router::new().route("/", get(broken)));
    let response = router.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 500);
    let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("server_error") && !text.contains("secret"), "{text}");
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn requests_are_logged_but_not_where_that_is_disabled() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut setup = Setup::default();
    setup.server.disable_access_log_for_endpoints = vec!["/health".to_owned()];
    let client = setup.client();
    client.get("/health").await;
    client.get("/version?secret=1").await;
    client.get("/nowhere").await;
    let stream = json!({"prompt": "Hi", "stream": true});
    client.post("/v1/completions", &stream).await;
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for line in ["GET /version 200 ", "GET /nowhere 404 ", "POST /v1/completions 200 "] {
        assert_eq!(log.matches(line).count(), 1, "{line} in {log}");
    }
    assert!(!log.contains("/health") && !log.contains("secret") && !log.contains("client gone"), "{log}");
}
