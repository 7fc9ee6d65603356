//! Listening, and ending well.

use super::AppState;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};

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
        let _ = path;
        todo!()
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
/// requests finish, and after the timeout the engine fails the rest.
///
/// # Errors
/// When there is no listener.
pub async fn serve(
    listeners: Vec<Listener>,
    state: Arc<AppState>,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let _ = (listeners, state, options, shutdown);
    todo!()
}
