//! The OpenAI-compatible HTTP API and the text front end of the engine.
//!
//! [`text`] turns prompts into tokens and tokens into text; [`api`] is the JSON; [`http`] is routes, access, listening
//! and draining. Every endpoint makes the one [`GenerateRequest`] and hands it to the one [`TextEngine`], so that a
//! rule that holds for one holds for all.
#![forbid(unsafe_code)]

pub mod api;
pub mod http;
pub mod text;

#[cfg(test)]
mod tests;

pub use http::{AppState, ConfigError, Listener, ServeOptions, ServerConfig, router, serve};
pub use text::{GenerateRequest, Prompt, SamplingDefaults, TextEngine, TextError, TextEvent, TextStream};
