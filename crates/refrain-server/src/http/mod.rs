//! HTTP around the engine: routes, access, listeners.

mod access;
mod body;
mod generate;
mod ids;
mod info;
mod router;
mod serve;
mod state;
mod tokenize;

pub use router::router;
pub use serve::{Listener, ServeOptions, serve};
pub use state::{AppState, ConfigError, ServerConfig};
