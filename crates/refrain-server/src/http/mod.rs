//! HTTP around the engine: routes, access, listeners.

mod router;
mod serve;
mod state;

pub use router::router;
pub use serve::{Listener, ServeOptions, serve};
pub use state::{AppState, ServerConfig};
