//! The OpenAI-compatible HTTP API and the text front end of the engine.
#![forbid(unsafe_code)]

pub mod api;
pub mod http;
pub mod text;

#[cfg(test)]
mod tests;

pub use http::{AppState, ConfigError, Listener, ServeOptions, ServerConfig, router, serve};
pub use text::{GenerateRequest, Prompt, SamplingDefaults, TextEngine, TextError, TextEvent, TextStream};
