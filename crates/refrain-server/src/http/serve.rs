//! Listening, and ending well.

use super::{AppState, router};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long connections may take to send what is left of their answers once everything has been answered.
const LAST_BYTES: Duration = Duration::from_secs(2);
/// How long requests may take to end once the engine has been stopped.
const LAST_STEP: Duration = Duration::from_secs(10);

/// Where the server listens.
#[derive(Debug)]
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a Unix socket, whose file is removed at the end.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens on a TCP address such as `127.0.0.1:8000`; port 0 takes any free one.
    ///
    /// # Errors
    /// When the address can't be had.
    pub async fn tcp(address: &str) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self::Tcp)
    }

    /// Listens on a Unix socket that only its owner can use. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    /// When the path can't be used, or a server listens there.
    pub fn unix(path: &Path) -> io::Result<Self> {
        if path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens on this socket"));
            }
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// For people: `http://127.0.0.1:8000` or `unix:/path`.
    pub fn url(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("http://{address}"),
                Err(_) => "http://?".to_owned(),
            },
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }
}

/// How the server ends, and how patient it is.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// How long running requests may go on once the server is told to end; then they fail.
    pub shutdown_timeout: Duration,
    /// How long a client may take to send the head of a request.
    pub header_timeout: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { shutdown_timeout: Duration::from_secs(30), header_timeout: Duration::from_secs(30) }
    }
}

/// Serves the API until `shutdown` is ready, then drains: `/readyz` and new requests answer 503 at once, running
/// requests finish, and after the timeout the engine fails the rest. One whose step doesn't end is abandoned.
///
/// # Errors
/// When the engine ends without having been told to.
pub async fn serve(
    listeners: Vec<Listener>,
    state: Arc<AppState>,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let connections = Arc::new(GracefulShutdown::new());
    let sockets: Vec<PathBuf> = listeners.iter().filter_map(Listener::socket_file).collect();
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, router(state.clone()), connections.clone(), options.header_timeout));
    }
    let end = tokio::select! {
        () = shutdown => Ok(()),
        () = state.engine().stopped() => Err(io::Error::other("the engine has stopped unexpectedly")),
    };
    state.drain();
    state.engine().shutdown();
    if timeout(options.shutdown_timeout, state.idle()).await.is_err() {
        tracing::warn!("{} requests did not finish in time and are ended", state.in_flight());
        state.engine().stop();
        // They still have to be told.
        if timeout(LAST_STEP, state.idle()).await.is_err() {
            tracing::error!("the present step does not end: the engine is left behind");
            state.engine().abandon();
            let _ = timeout(LAST_BYTES, state.idle()).await;
        }
    }
    accepting.shutdown().await;
    for socket in sockets {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(socket);
    }
    if let Ok(connections) = Arc::try_unwrap(connections) {
        let _ = timeout(LAST_BYTES, connections.shutdown()).await;
    }
    end
}

impl Listener {
    fn socket_file(&self) -> Option<PathBuf> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(_, path) => Some(path.clone()),
        }
    }
}

/// Takes connections until the task is ended.
async fn accept(listener: Listener, router: Router, connections: Arc<GracefulShutdown>, header_timeout: Duration) {
    loop {
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                // Tokens are sent one by one: none must wait for the next.
                let _ = stream.set_nodelay(true);
                talk(stream, &router, &connections, header_timeout);
            }),
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                talk(stream, &router, &connections, header_timeout);
            }),
        };
        if let Err(error) = accepted {
            // Mostly too many open files: some will be closed soon.
            tracing::warn!("can't accept a connection: {error}");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Serves one connection in a task of its own.
fn talk(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: &Router,
    connections: &GracefulShutdown,
    header_timeout: Duration,
) {
    let service = TowerToHyperService::new(router.clone());
    // No `half_close`: a client that closes its sending side looks as one that has gone until something is written to
    // it, and an answer in one piece is written when it is complete. Both count as gone, as they do with vLLM.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a connection ended: {error}");
        }
    });
}
