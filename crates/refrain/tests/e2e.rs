//! The real server and its real clients, over real sockets.

mod common;

use common::{Server, changed_tinytales, edit_config};
use refrain_testkit::{python, workspace_root};
use std::io::{BufRead, Read};
use std::process::Command;
use std::time::Duration;

/// Runs a script of `tests/e2e` against a server with the embedded model.
fn run_script(name: &str, flags: &[&str]) {
    let Some(python) = python() else { return };
    let server = Server::start(flags);
    let script = workspace_root().join("crates/refrain/tests/e2e").join(name);
    // Without .pyc files beside the sources.
    let output = Command::new(python).arg("-B").arg(script).arg(&server.url).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_openai_package_is_served() {
    run_script("openai_client.py", &[]);
}

#[test]
fn bad_requests_are_refused_and_the_server_goes_on() {
    run_script("bad_requests.py", &["--max-num-seqs", "4", "--max-model-len", "6000"]);
}

#[test]
fn sigterm_lets_running_requests_finish() {
    let mut server = Server::start(&["--max-model-len", "2048"]);
    let body = r#"{"prompt": "Once", "max_tokens": 400, "ignore_eos": true, "stream": true}"#;
    let mut stream = server.send("POST", "/v1/completions", body);
    let mut line = String::new();
    while !line.starts_with("data:") {
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "the stream ended before its first token");
    }
    server.terminate();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""finish_reason":"length""#) && rest.contains("data: [DONE]"), "{rest}");
    assert!(server.wait(Duration::from_secs(60)).success());
}

#[test]
fn requests_that_take_too_long_are_ended_with_an_error() {
    let mut server = Server::start(&["--shutdown-timeout", "0"]);
    let body = r#"{"prompt": "Once", "max_tokens": 8000, "ignore_eos": true, "stream": true}"#;
    let mut stream = server.send("POST", "/v1/completions", body);
    let mut line = String::new();
    while !line.starts_with("data:") {
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "the stream ended before its first token");
    }
    server.terminate();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""error""#) && rest.contains("shutting down"), "{rest}");
    assert!(server.wait(Duration::from_secs(60)).success());
}

#[test]
fn caches_of_eight_bits_hold_twice_as_many_tokens() {
    let blocks = ["bfloat16", "fp8", "fp8_e5m2"].map(|dtype| {
        let server =
            Server::start(&["--max-num-seqs", "4", "--kv-cache-memory-bytes", "24M", "--kv-cache-dtype", dtype]);
        let body = r#"{"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "ignore_eos": true}"#;
        let answer = server.ask("POST", "/v1/completions", body);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"completion_tokens\":40"), "{answer}");
        let info = server.ask("GET", "/server_info", "");
        assert!(info.contains(if dtype == "fp8" { "fp8_e4m3" } else { dtype }), "{info}");
        let total = info.split("\"kv_blocks_total\":").nth(1).and_then(|rest| rest.split(',').next());
        total.and_then(|number| number.parse::<usize>().ok()).unwrap_or_else(|| panic!("{info}"))
    });
    // A byte for each element instead of two, and one for each row of 256.
    assert_eq!(blocks[1], blocks[2]);
    assert!(blocks[1] * 100 > blocks[0] * 190 && blocks[1] <= blocks[0] * 2, "{blocks:?}");
}

/// A launch command written for vLLM works as it stands, with `refrain serve` in front.
#[test]
fn launch_commands_of_vllm_work() {
    let folder = changed_tinytales(|folder| edit_config(folder, "max_position_embeddings", 65536.into()));
    let model = folder.path().to_str().unwrap();
    let flags = "--tensor-parallel-size 1 --dtype bfloat16 --max-model-len 32768 --gpu-memory-utilization 0.90 \
                 --max-num-seqs 1 --skip-mm-profiling";
    for eager in [&["--enforce-eager"][..], &[]] {
        let flags = ["--model", model].into_iter().chain(flags.split_whitespace()).chain(eager.iter().copied());
        let server = Server::start(&flags.collect::<Vec<_>>());
        let answer = server.ask("POST", "/v1/completions", r#"{"prompt": "Once", "max_tokens": 3}"#);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(server.ask("GET", "/v1/models", "").contains("\"max_model_len\":32768"));
    }
}
