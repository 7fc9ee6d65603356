//! The program as a user runs it, with the embedded model.

mod bench;
mod chat;
mod command_line;
mod serve;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

/// The program with nothing of the caller's environment that could change what it does.
fn refrain(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refrain"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().into_owned();
        if text.starts_with("REFRAIN_") || text.starts_with("HF_") || text == "VLLM_API_KEY" || text == "OPENAI_API_KEY"
        {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it to its end.
fn run(arguments: &[&str]) -> Output {
    refrain(arguments).output().expect("the program starts")
}

/// Runs it to its end with something piped in.
fn run_with_input(arguments: &[&str], input: &str) -> Output {
    let mut command = refrain(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads its input");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Its standard output, after it has succeeded.
fn output_of(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// A running server; killed when dropped.
struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it said when it was ready.
    greeting: String,
    /// Where it listens.
    url: String,
}

impl Server {
    /// Starts `refrain serve --port 0` with more flags and waits until it is ready.
    fn start(flags: &[&str]) -> Self {
        Self::spawn(refrain(&["serve", "--port", "0"]).args(flags).stderr(Stdio::null()))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut greeting = String::new();
        for _ in 0..2 {
            stdout.read_line(&mut greeting).expect("it speaks UTF-8");
        }
        let url = greeting.split_whitespace().find(|word| word.starts_with("http://")).unwrap_or_default().to_owned();
        assert!(!url.is_empty(), "no address in {greeting:?}");
        Self { child, stdout, greeting, url }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill is there").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
