//! `refrain serve`.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use refrain::cli::server::ServerArgs;
use refrain::cli::{Origin, ServeArgs};
use refrain::load::{Loaded, Settings};
use refrain_server::{AppState, Listener, ServeOptions, ServerConfig};
use serde_json::{Map, Value, json};

use super::{Invocation, Signals, load_engine, print, runtime};

/// Serves until it is told to end.
pub fn run(args: &ServeArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    let origins = args.server.origins().map_err(anyhow::Error::msg)?;
    let runtime = runtime()?;
    // An address that can't be had is known before minutes of loading, not after.
    drop(runtime.block_on(listen(&args.server))?);
    if let Some(path) = &args.server.uds {
        std::fs::remove_file(path).with_context(|| format!("can't remove {}", path.display()))?;
    }
    let config = ServerConfig {
        api_keys: args.server.api_keys(),
        allowed_origins: origins,
        root_path: args.server.root_path.clone().unwrap_or_default(),
        enable_request_id_headers: args.server.enable_request_id_headers,
        disable_access_log_for_endpoints: args.server.disable_access_log_for_endpoints.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..ServerConfig::default()
    };
    config.validate()?;
    let loaded = load_engine(&args.engine, None, invocation)?;
    let mut settings = server_settings(&args.server, loaded.engine.device().kind);
    settings.resolve(invocation.origins);
    if invocation.verbose {
        eprint!("Server\n{settings}");
    }
    let config = ServerConfig {
        served_model_names: loaded.served_model_names.clone(),
        model_root: loaded.model.name.clone(),
        server_info: server_info(&loaded, &settings),
        ..config
    };
    let options =
        ServeOptions { shutdown_timeout: Duration::from_secs(args.server.shutdown_timeout), ..ServeOptions::default() };
    runtime.block_on(async {
        let listener = listen(&args.server).await?;
        let greeting = greeting(&loaded, &args.server, &listener.url(), invocation.process_start.elapsed());
        let state = Arc::new(AppState::new(loaded.text.clone(), config)?);
        let watched = state.clone();
        let mut signals = Signals::new()?;
        let engine = loaded.engine.clone();
        let shutdown = async move {
            tokio::select! {
                () = signals.next() => {}
                () = engine.stopped() => {}
            }
            match watched.in_flight() {
                0 => {}
                1 => eprintln!("Stopping: one request is being finished. Ctrl-C again stops at once."),
                running => eprintln!("Stopping: {running} requests are being finished. Ctrl-C again stops at once."),
            }
            tokio::spawn(async move {
                signals.next().await;
                std::process::exit(130);
            });
        };
        print(greeting.as_bytes())?;
        let watchdog = watchdog_timeout(&args.server, loaded.engine.device().kind);
        let stuck = loaded.engine.clone();
        tokio::spawn(async move {
            let Some(timeout) = watchdog else { return };
            let elapsed = hang(|| stuck.stuck(timeout)).await.as_secs();
            eprintln!(
                "error: a step has taken {elapsed} s and has not ended: the device hangs; look for its driver's messages, \
                 then start the server again (--watchdog-timeout sets how long to wait)"
            );
            // Its requests get their errors, and the server ends.
            stuck.abandon();
        });
        let served = refrain_server::serve(vec![listener], state, options, shutdown).await;
        let outcome = outcome(loaded.engine.is_dead(), served);
        if let (Err(error), true) = (&outcome, loaded.engine.is_abandoned()) {
            eprintln!("error: {error:#}");
            refrain_device::end_process(1);
        }
        outcome
    })
}

/// Seconds on a GPU after which a step hangs, when nobody says otherwise.
const WATCHDOG_SECONDS: u64 = 300;

/// When a step is taken for one that never ends. A CPU's always do, however long they take.
fn watchdog_timeout(args: &ServerArgs, device: &str) -> Option<Duration> {
    let default = if device == "cpu" { 0 } else { WATCHDOG_SECONDS };
    Some(args.watchdog_timeout.unwrap_or(default)).filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// Waits until a step has taken far too long; gives how long that is by then.
async fn hang(stuck: impl Fn() -> Option<Duration>) -> Duration {
    loop {
        if let Some(elapsed) = stuck() {
            return elapsed;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// How serving has ended. Whoever watches this process starts it again when it fails, so it must not end as if all were
/// well, and what has happened to the engine says more than that the server has ended.
fn outcome(engine_is_dead: bool, served: std::io::Result<()>) -> anyhow::Result<()> {
    if engine_is_dead {
        bail!("the engine has died, the log says of what; start the server again");
    }
    served.context("the server failed")
}

async fn listen(args: &ServerArgs) -> anyhow::Result<Listener> {
    if let Some(path) = &args.uds {
        return Listener::unix(path).with_context(|| format!("can't listen on {}", path.display()));
    }
    let host = if args.host.contains(':') { format!("[{}]", args.host) } else { args.host.clone() };
    let address = format!("{host}:{}", args.port);
    match Listener::tcp(&address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!(
                "{address} is in use by another program; choose another port with --port, or a free one with --port 0"
            )
        }
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            bail!("{address} is no address of this machine; use --host 127.0.0.1 or --host 0.0.0.0")
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("{address} may not be listened on by this user; choose a port above 1023 with --port")
        }
        Err(error) => Err(error).with_context(|| format!("can't listen on {address}")),
    }
}

fn server_settings(args: &ServerArgs, device: &str) -> Settings {
    let mut settings = Settings::default();
    match &args.uds {
        Some(path) => settings.push("uds", path.display(), Origin::Given),
        None => {
            settings.push("host", &args.host, Origin::Given);
            settings.push("port", args.port, Origin::Given);
        }
    }
    let keys = match args.api_keys().len() {
        0 => "none: everybody may ask".to_owned(),
        count => format!("{count} (hidden)"),
    };
    let name = if args.api_key.is_empty() { "vllm_api_key" } else { "api_key" };
    settings.push(if args.api_keys().is_empty() { "api_key" } else { name }, keys, Origin::Given);
    settings.push("shutdown_timeout", format!("{} s", args.shutdown_timeout), Origin::Given);
    let watchdog =
        watchdog_timeout(args, device).map_or("never".to_owned(), |timeout| format!("{} s", timeout.as_secs()));
    settings.push_or("watchdog_timeout", args.watchdog_timeout.map(|_| watchdog.clone()), watchdog);
    if !args.allowed_origins.is_empty() {
        settings.push("allowed_origins", args.allowed_origins.join(" "), Origin::Given);
    }
    if let Some(path) = &args.root_path {
        settings.push("root_path", path, Origin::Given);
    }
    settings
}

/// What `/server_info` answers.
fn server_info(loaded: &Loaded, settings: &Settings) -> Value {
    let mut all: Map<String, Value> = loaded.report.settings.to_json();
    all.extend(settings.to_json());
    let device = loaded.engine.device();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": { "kind": device.kind, "name": device.name, "compute": device.compute },
        "settings": all,
        "memory": loaded.report.memory_json(),
        "passes": loaded.report.passes.to_json(),
        "graphs": loaded.report.graphs_json(),
    })
}

/// The line that says the server is ready, and one to try it with.
fn greeting(loaded: &Loaded, args: &ServerArgs, url: &str, since_start: Duration) -> String {
    let name = &loaded.served_model_names[0];
    // What listens on all addresses is reached at this one.
    let reachable = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
    let target = match &args.uds {
        Some(path) => format!("--unix-socket {} http://localhost", path.display()),
        None => reachable,
    };
    let key = if args.api_keys().is_empty() { "" } else { " -H 'Authorization: Bearer YOUR_KEY'" };
    let (path, body) = if loaded.text.has_template() {
        let messages = json!([{ "role": "user", "content": "Tell me a story about a fox." }]);
        ("chat/completions", json!({ "model": name, "messages": messages }))
    } else if loaded.text.tokenizer().is_some() {
        ("completions", json!({ "model": name, "prompt": "Once upon a time", "max_tokens": 64 }))
    } else {
        ("completions", json!({ "model": name, "prompt": [1, 2, 3], "max_tokens": 16 }))
    };
    format!(
        "Refrain {} serves {name} at {url} (ready after {:.1} s). Try:\ncurl {target}/v1/{path} -H 'Content-Type: \
         application/json'{key} -d '{body}'\n",
        env!("CARGO_PKG_VERSION"),
        since_start.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn a_step_is_looked_at_until_it_hangs() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let asked = Cell::new(0);
        let steps = [None, None, seconds(300)];
        let stuck = || {
            asked.set(asked.get() + 1);
            steps[asked.get() - 1]
        };
        assert_eq!((hang(stuck).await, asked.get()), (Duration::from_secs(300), 3));
        let of = |flags: &[&str], device| {
            let command = ["refrain", "serve"].iter().chain(flags).map(std::ffi::OsString::from);
            let Ok((refrain::cli::Cli { command: refrain::cli::Command::Serve(args), .. }, _)) =
                refrain::cli::parse(command)
            else {
                panic!("it is a command");
            };
            watchdog_timeout(&args.server, device)
        };
        assert_eq!((of(&[], "cpu"), of(&[], "cuda")), (None, seconds(300)));
        assert_eq!(of(&["--watchdog-timeout", "60"], "cpu"), seconds(60));
        assert_eq!(of(&["--watchdog-timeout", "0"], "hip"), None);
    }

    #[test]
    fn a_dead_engine_is_what_is_told() {
        let stopped = || Err(std::io::Error::other("the engine has stopped unexpectedly"));
        let told = |dead, served| crate::commands::message(&outcome(dead, served).unwrap_err());
        for served in [Ok(()), stopped()] {
            assert!(told(true, served).starts_with("the engine has died, the log says of what"));
        }
        assert_eq!(told(false, stopped()), "the server failed: the engine has stopped unexpectedly");
        outcome(false, Ok(())).unwrap();
    }
}
