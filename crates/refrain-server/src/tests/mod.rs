//! The whole server on an engine whose device repeats the prompt.

mod chat;
mod completions;
mod errors;
mod lifecycle;
mod parrot;
mod parsing;
mod security;
mod streaming;
mod support;
mod text;
