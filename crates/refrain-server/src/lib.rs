//! The OpenAI-compatible HTTP API and the text front end of the engine
