//! How the HTTP server listens and answers.

use std::path::PathBuf;

use clap::Args;

use super::engine::only;

/// How the HTTP server listens and answers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address to listen on; 0.0.0.0 is all of the machine's
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,

    /// Listen on this Unix socket instead
    #[arg(long, value_name = "PATH")]
    pub uds: Option<PathBuf>,

    /// Keys of which clients must send one; also read from VLLM_API_KEY
    #[arg(long, value_name = "KEY", num_args = 1..)]
    pub api_key: Vec<String>,

    /// The variable of vLLM; --api-key goes before it
    #[arg(long, value_name = "KEY", env = "VLLM_API_KEY", hide_env_values = true, hide = true)]
    pub vllm_api_key: Option<String>,

    /// Origins of web pages that may ask, as a list or as JSON; * is any [default: none]
    #[arg(long, value_name = "ORIGIN", num_args = 1..)]
    pub allowed_origins: Vec<String>,

    /// Path under which a proxy serves the API
    #[arg(long, value_name = "PATH")]
    pub root_path: Option<String>,

    /// Seconds that running requests get to finish after Ctrl-C or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub shutdown_timeout: u64,

    /// Seconds after which a step that does not end is taken for a device that hangs, and the server ends with an error,
    /// though not before five times the longest step so far; 0 is never [default: 300 on a GPU, never on a CPU]
    #[arg(long, value_name = "SECONDS")]
    pub watchdog_timeout: Option<u64>,

    /// Answer with the client's X-Request-Id, else the request_id of the body, else a new one
    #[arg(long)]
    pub enable_request_id_headers: bool,

    /// Don't log requests to these paths (/health,/metrics)
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    pub disable_access_log_for_endpoints: Vec<String>,

    /// Certificate for TLS
    #[arg(long, hide = true, value_parser = only("", NO_TLS))]
    pub ssl_certfile: Option<String>,

    /// Key for TLS
    #[arg(long, hide = true, value_parser = only("", NO_TLS))]
    pub ssl_keyfile: Option<String>,

    /// Collector of traces
    #[arg(long, hide = true, value_parser = only("", "traces are not available yet; there are metrics at /metrics"))]
    pub otlp_traces_endpoint: Option<String>,
}

/// What asks for TLS is answered with this.
pub(super) const NO_TLS: &str = "TLS is not available yet; put a proxy that has it in front of the server";

impl ServerArgs {
    /// The keys of which clients must send one.
    pub fn api_keys(&self) -> Vec<String> {
        if self.api_key.is_empty() { self.vllm_api_key.clone().into_iter().collect() } else { self.api_key.clone() }
    }

    /// The allowed origins, written as a list or, as in vLLM, as a JSON array.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn origins(&self) -> Result<Vec<String>, String> {
        match self.allowed_origins.as_slice() {
            [json] if json.starts_with('[') => serde_json::from_str(json)
                .map_err(|error| format!("--allowed-origins: must be a JSON array of strings: {error}")),
            list => Ok(list.to_vec()),
        }
    }
}
