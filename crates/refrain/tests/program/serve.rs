use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;

use super::{Server, refrain, run, text};

/// Sends one HTTP request and gives the status and the body.
fn ask(url: &str, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Single-quoted argument of `flag` in a shell line.
fn quoted<'a>(line: &'a str, flag: &str) -> &'a str {
    line.split_once(&format!("{flag} '")).and_then(|(_, rest)| rest.split_once('\'')).map(|(text, _)| text).expect(flag)
}

#[test]
fn the_line_that_it_prints_can_be_copied() {
    let server = Server::start(&["--served-model-name", "tales", "other"]);
    let curl = server.greeting.lines().last().expect("two lines");
    assert!(curl.starts_with(&format!("curl {}/v1/chat/completions ", server.url)), "{curl}");
    let (status, answer) = ask(&server.url, "POST", "/v1/chat/completions", "", quoted(curl, "-d"));
    assert_eq!(status, 200, "{answer}");
    let json = answer.find('{').map(|start| &answer[start..=answer.rfind('}').expect("an end")]).expect("JSON");
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(json["model"], "tales");
    assert!(json["choices"][0]["message"]["content"].as_str().is_some_and(|text| text.len() > 20), "{json}");
    let (status, info) = ask(&server.url, "GET", "/v1/models", "", "");
    assert!(status == 200 && info.contains("other"), "{info}");
}

#[test]
fn keys_of_either_variable_guard_the_api() {
    for (variable, key) in [("VLLM_API_KEY", "one"), ("REFRAIN_API_KEY", "two")] {
        let mut command = refrain(&["serve", "--port", "0", "--max-num-seqs", "1", "--max-model-len", "512"]);
        let server = Server::spawn(command.env(variable, key).stderr(Stdio::null()));
        assert!(!server.greeting.contains(key), "the key is shown");
        assert_eq!(ask(&server.url, "GET", "/v1/models", "", "").0, 401);
        let header = format!("Authorization: Bearer {key}\r\n");
        assert_eq!(ask(&server.url, "GET", "/v1/models", &header, "").0, 200);
    }
}

#[test]
fn it_ends_when_told_to() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&["--max-num-seqs", "2"]);
        server.signal(signal);
        let status = server.child.wait().expect("it ends");
        assert!(status.success(), "{signal}: {status}");
        let mut rest = String::new();
        server.stdout.read_to_string(&mut rest).expect("UTF-8");
        assert_eq!(rest, "", "only the greeting comes on standard output");
    }
}

#[test]
fn running_requests_are_finished_unless_told_twice() {
    let mut server = Server::start(&["--max-num-seqs", "1"]);
    let address = server.url.trim_start_matches("http://").to_owned();
    let body = r#"{"prompt": "Once", "max_tokens": 8000, "ignore_eos": true, "stream": true}"#;
    let mut stream = TcpStream::connect(&address).expect("the server listens");
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n");
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("it reads");
    let mut piece = [0; 64];
    stream.read_exact(&mut piece).expect("it answers");
    server.signal("TERM");
    // It goes on with the answer.
    let mut more = vec![0; 2000];
    stream.read_exact(&mut more).expect("it goes on");
    assert!(server.child.try_wait().expect("it can be asked").is_none(), "it has not ended");
    server.signal("TERM");
    assert_eq!(server.child.wait().expect("it ends").code(), Some(130));
}

#[test]
fn a_unix_socket_is_served_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("refrain.sock");
    let path = socket.to_str().expect("UTF-8");
    let mut command = refrain(&["serve", "--max-num-seqs", "1", "--uds", path]);
    let mut server = Server::spawn(command.stderr(Stdio::null()));
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("the server listens");
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.signal("TERM");
    assert!(server.child.wait().expect("it ends").success());
    assert!(!socket.exists());
}

#[test]
fn a_port_in_use_is_named_before_anything_is_loaded() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port().to_string();
    let output = run(&["serve", "--port", &port, "/no/such/model"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(&format!("127.0.0.1:{port} is in use")) && message.contains("--port"), "{message}");
}
