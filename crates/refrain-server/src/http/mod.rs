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
#[cfg(test)]
pub(crate) use router::{Access, routes, with_panic_guard};
pub use serve::{Listener, ServeOptions, serve};
pub use state::{AppState, ConfigError, ServerConfig};
#[cfg(test)]
pub(crate) use tokenize::{parse_detokenize, parse_tokenize};
