//! Clients that go, servers that end: over real connections.

use super::support::{Server, Setup, read_all, until};
use crate::{Listener, ServeOptions, serve};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// A request that runs until the context is full: with 5 ms a step, five seconds.
fn endless(stream: bool) -> String {
    json!({"prompt": "On and on", "max_tokens": 1000, "ignore_eos": true, "stream": stream}).to_string()
}

fn slow() -> Setup {
    Setup { step_time: Duration::from_millis(5), ..Setup::default() }
}

fn patient(shutdown: Duration) -> ServeOptions {
    ServeOptions { shutdown_timeout: shutdown, ..ServeOptions::default() }
}

async fn running(server: &Server, requests: usize) {
    let engine = server.state.engine().clone();
    until("the requests run", || engine.load().running == requests).await;
}

async fn forgotten(server: &Server) {
    let engine = server.state.engine().clone();
    until("nothing of the requests is left", || {
        let load = engine.load();
        load.running + load.waiting + load.kv_blocks_used + load.slots_used == 0
    })
    .await;
    let state = server.state.clone();
    until("no request is in flight", || state.in_flight() == 0).await;
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Reads until some text has come.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the connection ended before {text:?}: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    seen
}

#[tokio::test]
async fn a_client_that_goes_takes_its_request_with_it() {
    let server = Server::start(&slow(), ServeOptions::default()).await;
    for stream in [true, false] {
        for path in ["/v1/completions"] {
            let mut connection = server.request("POST", path, &endless(stream)).await;
            if stream {
                read_until(&mut connection, "data: ").await;
            }
            running(&server, 1).await;
            let steps = server.state.engine().load().steps;
            drop(connection);
            forgotten(&server).await;
            let more = server.state.engine().load().steps - steps;
            assert!(more < 600, "{more} steps were made for nobody");
        }
    }
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_counts_as_gone() {
    let server = Server::start(&slow(), ServeOptions::default()).await;
    for stream in [true, false] {
        let mut connection = server.request("POST", "/v1/completions", &endless(stream)).await;
        running(&server, 1).await;
        connection.shutdown().await.unwrap();
        assert!(!read_all(connection).await.contains("\"finish_reason\":\"length\""));
        forgotten(&server).await;
    }
}

#[tokio::test]
async fn a_storm_of_clients_that_go_leaves_nothing_behind() {
    let server = Server::start(&slow(), ServeOptions::default()).await;
    for round in 0..4 {
        let mut connections = Vec::new();
        for index in 0..20 {
            connections.push(server.request("POST", "/v1/completions", &endless(index % 2 == 0)).await);
        }
        tokio::time::sleep(Duration::from_millis(20 * round)).await;
        drop(connections);
    }
    forgotten(&server).await;
    let answer = read_all(server.request("POST", "/v1/completions", r#"{"prompt": "after"}"#).await).await;
    assert_eq!(status(&answer), 200);
}

#[tokio::test]
async fn connections_are_kept_for_more_requests() {
    let server = Server::start(&Setup::default(), ServeOptions::default()).await;
    let mut connection = server.open(b"").await;
    for _ in 0..3 {
        connection.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        read_until(&mut connection, "\"0.0.0\"}").await;
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let mut setup = slow();
    setup.engine.max_num_seqs = 1;
    setup.engine.max_num_queued_reqs = Some(1);
    let server = Server::start(&setup, ServeOptions::default()).await;
    let _running = server.request("POST", "/v1/completions", &endless(true)).await;
    running(&server, 1).await;
    let _waiting = server.request("POST", "/v1/completions", &endless(true)).await;
    let engine = server.state.engine().clone();
    until("one waits", || engine.load().waiting == 1).await;
    let answer = read_all(server.request("POST", "/v1/completions", &endless(false)).await).await;
    assert_eq!(status(&answer), 429);
    let error: Value = serde_json::from_str(body(&answer)).unwrap();
    assert_eq!(error["error"]["code"], "queue_full");
    let after = answer.to_lowercase().split_once("retry-after: ").unwrap().1.lines().next().unwrap().to_owned();
    assert!((1..=60).contains(&after.parse::<u32>().unwrap()));
}

#[tokio::test]
async fn more_answers_than_can_be_held_are_not_told_to_come_back() {
    let mut setup = Setup::default();
    setup.engine.max_num_seqs = 4;
    let unlimited = setup.client();
    setup.engine.max_num_queued_reqs = Some(1);
    let client = setup.client();
    for request in [json!({"prompt": ["a", "b", "c"], "n": 2}), json!({"prompt": "a", "n": 6})] {
        let reply = client.post("/v1/completions", &request).await;
        assert!(!reply.headers.contains_key("retry-after"));
        let (status, message, _) = reply.error();
        assert_eq!(status, 400, "{message}");
        assert!(message.contains("asks for 6 answers") && message.contains("at most 5 at a time"), "{message}");
        assert_eq!(unlimited.post("/v1/completions", &request).await.status, 200);
    }
    // As many as can run go through.
    assert_eq!(client.post("/v1/completions", &json!({"prompt": ["a", "b"], "n": 2})).await.status, 200);
}

#[tokio::test]
async fn answers_to_one_request_don_t_keep_each_other_out() {
    let mut setup = Setup::default();
    setup.engine.max_num_seqs = 1;
    setup.engine.max_num_queued_tokens = Some(1);
    let request = json!({"prompt": ["On", "a"], "n": 2, "max_tokens": 2});
    assert_eq!(setup.client().post("/v1/completions", &request).await.status, 200);
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut server = Server::start(&slow(), patient(Duration::from_secs(60))).await;
    let request = json!({"prompt": "On", "max_tokens": 300, "ignore_eos": true, "stream": true}).to_string();
    let mut connection = server.request("POST", "/v1/completions", &request).await;
    read_until(&mut connection, "data: ").await;
    assert_eq!(status(&server.get("/readyz").await), 200);
    server.stop();
    let state = server.state.clone();
    until("the server drains", || state.is_draining()).await;
    let ready = server.get("/readyz").await;
    assert_eq!(status(&ready), 503);
    assert!(ready.contains("shutting down"));
    assert_eq!(status(&server.get("/livez").await), 200);
    let refused = read_all(server.request("POST", "/v1/completions", &request).await).await;
    assert_eq!(status(&refused), 503);
    assert!(refused.contains("shutting_down"));
    let rest = read_all(connection).await;
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    server.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(&server.address).await.is_err());
}

#[tokio::test]
async fn after_the_timeout_the_rest_is_ended_with_an_error() {
    for stream in [true, false] {
        let mut server = Server::start(&slow(), patient(Duration::from_millis(50))).await;
        let connection = server.request("POST", "/v1/completions", &endless(stream)).await;
        running(&server, 1).await;
        server.stop();
        let answer = read_all(connection).await;
        assert_eq!(status(&answer), if stream { 200 } else { 503 });
        assert!(answer.contains("\"code\":\"shutting_down\""), "{answer}");
        server.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_idle_server_ends_at_once_though_connections_are_open() {
    let mut server = Server::start(&Setup::default(), patient(Duration::from_secs(600))).await;
    let _idle = server.open(b"").await;
    let _half = server.open(b"GET /version HT").await;
    assert_eq!(status(&server.get("/health").await), 200);
    server.stop();
    tokio::time::timeout(Duration::from_secs(30), server.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_server_whose_engine_has_gone_ends_with_an_error() {
    let server = Server::start(&Setup::default(), ServeOptions::default()).await;
    server.state.engine().stop();
    let error = server.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("engine"), "{error}");
}

#[tokio::test]
async fn slow_heads_are_cut_off_and_hold_nobody_up() {
    let options = ServeOptions { header_timeout: Duration::from_millis(200), ..ServeOptions::default() };
    let server = Server::start(&Setup::default(), options).await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        slow.push(server.open(b"GET /version HTTP/1.1\r\nx: ").await);
    }
    assert_eq!(status(&server.get("/livez").await), 200);
    for connection in slow {
        let mut rest = Vec::new();
        let mut connection = connection;
        // Ends, be it with an answer or without.
        let _ = tokio::time::timeout(Duration::from_secs(30), connection.read_to_end(&mut rest)).await.unwrap();
    }
}

#[tokio::test]
async fn a_unix_socket_serves_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("refrain.sock");
    // What a server left that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::unix(&path).unwrap();
    assert_eq!(listener.url(), format!("unix:{}", path.display()));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Listener::unix(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let server = tokio::spawn(serve(vec![listener], Setup::default().state(), ServeOptions::default(), shutdown));
    let mut connection = UnixStream::connect(&path).await.unwrap();
    connection.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("{\"version\":\"0.0.0\"}"), "{answer}");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    assert!(!path.exists());
}
